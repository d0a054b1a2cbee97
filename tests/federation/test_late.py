"""Searches that are late: they go on, join a later round's merge, and nobody is asked twice meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from fedbpt_api.aggregate import FedBPT, GlobalState, rebased
from fedbpt_api.errors import BackendError, QuorumError
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.latecomers import Latecomers, LateRound
from fedbpt_api.federation.local_search import Plan, Reference, Searched
from fedbpt_api.federation.messages import Broadcast, decode_update, encode_update
from fedbpt_api.federation.runtime import Late, Round, Rules, search_round
from fedbpt_api.prompts.space import PromptSpace
from fedbpt_api.verbalizer import Verbalizer
from toy_clients import GROUPS, PLAN, WORDS, WordSpace, make_clients

START = GlobalState.first(np.zeros(2), 1.0)
REFERENCE = Reference((), Verbalizer.from_words(WORDS, GROUPS))
RULES = Rules(timeout=30.0, late="use")


class Held(Client):
    """A client whose searches are answered when its gate is open."""

    gate: asyncio.Event | None = None
    broken: Exception | None = None
    asked: list[int]
    given: Searched

    async def search(
        self, broadcast: Broadcast, space: PromptSpace, plan: Plan, reference: Reference
    ) -> Searched:
        self.asked = [*getattr(self, "asked", []), broadcast.round]
        found = await super().search(broadcast, space, plan, reference)
        if self.gate is not None:
            HELD.append(self.name)
            await self.gate.wait()
        if self.broken is not None:
            raise self.broken
        self.given = found
        DONE.append(self.name)
        return found


HELD: list[str] = []
DONE: list[str] = []


@pytest.fixture(autouse=True)
def nothing_has_happened() -> Iterator[None]:
    HELD.clear()
    DONE.clear()
    yield


class Clock:
    """The loop's time stands still, and passes a deadline once `when()` is true."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.when: Callable[[], bool] = lambda: False
        self._time = 0.0
        self._due = False
        monkeypatch.setattr(asyncio.get_running_loop(), "time", self._now)

    def _now(self) -> float:
        if not self._due and self.when():
            self._due, self._time = True, self._time + 31.0
        return self._time

    def arm(self, when: Callable[[], bool]) -> None:
        self.when, self._due = when, False


async def held_clients(count: int) -> list[Held]:
    return [client for client in await make_clients(count, kind=Held) if isinstance(client, Held)]


async def play(clients: list[Held], late: Late, state: GlobalState = START, rules: Rules = RULES) -> Round:
    return await search_round(clients, state, FedBPT(), WordSpace(), PLAN, REFERENCE, rules, late)


@dataclass
class Log:
    """A log in memory."""

    known: dict[int, LateRound] = field(default_factory=dict)
    kept: list[LateRound] = field(default_factory=list)

    def of(self, number: int) -> LateRound | None:
        return self.known.get(number)

    def keep(self, entry: LateRound) -> None:
        self.kept.append(entry)


async def one_is_late(
    monkeypatch: pytest.MonkeyPatch, late: Late, count: int = 4
) -> tuple[list[Held], Round]:
    """A round in which client1 does not answer in time."""
    clock, clients = Clock(monkeypatch), await held_clients(4)
    clients[1].gate = asyncio.Event()
    clock.arm(lambda: len(DONE) == 3 and bool(HELD))
    done = await play(clients, late)
    clock.arm(lambda: False)
    return clients, done


async def test_a_late_update_joins_the_next_merge_with_its_discount(monkeypatch: pytest.MonkeyPatch) -> None:
    late: Late = Latecomers()
    clients, first = await one_is_late(monkeypatch, late)
    assert first.missing == {"client1": "no answer within 30 s"}
    assert late.busy == {"client1": 0}
    assert clients[1].gate is not None
    clients[1].gate.set()
    second = await play(clients, late, first.state)
    assert clients[1].asked == [0]  # it was busy when the round began
    assert second.missing == {} and second.stale == {"client1": 1}
    updates = [decode_update(encode_update(client.given.update)) for client in clients]
    updates[1] = rebased(updates[1], START, first.state)
    assert second.state == FedBPT().merge(first.state, updates)
    third = await play(clients, late, second.state)
    assert clients[1].asked == [0, 2] and third.stale == {} and len(third.searched) == 4


async def test_who_is_still_busy_is_named_and_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    late: Late = Latecomers()
    clients, first = await one_is_late(monkeypatch, late)
    second = await play(clients, late, first.state)
    assert second.missing == {"client1": "still at the search of round 1"}
    assert sorted(second.searched) == ["client0", "client2", "client3"]
    assert clients[1].asked == [0]
    await late.aclose()
    assert late.busy == {}


