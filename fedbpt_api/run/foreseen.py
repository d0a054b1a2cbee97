"""The records of an estimate: figures a client, a round and in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedbpt_api.run import plain
from fedbpt_api.scoring.backend import Usage


@dataclass(frozen=True, slots=True)
class Figures:
    """What a client, or `ALL_CLIENTS`, takes in a round or in all. None is unknown.

    Attributes:
        client: Its name.
        scored: Scored examples.
        duplicates: Pairs that come again and are not sent again.
        prompt_tokens: Prompt tokens, cached ones included.
        cached_tokens: Those of them that a prefix cache should hold.
        requests: Requests.
        bytes_up: Bytes sent by it.
        bytes_down: Bytes sent to it.
        money: In the estimate's currency.
        seconds: Wall-clock time; of all clients together only.
    """

    client: str
    scored: int
    duplicates: int
    prompt_tokens: int
    cached_tokens: int
    requests: int
    bytes_up: int
    bytes_down: int
    money: float | None = None
    seconds: float | None = None

    @property
    def usage(self) -> Usage:
        return Usage(self.scored, self.prompt_tokens, self.cached_tokens, self.requests)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will cost.

    Attributes:
        total: The search, all clients, likely.
        clients: The same for each client.
        rounds: For each round, from 0 (before the search), each client's figures and then their sum.
        test: The final test, each client's figures and then their sum; apart from the search's.
        low: The search's total with the shortest starting prompt as the centre.
        high: The same with the longest.
        most: What each client takes at most, and then all; empty where time alone ends the run.
        currency: Of money; empty where a price is not known.
        probes: Requests that were paid for to measure the speed.
        probe_tokens: Their prompt tokens.
    """

    total: Figures
    clients: tuple[Figures, ...]
    rounds: tuple[tuple[Figures, ...], ...]
    test: tuple[Figures, ...]
    low: Figures
    high: Figures
    most: tuple[Figures, ...]
    currency: str = ""
    probes: int = 0
    probe_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        encoded: dict[str, Any] = plain.encode(self)
        return encoded

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Estimate:
        """Reads `to_dict`; raises `RunFolderError` naming the key that is wrong."""
        return plain.decode(cls, data)
