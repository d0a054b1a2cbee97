"""The batcher: everybody gets their own answers, lists hold what they may, nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import BackendError
from fedbpt_backends.batching import Batcher
from fedbpt_backends.pacing import Pacer

Question = tuple[int, int]  # whose, which
Answer = tuple[Hashable, Question]


async def turns(n: int = 30) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


@dataclass
class Server:
    """Answers each list after some turns of the loop, and looks at what is under way meanwhile.

    Attributes:
        delays: Turns that the lists take, again and again.
        fails: Questions that make a list fail.
        hold: While it is not set nothing is answered.
        lists: What was sent.
    """

    delays: Sequence[int] = (0,)
    fails: frozenset[Question] = frozenset()
    hold: asyncio.Event | None = None
    lists: list[tuple[Hashable, list[Question]]] = field(default_factory=list)
    together: set[frozenset[Hashable]] = field(default_factory=set)
    most: int = 0
    _kinds: list[Hashable] = field(default_factory=list)

    async def send(self, kind: Hashable, items: Sequence[Question]) -> list[Answer]:
        self.lists.append((kind, list(items)))
        self._kinds.append(kind)
        self.most = max(self.most, len(self._kinds))
        self.together.add(frozenset(self._kinds))
        try:
            await turns(self.delays[len(self.lists) % len(self.delays)])
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self._kinds.remove(kind)
        if self.fails.intersection(items):
            raise BackendError(f"list {len(self.lists)} failed")
        return [(kind, item) for item in items]

    @property
    def sent(self) -> list[Question]:
        return [item for _, items in self.lists for item in items]


def apart(a: Hashable, b: Hashable) -> bool:
    """Kind 0 must be alone."""
    return a != b and 0 in (a, b)


Ask = tuple[int, int, int]  # kind, questions, turns until it is asked
ASKS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.integers(0, 5)), max_size=12)


def begin(batcher: Batcher[Question, Answer], asks: Sequence[Ask]) -> list[asyncio.Task[list[Answer]]]:
    async def ask(who: int, kind: int, n: int, after: int) -> list[Answer]:
        await turns(after)
        return await batcher.ask(kind, [(who, i) for i in range(n)])

    return [asyncio.create_task(ask(who, *asked)) for who, asked in enumerate(asks)]


@given(ASKS, st.integers(1, 9), st.integers(1, 5), st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_everybody_gets_their_own_answers_in_order_in_lists_that_are_allowed(
    asks: list[Ask], size: int, places: int, delays: list[int]
) -> None:
    async def scenario() -> None:
        server = Server(delays)
        batcher = Batcher(Pacer(places, places), server.send, size, alone=apart)
        answers = await asyncio.gather(*begin(batcher, asks))
        for who, ((kind, n, _), got) in enumerate(zip(asks, answers, strict=True)):
            assert got == [(kind, (who, i)) for i in range(n)]
        assert sorted(server.sent) == sorted((who, i) for who, (_, n, _) in enumerate(asks) for i in range(n))
        assert all(1 <= len(items) <= size for _, items in server.lists)
        assert all(asks[who][0] == kind for kind, items in server.lists for who, _ in items)
        assert all(kinds == {0} for kinds in server.together if 0 in kinds)
        assert server.most <= places
        await batcher.aclose()

    asyncio.run(scenario())


async def test_questions_that_come_together_go_together_and_fill_the_free_places() -> None:
    server = Server(hold=asyncio.Event())
    batcher = Batcher(Pacer(2, 2), server.send, 64)
    tasks = begin(batcher, [(1, 30, 0), (1, 30, 0), (1, 100, 1)])
    await turns()
    assert [len(items) for _, items in server.lists] == [30, 30]
    assert server.hold is not None
    server.hold.set()
    await asyncio.gather(*tasks)
    assert [len(items) for _, items in server.lists[2:]] in ([50, 50], [64, 36])


@given(ASKS, st.sets(st.tuples(st.integers(0, 11), st.integers(0, 19)), max_size=3), st.integers(1, 9))
def test_a_list_that_fails_fails_its_askers_and_nobody_else(
    asks: list[Ask], fails: set[Question], size: int
) -> None:
    async def scenario() -> None:
        server = Server((3, 0, 7), frozenset(fails))
        batcher = Batcher(Pacer(3, 3), server.send, size, alone=apart)
        answers = await asyncio.gather(*begin(batcher, asks), return_exceptions=True)
        struck = {who for _, items in server.lists if fails.intersection(items) for who, _ in items}
        for who, ((kind, n, _), got) in enumerate(zip(asks, answers, strict=True)):
            if who in struck:
                assert isinstance(got, BackendError)
            else:
                assert got == [(kind, (who, i)) for i in range(n)]
        await batcher.aclose()

    asyncio.run(scenario())


@given(ASKS, st.sets(st.integers(0, 11)), st.integers(0, 40), st.integers(1, 9))
def test_what_somebody_who_gave_up_had_not_sent_stays_unsent_and_the_others_are_answered(
    asks: list[Ask], given_up: set[int], when: int, size: int
) -> None:
    async def scenario() -> None:
        server = Server((5, 2, 9))
        batcher = Batcher(Pacer(2, 2), server.send, size, alone=apart)
        tasks = begin(batcher, asks)
        await turns(when)
        late = {who for who in given_up if who < len(tasks) and not tasks[who].done()}
        for who in late:
            tasks[who].cancel()
        await asyncio.sleep(0)
        already = len(server.sent)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for who, ((kind, n, _), got) in enumerate(zip(asks, answers, strict=True)):
            if who in late:
                assert isinstance(got, asyncio.CancelledError)
            else:
                assert got == [(kind, (who, i)) for i in range(n)]
        under_way = server.sent[already : already + 2 * size]  # lists that were being started
        assert not {who for who, _ in server.sent[already + len(under_way) :]} & late
        await batcher.aclose()

    asyncio.run(scenario())


@given(ASKS, st.integers(0, 40))
def test_closing_ends_everything_at_any_moment(asks: list[Ask], when: int) -> None:
    async def scenario() -> None:
        server = Server((5, 2, 9))
        batcher = Batcher(Pacer(2, 2), server.send, 4, alone=apart)
        tasks = begin(batcher, [(kind, n, 0) for kind, n, _ in asks])
        for _ in range(when):
            await asyncio.sleep(0)
        if not when:
            await asyncio.sleep(0)  # they are asked, and no list is on its way
        await batcher.aclose()
        before = len(server.lists)
        await batcher.aclose()
        await turns(60)
        assert len(server.lists) == before
        assert all(task.done() for task in tasks)
        for (_, n, _), task in zip(asks, tasks, strict=True):
            assert task.cancelled() or len(task.result()) == n
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "wrong", [lambda items: items[:-1], lambda items: [*items, items[0]], lambda items: []]
)
async def test_too_few_or_too_many_answers_are_an_error_and_no_endless_wait(
    wrong: Callable[[Sequence[Question]], Sequence[Answer]],
) -> None:
    async def send(kind: Hashable, items: Sequence[Question]) -> Sequence[Answer]:
        return wrong(items)

    sender: Callable[[Hashable, Sequence[Question]], Awaitable[Sequence[Answer]]] = send
    batcher = Batcher(Pacer(), sender, 8)
    async with asyncio.timeout(30):
        with pytest.raises(BackendError, match=r"\d answers came to \d"):
            await batcher.ask("kind", [(0, 0), (0, 1), (0, 2)])
    await batcher.aclose()
