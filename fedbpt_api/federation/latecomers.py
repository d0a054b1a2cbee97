"""Searches that have missed their deadline and go on: who is busy with one, and in which round it joins.

Who is late is a matter of clocks. So that a run that goes on, or is done again, merges the same updates in
the same rounds, each round that a late search plays a part in is kept (`LateRound`), and followed where it is
known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from fedbpt_api.aggregate import GlobalState

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class LateRound:
    """What late searches did in a round.

    Attributes:
        round: Its number.
        joined: Clients whose late search joined its merge, or failed in it.
        waiting: Clients that were still searching when it was merged, those that were asked in it included.
    """

    round: int
    joined: tuple[str, ...]
    waiting: tuple[str, ...]


class LateLog(Protocol):
    """Where rounds with late searches are kept."""

    def of(self, number: int) -> LateRound | None:
        """What is known of a round from before."""

    def keep(self, entry: LateRound) -> None:
        """Keep a round, before its merge is used."""


class NoLog:
    """Keeps nothing."""

    def of(self, number: int) -> LateRound | None:
        return None

    def keep(self, entry: LateRound) -> None:
        pass


@dataclass
class Late(Generic[R]):
    """A search under way: the state that it began from, and what it will give."""

    sent: GlobalState
    task: asyncio.Task[R]

    @property
    def found(self) -> R | BaseException:
        """What it gave, or how it failed, once it has ended."""
        if self.task.cancelled():
            return asyncio.CancelledError()
        return self.task.exception() or self.task.result()


@dataclass
class Latecomers(Generic[R]):
    """The late searches of a run.

    Attributes:
        log: Where rounds with late searches are kept.
    """

    log: LateLog = field(default_factory=NoLog)
    _late: dict[str, Late[R]] = field(default_factory=dict)

    @property
    def busy(self) -> dict[str, int]:
        """Clients that are not to be asked to search, and the round of the search that they are at."""
        return {name: late.sent.round for name, late in self._late.items()}

    def add(self, name: str, sent: GlobalState, task: asyncio.Task[R]) -> None:
        """Let a client's search go on beyond its round."""
        self._late[name] = Late(sent, task)

    def freed(self, number: int) -> dict[str, R | BaseException]:
        """Before a round: forget searches that have failed since the last one; their clients can be asked.

        Returns:
            How they failed, as far as that is known again.
        """
        told = self.log.of(number)
        ended: dict[str, R | BaseException] = {}
        for name, late in list(self._late.items()):
            if told is not None:
                failed = name not in told.joined and name not in told.waiting
            else:
                failed = late.task.done() and isinstance(late.found, BaseException)
            if failed:
                del self._late[name]
                if told is None:
                    ended[name] = late.found
                late.task.cancel()
        return ended

    def known(self, number: int) -> frozenset[str]:
        """Clients of whom it is known that they will not answer a round in time."""
        told = self.log.of(number)
        return frozenset(told.waiting) - frozenset(self._late) if told is not None else frozenset()

    async def arrived(self, number: int, timeout: float | None, *, alone: bool) -> dict[str, Late[R]]:
        """The searches that join a round's merge; they have ended, one way or the other.

        Args:
            number: The round's.
            timeout: Seconds to wait for the first one, or for those that are known to have ended in it.
            alone: Whether nobody else was asked, so that it is worth a wait.
        """
        told = self.log.of(number)
        if told is not None:
            there = [name for name in told.joined if name in self._late]
            await _ended([self._late[name].task for name in there], timeout)
            return {name: self._late.pop(name) for name in there if self._late[name].task.done()}
        if alone and self._late:
            tasks = [late.task for late in self._late.values()]
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return {name: self._late.pop(name) for name in sorted(self._late) if self._late[name].task.done()}

    def note(self, number: int, joined: Collection[str]) -> None:
        """After a round: keep what late searches did in it, if they did anything."""
        if (joined or self._late) and self.log.of(number) is None:
            self.log.keep(LateRound(number, tuple(sorted(joined)), tuple(sorted(self._late))))

    async def aclose(self) -> None:
        """Give up on what is under way."""
        tasks = [late.task for late in self._late.values()]
        self._late.clear()
        for task in tasks:
            task.cancel()
        await _ended(tasks)


async def _ended(tasks: Collection[asyncio.Task[R]], timeout: float | None = None) -> None:
    """Wait until all have ended, in whatever way, or the time is over."""
    if tasks:
        await asyncio.wait(tasks, timeout=timeout)
