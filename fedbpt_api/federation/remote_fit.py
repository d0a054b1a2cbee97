"""A party's side of a verbalizer's fit, where the party is behind a network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fedbpt_api.federation.forgotten import patiently
from fedbpt_api.verbalizer import decode
from fedbpt_api.verbalizer.messages import Begin


class Beginning(Protocol):
    """What is needed of the party."""

    @property
    def name(self) -> str: ...
    @property
    def n_train(self) -> int: ...
    @property
    def n_dev(self) -> int: ...
    @property
    def deadline(self) -> float | None: ...
    async def begin_fit(self, fields: dict[str, Any]) -> Mapping[bytes, bytes]: ...
    async def ask_fit(self, number: str, message: bytes) -> bytes: ...


@dataclass
class RemoteFit:
    """A party's side of a verbalizer's fit; a party that has forgotten it is told again how it began."""

    party: Beginning
    fields: dict[str, Any]
    known: Mapping[bytes, bytes]
    begun: bytes = b""

    @property
    def name(self) -> str:
        return self.party.name

    @property
    def n(self) -> int:
        return self.party.n_train + self.party.n_dev * bool(self.fields["with_dev"])

    async def answer(self, message: bytes) -> bytes:
        if message in self.known:
            return self.known[message]
        number = str(self.fields["fit"])
        forgotten = False

        async def ask() -> bytes:
            if forgotten and self.begun:
                await self.party.ask_fit(number, self.begun)
            return await self.party.ask_fit(number, message)

        async def begin() -> None:
            nonlocal forgotten
            await self.party.begin_fit(self.fields)
            forgotten = True

        async with asyncio.timeout(self.party.deadline):  # for all of it, however often it has forgotten
            answer = await patiently(ask, begin)
        if isinstance(decode(message), Begin):
            self.begun = message
        return answer
