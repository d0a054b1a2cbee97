"""What carries envelopes over Flower: one node's reply that cannot be read is that node's failure alone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.flower.bundle import pack, unpack
from fedbpt_api.flower.post import Post


@dataclass
class Unreadable:
    """Nodes 1 to 3, which answer with what they are asked; those of `bad` with what Flower cannot read.

    As Flower's own, a pull loses all that was fetched with it where it fails.
    """

    bad: set[int]
    sent: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    pulled: list[int] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def nodes(self) -> Sequence[int]:
        return [1, 2, 3]

    def push(self, bundles: Mapping[int, bytes]) -> Mapping[str, int]:
        names = {f"m{next(self._numbers)}": node for node in bundles}
        self.sent |= {name: (node, bundles[node]) for name, node in names.items()}
        return names

    def pull(self, messages: Iterable[str]) -> Mapping[str, bytes | None]:
        fetched = {name: self.sent.pop(name) for name in messages if name in self.sent}
        self.pulled.append(len(fetched))
        if self.bad & {node for node, _ in fetched.values()}:
            raise ValueError("Error parsing message")
        return {name: pack(unpack(data)) for name, (_, data) in fetched.items()}


async def test_a_reply_that_cannot_be_read_is_its_node_s_failure() -> None:
    grid = Unreadable({2})
    async with Post(grid) as post:
        for number in range(3):
            question = seal(Envelope("question", {"number": number}))
            answers = await asyncio.gather(
                *(post.ask(n, question) for n in (1, 2, 3)), return_exceptions=True
            )
            first, second, third = answers
            assert isinstance(first, bytes) and isinstance(third, bytes)
            assert opened(first).fields == opened(third).fields == {"number": number}
            with pytest.raises(FedbptError, match="its node failed"):
                if isinstance(second, BaseException):
                    raise second
    assert grid.pulled[0] == 3  # together, as long as all can be read


async def test_replies_are_fetched_together() -> None:
    grid = Unreadable(set())
    async with Post(grid) as post:
        question = seal(Envelope("question", {}))
        await asyncio.gather(*(post.ask(n, question) for n in (1, 2, 3)))
    assert max(grid.pulled) == 3