async def test_dropped_searches_are_cancelled_and_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, clients, late = Clock(monkeypatch), await held_clients(3), Latecomers[tuple[Searched, bytes]]()
    clients[1].gate = asyncio.Event()
    clock.arm(lambda: len(DONE) == 2 and bool(HELD))
    rules = Rules(timeout=30.0, late="drop")
    first = await play(clients, late, rules=rules)
    assert first.missing == {"client1": "no answer within 30 s"} and late.busy == {}
    clients[1].gate.set()
    second = await play(clients, late, first.state, rules)
    assert clients[1].asked == [0, 1] and second.missing == {} and second.stale == {}


async def test_a_late_search_that_fails_frees_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    late: Late = Latecomers()
    clients, first = await one_is_late(monkeypatch, late)
    failing = clients[1]
    assert failing.gate is not None
    failing.broken = BackendError("out of memory")
    failing.gate.set()
    await asyncio.wait([one.task for one in late._late.values()])
    failing.broken = None
    second = await play(clients, late, first.state)
    assert failing.asked == [0, 1] and second.missing == {} and second.stale == {}


async def test_where_everybody_is_busy_the_round_waits_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    late: Late = Latecomers()
    clients, first = await one_is_late(monkeypatch, late)
    alone = clients[1]
    assert alone.gate is not None
    playing = asyncio.create_task(play([alone], late, first.state))
    for _ in range(200):
        await asyncio.sleep(0)
    assert not playing.done()
    alone.gate.set()
    assert (await playing).stale == {"client1": 1}


async def test_a_defect_in_a_late_search_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    late: Late = Latecomers()
    clients, first = await one_is_late(monkeypatch, late)
    assert clients[1].gate is not None
    clients[1].broken = ZeroDivisionError("a defect")
    clients[1].gate.set()
    with pytest.raises(ZeroDivisionError, match="a defect"):
        await play(clients, late, first.state)


# A run that goes on ----------------------------------------------------------------------------


async def test_a_run_that_is_done_again_merges_the_same_in_the_same_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second time nobody is late by the clock; the log says who was."""
    log = Log()
    late: Late = Latecomers(log)
    clients, first = await one_is_late(monkeypatch, late)
    second = await play(clients, late, first.state)
    assert clients[1].gate is not None
    clients[1].gate.set()
    third = await play(clients, late, second.state)
    assert log.kept == [
        LateRound(0, (), ("client1",)), LateRound(1, (), ("client1",)), LateRound(2, ("client1",), ()),
    ]  # fmt: skip
    assert third.stale == {"client1": 2}

    again: Late = Latecomers(Log({entry.round: entry for entry in log.kept}))
    state, others = START, await held_clients(4)
    for before in (first, second, third):
        done = await play(others, again, state)
        state = done.state
        assert (state, done.missing, done.stale) == (before.state, before.missing, before.stale)


async def test_a_search_that_was_lost_is_asked_for_again_in_the_same_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {0: LateRound(0, (), ("client1", "client2")), 1: LateRound(1, (), ("client2",))}
    log = Log(known)
    late: Late = Latecomers(log)
    clients = await held_clients(4)
    first = await play(clients, late)
    assert sorted(first.searched) == ["client0", "client3"]
    second = await play(clients, late, first.state)
    assert [client.asked for client in clients] == [[0, 1], [0, 1], [0], [0, 1]]
    third = await play(clients, late, second.state)
    assert third.stale == {"client2": 2} and log.kept == [LateRound(2, ("client2",), ())]


async def test_a_search_that_is_known_to_have_ended_is_not_waited_for_without_end() -> None:
    """It failed then, and its client is gone now: nothing will ever come."""
    late: Late = Latecomers(Log({1: LateRound(1, ("client1",), ())}))
    late.add("client1", START, asyncio.ensure_future(asyncio.Event().wait()))  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        assert await late.arrived(1, 0.05, alone=False) == {}
    assert sorted(late.busy) == ["client1"]
    await late.aclose()


async def test_a_round_that_ended_the_run_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it goes on, whoever was late then may answer."""
    clock, clients, log = Clock(monkeypatch), await held_clients(2), Log()
    clients[1].gate = asyncio.Event()
    clock.arm(lambda: len(DONE) == 1 and bool(HELD))
    late: Late = Latecomers(log)
    with pytest.raises(QuorumError, match="only 1 of 2"):
        await play(clients, late, rules=Rules(quorum=1.0, timeout=30.0, late="use"))
    assert log.kept == []
    await late.aclose()
