"""Many small questions in few large requests.

Questions that arrive together (a generation's candidates, several clients) and ask for the same are sent
as one list. While every place under way is taken they wait and gather, so lists grow with the load.
Kinds of questions that a server must not see side by side are kept apart (`alone`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from fedbpt_api.errors import BackendError
from fedbpt_backends.pacing import Pacer

_OVERLAP = 2
Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(slots=True)
class _Asked(Generic[Q, A]):
    """One caller's questions: `sent` of them are under way or answered, `missing` have no answer yet."""

    kind: Hashable
    items: Sequence[Q]
    answers: list[A | None]
    done: asyncio.Future[None]
    missing: int
    sent: int = 0


class Batcher(Generic[Q, A]):
    """Gathers questions and sends them as lists.

    Args:
        pacer: Bounds lists under way.
        send: Answers a list of questions of one kind, in their order.
        size: Most questions in a list.
        alone: Whether two kinds must never be under way at the same time.
    """

    def __init__(
        self,
        pacer: Pacer,
        send: Callable[[Hashable, Sequence[Q]], Awaitable[Sequence[A]]],
        size: int,
        *,
        alone: Callable[[Hashable, Hashable], bool] = lambda a, b: False,
    ) -> None:
        self._pacer, self._send, self._size, self._alone = pacer, send, size, alone
        self._waiting: deque[_Asked[Q, A]] = deque()
        self._flying: dict[asyncio.Task[None], Hashable] = {}
        self._due = False

    async def ask(self, kind: Hashable, items: Sequence[Q]) -> list[A]:
        """The answers to `items`, in their order.

        Raises:
            BackendError: A list that some of them were sent with failed.
        """
        if not items:
            return []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asked: _Asked[Q, A] = _Asked(kind, items, [None] * len(items), done, len(items))
        self._waiting.append(asked)
        self._soon()
        await done  # where the asker gives up it is cancelled, and what is not sent yet stays unsent
        return [answer for answer in asked.answers if answer is not None]

    async def aclose(self) -> None:
        """Give up on everything."""
        for asked in self._waiting:
            asked.done.cancel()
        self._waiting.clear()
        tasks = list(self._flying)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _soon(self) -> None:
        """Send in the next turn of the loop, when all that arrive in this one are there."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._due = False
        while len(self._flying) < self._pacer.limit:
            batch = self._next()
            if batch is None:
                return
            kind, parts = batch
            task = asyncio.get_running_loop().create_task(self._request(kind, parts))
            self._flying[task] = kind
            task.add_done_callback(partial(self._ended, parts))

    def _next(self) -> tuple[Hashable, list[tuple[_Asked[Q, A], range]]] | None:
        """Questions of one kind for the next list: for each asker which of its own."""
        while self._waiting and self._waiting[0].done.done():
            self._waiting.popleft()
        if not self._waiting:
            return None
        kind = self._waiting[0].kind
        if any(self._alone(kind, other) for other in self._flying.values()):
            return None
        # Two lists at least, so that the server works on one while the other travels; not more than that,
        # because every request costs both sides, and not too small to be worth one.
        places = min(max(self._pacer.limit - len(self._flying), 1), _OVERLAP)
        there = sum(len(a.items) - a.sent for a in self._waiting if a.kind == kind)
        room = min(self._size, max(-(-there // places), self._size // 4, 1))
        parts: list[tuple[_Asked[Q, A], range]] = []
        while room and self._waiting and self._waiting[0].kind == kind:
            asked = self._waiting[0]
            end = asked.sent if asked.done.done() else min(asked.sent + room, len(asked.items))
            if end > asked.sent:
                parts.append((asked, range(asked.sent, end)))
                room -= end - asked.sent
                asked.sent = end
            if asked.done.done() or asked.sent == len(asked.items):
                self._waiting.popleft()
        return kind, parts

    async def _request(self, kind: Hashable, parts: list[tuple[_Asked[Q, A], range]]) -> None:
        try:
            items = [asked.items[i] for asked, own in parts for i in own]
            found = await self._send(kind, items)
            if len(found) != len(items):
                raise BackendError(f"{len(found)} answers came to {len(items)} questions")
            answers = iter(found)
            for asked, own in parts:
                for i in own:
                    asked.answers[i] = next(answers)
                asked.missing -= len(own)
                if not asked.missing and not asked.done.done():
                    asked.done.set_result(None)
        except Exception as error:
            for asked, _ in parts:
                if not asked.done.done():
                    asked.done.set_exception(error)
                    asked.done.exception()  # its asker may be gone by now; that is not an event

    def _ended(self, parts: list[tuple[_Asked[Q, A], range]], task: asyncio.Task[None]) -> None:
        """However a list ended, even before it began: nobody is left waiting for it."""
        if task.cancelled():
            for asked, _ in parts:
                asked.done.cancel()
        del self._flying[task]
        self._soon()
