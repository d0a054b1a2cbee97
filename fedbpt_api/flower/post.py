"""Envelopes to Flower's nodes and back: what is asked of a node while it is busy travels together, next.

A node works on one message at a time, in their order. The wait for an answer follows the node: it is
looked for ten times a second, and nothing else is waited for. A message that was sent before one that is
answered has been lost: its node was started again in between. Flower's own calls block, so they have a
thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.flower.bundle import MOST, pack, unpack

R = TypeVar("R")
_LOG = logging.getLogger(__name__)
_LOOK = 0.1  # seconds between looks for answers
_NODES = 1.0  # seconds between looks for nodes
_HELLO = 60.0  # seconds that a node has to say its name
_TOGETHER = 0.01  # seconds in which what is asked at the same time is gathered


class Grid(Protocol):
    """What is needed of Flower's grid; `flower.server` has it, the tests have another."""

    def nodes(self) -> Sequence[int]:
        """Nodes that are connected."""

    def push(self, bundles: Mapping[int, bytes]) -> Mapping[str, int]:
        """Send a bundle to nodes; the name of each message, and its node."""

    def pull(self, messages: Iterable[str]) -> Mapping[str, bytes | None]:
        """Answers that have arrived, by the message that they answer; None where there will be none."""


@dataclass
class _Asked:
    """An envelope and who waits for its answer."""

    envelope: bytes
    answer: asyncio.Future[bytes]


@dataclass
class _Sent:
    """A message under way: its node, what it asks, and when it was sent."""

    node: int
    asked: list[_Asked]
    when: float


@dataclass
class Post:
    """Carries envelopes over a grid; a context manager, within which it works.

    Args:
        grid: Flower's.
        patience: Seconds after which a node is sent more though it has not answered: what it was sent may be
            lost, and never be answered.
    """

    grid: Grid
    patience: float = math.inf
    _waiting: dict[int, list[_Asked]] = field(default_factory=dict)
    _sent: dict[str, _Sent] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    _met: set[int] = field(default_factory=set)
    _singly: bool = False  # replies are fetched one by one
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "flower"))
    _work: asyncio.Task[None] | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Post:
        self._work = asyncio.create_task(self._carry())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._work is not None
        self._work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._work
        self._thread.shutdown(wait=False)

    def to(self, name: str) -> Exchange:
        """How envelopes reach the party of that name, once `find` has found it."""

        async def exchange(envelope: bytes) -> bytes:
            if name not in self._names:
                await self._look()
            if name not in self._names:
                raise FedbptError(f"{name} is not connected")
            return await self.ask(self._names[name], envelope)

        return exchange

    async def ask(self, node: int, envelope: bytes) -> bytes:
        """Ask a node.

        Raises:
            FedbptError: Flower says that there will be no answer.
        """
        asked = _Asked(envelope, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(node, []).append(asked)
        self._news.set()
        return await asked.answer

    async def find(self, count: int, names: Iterable[str] = (), told: Callable[[str], None] = print) -> None:
        """Wait until so many parties, or those that are named, are connected and have said their names.

        Raises:
            FedbptError: Two nodes have the same name.
        """
        wanted, known = set(names), set[str]()
        while not (wanted <= known if wanted else len(known) >= count):
            await self._look(wanted)
            for name in sorted(self._names.keys() - known):
                known.add(name)
                told(f"{name} is here ({len(known)} of {len(wanted) or count})")
            await asyncio.sleep(_NODES)

    async def _look(self, wanted: Collection[str] = ()) -> None:
        """Ask nodes that are new for their names; keep those that are wanted.

        Raises:
            FedbptError: Two nodes have the same name.
        """
        new = [node for node in await self._call(self.grid.nodes) if node not in self._met]
        self._met |= set(new)
        for node, name in zip(new, await asyncio.gather(*map(self._hello, new)), strict=True):
            if name is None:
                self._met.discard(node)  # it is asked again
            elif self._names.get(name, node) != node:
                nodes = f"nodes {self._names[name]} and {node}"
                raise FedbptError(f"two parties are called {name}: {nodes}", "give each a name of its own")
            elif not wanted or name in wanted:
                self._names[name] = node

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parties that were found."""
        return tuple(sorted(self._names))

    async def _hello(self, node: int) -> str | None:
        """The name of a node's party; None where it gives none."""
        try:
            async with asyncio.timeout(_HELLO):
                answer = opened(await self.ask(node, seal(Envelope("hello", {}))))
            return str(answer.fields["answer"]["name"])
        except (FedbptError, TimeoutError, KeyError, TypeError):
            return None

    async def _carry(self) -> None:
        """Send what waits for nodes that are free; give answers to those who wait for them."""
        while True:
            if not self._sent:
                await self._news.wait()
            self._news.clear()
            await asyncio.sleep(_TOGETHER)
            self._sent = {
                message: sent
                for message, sent in self._sent.items()
                if any(not one.answer.done() for one in sent.asked)  # nobody waits for it any more
            }
            recent = asyncio.get_running_loop().time() - self.patience
            busy = {sent.node for sent in self._sent.values() if sent.when > recent}
            try:
                await self._send([node for node in self._waiting if node not in busy])
                await self._receive()
            except Exception as error:  # of Flower's own: whoever waits is told
                self._fail(FedbptError(f"Flower failed: {error}", "see the SuperLink's log"))
            if self._sent:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), _LOOK)

    async def _send(self, nodes: Sequence[int]) -> None:
        bundles: dict[int, list[_Asked]] = {}
        for node in nodes:
            asked = [one for one in self._waiting.pop(node) if not one.answer.done()]
            if asked:
                bundles[node] = asked[:MOST]
            if asked[MOST:]:
                self._waiting[node] = asked[MOST:]
        if not bundles:
            return
        data = {node: pack([one.envelope for one in asked]) for node, asked in bundles.items()}
        now = asyncio.get_running_loop().time()
        for node, asked in bundles.items():
            self._sent[f"to {node}"] = _Sent(node, asked, now)  # found by `_fail` until it has a name
        names = await self._call(self.grid.push, data)
        for node in bundles:
            del self._sent[f"to {node}"]
        self._sent |= {message: _Sent(node, bundles[node], now) for message, node in names.items()}
        for node in set(bundles) - set(names.values()):
            _give(bundles[node], FedbptError("it is not connected"))

    async def _receive(self) -> None:
        if not self._sent:
            return
        found = await self._pull()
        for message in [message for message in self._sent if message in found]:  # in the order they were sent
            sent, data = self._sent.pop(message), found[message]
            self._news.set()  # its node is free
            if data is None:
                _give(sent.asked, FedbptError("its node failed, or was not there in time"))
                continue
            for earlier in [name for name, one in self._sent.items() if one.node == sent.node]:
                if self._sent[earlier].when < sent.when:
                    _give(self._sent.pop(earlier).asked, FedbptError("its node was started again meanwhile"))
            try:
                answers = unpack(data)
                if len(answers) != len(sent.asked):
                    raise FedbptError(f"{len(answers)} answers to {len(sent.asked)} questions")
            except FedbptError as error:
                _give(sent.asked, error)
                continue
            for one, answer in zip(sent.asked, answers, strict=True):
                if not one.answer.done():
                    one.answer.set_result(answer)

    async def _pull(self) -> Mapping[str, bytes | None]:
        """Answers that have arrived.

        A reply that Flower cannot read loses all that is fetched with it. The first time all is asked for
        once more (parties have kept their answers); from then on replies are fetched one by one, which takes
        longer and shows whose it is.
        """
        if not self._singly:
            try:
                return await self._call(self.grid.pull, list(self._sent))
            except Exception as error:
                _LOG.warning("a reply cannot be fetched (%s): all is asked for once more", error)
                self._singly = True
                for sent in self._sent.values():
                    waiting = self._waiting.setdefault(sent.node, [])
                    waiting[:0] = [one for one in sent.asked if not one.answer.done()]
                self._sent.clear()
                self._news.set()
                return {}
        found: dict[str, bytes | None] = {}
        for message, sent in list(self._sent.items()):
            try:
                found |= await self._call(self.grid.pull, [message])
            except Exception as error:
                _LOG.warning("the reply of node %s cannot be fetched: %s", sent.node, error)
                found[message] = None
        return found

    def _fail(self, error: FedbptError) -> None:
        for sent in self._sent.values():
            _give(sent.asked, error)
        self._sent.clear()

    async def _call(self, work: Callable[..., R], *arguments: Any) -> R:
        """Do what blocks on the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _give(asked: Sequence[_Asked], error: FedbptError) -> None:
    """Tell those who wait that there is no answer."""
    for one in asked:
        if not one.answer.done():
            one.answer.set_exception(error)
