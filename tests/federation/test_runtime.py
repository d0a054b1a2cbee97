"""A round: who is asked, who is left out and named, and that the order of arrival changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.aggregate import Aggregator, FedAvg, FedBPT, GlobalState, Update
from fedbpt_api.errors import BackendError, QuorumError
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.local_search import Plan, Reference, Searched
from fedbpt_api.federation.messages import Broadcast, decode_update, encode_update
from fedbpt_api.federation.runtime import Answers, Round, Rules, ask_all, need_quorum, sample, search_round
from fedbpt_api.prompts.space import PromptSpace
from fedbpt_api.scoring.budget import BudgetSpent, Limits
from fedbpt_api.scoring.scorer import Stopped
from fedbpt_api.verbalizer import Verbalizer
from toy import ToyBackend
from toy_clients import GROUPS, PLAN, WORDS, WordSpace, make_client, make_clients

START = GlobalState.first(np.zeros(2), 1.0)
REFERENCE = Reference((), Verbalizer.from_words(WORDS, GROUPS))


async def play(
    clients: Sequence[Client],
    rules: Rules | None = None,
    state: GlobalState = START,
    plan: Plan = PLAN,
    aggregator: Aggregator | None = None,
) -> Round:
    """A round with the toy's defaults."""
    merging = aggregator if aggregator is not None else FedBPT()
    return await search_round(clients, state, merging, WordSpace(), plan, REFERENCE, rules or Rules())


class Altered(Client):
    """A client whose answer waits or is changed on its way."""

    after: asyncio.Event | None = None
    then: asyncio.Event | None = None
    change: Callable[[Update], Update] | None = None

    async def search(
        self, broadcast: Broadcast, space: PromptSpace, plan: Plan, reference: Reference
    ) -> Searched:
        searched = await super().search(broadcast, space, plan, reference)
        if self.after is not None:
            await self.after.wait()
        ARRIVED.append(self.name)
        if self.then is not None:
            self.then.set()
        if self.change is not None:
            searched = replace(searched, update=self.change(searched.update))
        return searched


ARRIVED: list[str] = []


@pytest.fixture(autouse=True)
def nobody_has_arrived() -> Iterator[None]:
    ARRIVED.clear()
    yield


async def make_altered(count: int, *backends: ToyBackend) -> list[Altered]:
    """`make_clients` with answers that can be altered."""
    clients = await make_clients(count, backends, Altered)
    return [client for client in clients if isinstance(client, Altered)]


async def arriving(order: Sequence[int]) -> list[Altered]:
    """Three clients that answer in this order, each only when the one before has."""
    clients = await make_altered(3)
    before: asyncio.Event | None = None
    for number in order:
        clients[number].after, clients[number].then = before, asyncio.Event()
        before = clients[number].then
    return clients


# Who is left out -----------------------------------------------------------------------------


async def test_a_round_asks_everybody_and_merges_what_they_found() -> None:
    clients = await make_clients(3)
    done = await play(clients)
    assert done.missing == {}
    assert sorted(done.searched) == ["client0", "client1", "client2"]
    assert done.state.round == 1
    assert done.state.mean.tolist() != START.mean.tolist()
    updates = [searched.update for searched in done.searched.values()]
    assert done.state == FedBPT().merge(START, map(arrived, updates))


def arrived(update: Update) -> Update:
    """The update as it arrives: in single precision."""
    return decode_update(encode_update(update))


async def test_a_client_that_fails_is_named_and_the_others_are_merged_as_if_it_were_not_there() -> None:
    broken = ToyBackend(fail_from=2)
    clients = await make_clients(4, [ToyBackend(), broken])
    done = await play(clients)
    assert list(done.missing) == ["client1"]
    assert "the toy fails at request 2" in done.missing["client1"]
    assert sorted(done.searched) == ["client0", "client2", "client3"]

    others = await make_clients(4)
    assert done.state == (await play([others[0], others[2], others[3]])).state


async def test_a_client_that_is_late_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = await make_altered(3)
    clients[1].after = asyncio.Event()  # nobody sets it
    time_passes(monkeypatch, 31.0, lambda: len(ARRIVED) == 2)
    done = await play(clients, Rules(timeout=30.0))
    assert done.missing == {"client1": "no answer within 30 s"}
    assert sorted(done.searched) == ["client0", "client2"]
    assert done.state.round == 1


async def test_a_client_whose_server_hangs_is_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hung = ToyBackend(hold=asyncio.Event())
    clients = await make_altered(3, ToyBackend(), hung)
    time_passes(monkeypatch, 31.0, lambda: len(ARRIVED) == 2)
    playing = asyncio.create_task(play(clients, Rules(timeout=30.0)))
    for _ in range(2000):  # turns of the loop; far more than it takes
        await asyncio.sleep(0)
    try:
        assert playing.done(), "the round still waits for a server that hangs"
        assert (await playing).missing == {"client1": "no answer within 30 s"}
    finally:
        playing.cancel()
        assert hung.hold is not None
        hung.hold.set()
        await asyncio.gather(playing, return_exceptions=True)


def time_passes(monkeypatch: pytest.MonkeyPatch, seconds: float, when: Callable[[], bool]) -> None:
    """The loop's clock stands still, and jumps once `when()` is true."""
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: seconds if when() else 0.0)


async def test_below_the_quorum_the_round_ends_with_every_reason() -> None:
    clients = await make_clients(4, [ToyBackend(fail_from=1) for _ in range(3)])
    with pytest.raises(QuorumError) as raised:
        await play(clients, Rules(quorum=0.5))
    assert "only 1 of 4 clients answered" in raised.value.message
    assert all(f"client{i}: the toy fails at request 1" in raised.value.message for i in range(3))
    assert raised.value.hint
    assert (await play(await make_clients(4, [ToyBackend(fail_from=1)] * 3), Rules(quorum=0.25))).missing


@pytest.mark.parametrize(
    ("asked", "quorum", "least"),
    [(4, 0.5, 2), (5, 0.5, 3), (3, 1.0, 3), (10, 0.3, 3), (7, 0.01, 1), (1, 1, 1)],
)
def test_a_quorum_is_a_share_of_the_asked_rounded_up(asked: int, quorum: float, least: int) -> None:
    def answers(count: int) -> Answers[int]:
        return Answers({str(i): i for i in range(count)}, {str(i): "no" for i in range(count, asked)})

    need_quorum(answers(least), asked, quorum)
    with pytest.raises(QuorumError):
        need_quorum(answers(least - 1), asked, quorum)


def of_another_round(update: Update) -> Update:
    return replace(update, round=5)


def of_another_space(update: Update) -> Update:
    return replace(update, mean=np.zeros(3))


@pytest.mark.parametrize("change", [of_another_round, of_another_space])
async def test_an_update_that_cannot_be_merged_is_left_out_and_named(
    change: Callable[[Update], Update],
) -> None:
    clients = await make_altered(4)
    clients[2].change = change
    done = await play(clients)
    assert list(done.missing) == ["client2"]
    others = await make_clients(4)
    assert done.state == (await play([others[0], others[1], others[3]])).state


async def test_updates_that_cannot_be_merged_do_not_count_for_the_quorum() -> None:
    clients = await make_altered(3)
    for client in clients:
        client.change = of_another_round
    with pytest.raises(QuorumError):
        await play(clients, Rules(quorum=0.5))


async def test_a_defect_is_raised_and_not_taken_for_a_failing_client() -> None:
    clients = await make_clients(2)

    async def question(client: Client) -> int:
        return 1 // clients.index(client)

    with pytest.raises(ZeroDivisionError):
        await ask_all(clients, question)


@pytest.mark.parametrize("ending", [BudgetSpent("tokens"), Stopped()])
async def test_a_question_that_a_budget_or_the_user_ends_is_over_when_all_clients_are(
    ending: Exception,
) -> None:
    clients = await make_clients(3)
    ended: list[str] = []

    async def question(client: Client) -> None:
        if client is clients[0]:
            raise ending
        for _ in range(5):
            await asyncio.sleep(0)
        ended.append(client.name)

    with pytest.raises(type(ending)):
        await ask_all(clients, question)
    assert ended == ["client1", "client2"]


async def test_a_clients_own_budget_is_an_answer_and_ends_all_only_where_it_breaks_the_quorum() -> None:
    clients = await make_clients(4)

    async def question(client: Client) -> str:
        if client is clients[1]:
            raise BudgetSpent("tokens", own=True)
        if client is clients[2]:
            raise BackendError("out of memory", "buy some")
        return client.name

    answers = await ask_all(clients, question)
    assert answers.missing["client1"] == "its own budget of tokens is spent"
    assert answers.spent == {"client1"}
    need_quorum(answers, 4, 0.5)
    with pytest.raises(BudgetSpent, match="client1"):
        need_quorum(answers, 4, 0.75)
    with pytest.raises(QuorumError, match="out of memory"):
        need_quorum(answers, 4, 1.0)  # client2 failed: with all budgets it would have ended too


async def test_failures_are_answers_too() -> None:
    clients = await make_clients(3)

    async def question(client: Client) -> str:
        if client is clients[1]:
            raise BackendError("out of memory", "buy some")
        return client.name.upper()

    answers = await ask_all(clients, question)
    assert answers.got == {"client0": "CLIENT0", "client2": "CLIENT2"}
    assert answers.missing == {"client1": "out of memory"}


# Budgets -------------------------------------------------------------------------------------


async def test_each_client_s_budget_ends_its_own_search_only() -> None:
    clients = await make_clients(2)
    poor = await make_client("poor", key=7, limits=Limits(scored=84))
    done = await play([*clients, poor], plan=replace(PLAN, iterations=6))
    assert done.spent
    assert [done.searched[name].spent for name in ("client0", "client1", "poor")] == [False, False, True]
    assert poor.scorer.budget.spent.scored <= 84
    assert len(done.searched["client0"].update.step_sizes) == 6
    assert len(done.searched["poor"].update.step_sizes) < 6
    assert done.missing == {}


@pytest.mark.parametrize("limit", [11, 12, 24])
async def test_budgets_that_end_in_the_first_generation_end_the_round_without_an_error(limit: int) -> None:
    """11 are not enough for one prompt, 12 and 24 for less than half a generation of 6."""
    clients = [await make_client(f"client{key}", key=key, limits=Limits(scored=limit)) for key in range(3)]
    done = await play(clients, plan=replace(PLAN, population=6))
    assert done.spent
    assert done.missing == {}
    assert all(client.scorer.budget.spent.scored <= limit for client in clients)


# Order, sampling and size --------------------------------------------------------------------


@pytest.mark.parametrize("aggregator", [FedBPT(), FedBPT("reference"), FedAvg()])
async def test_the_order_of_arrival_and_of_asking_does_not_matter(aggregator: Aggregator) -> None:
    states: list[GlobalState] = []
    for order in permutations(range(3)):
        ARRIVED.clear()
        clients = await arriving(order)
        done = await play([clients[i] for i in reversed(order)], aggregator=aggregator)
        assert [f"client{i}" for i in order] == ARRIVED
        assert list(done.searched) == ["client0", "client1", "client2"]
        states.append(done.state)
    assert all(state == states[0] for state in states)
    assert states[0].mean.tobytes() == states[-1].mean.tobytes()


async def test_rounds_in_a_row_do_not_depend_on_who_is_slow() -> None:
    async def two_rounds(turns: list[tuple[int, ...]]) -> GlobalState:
        clients = await make_clients(3, [ToyBackend(turns=t) for t in turns])
        state = (await play(clients)).state
        return (await play(clients, state=state)).state

    assert await two_rounds([(), (), ()]) == await two_rounds([(9,) * 40, (0, 5) * 20, (3, 0, 1) * 10])


class Named(Client):
    """A client that only has a name."""

    def __init__(self, name: str) -> None:
        self.name = name


@given(st.integers(1, 12), st.floats(0.01, 1.0), st.integers(0, 2**31), st.integers(0, 50))
def test_a_share_of_the_clients_is_asked_the_same_ones_for_the_same_seed_and_round(
    count: int, share: float, seed: int, number: int
) -> None:
    clients: list[Client] = [Named(str(i)) for i in range(count)]
    asked = sample(clients, share, seed, number)
    assert asked == sample(list(clients), share, seed, number)
    assert len(asked) == len(set(asked)) >= 1
    assert abs(len(asked) - share * count) <= 0.5 or len(asked) == 1
    assert [clients.index(client) for client in asked] == sorted(clients.index(client) for client in asked)


@pytest.mark.parametrize("share", [0.1, 0.34, 0.5, 0.9])
def test_over_the_rounds_everybody_is_asked(share: float) -> None:
    clients: list[Client] = [Named(str(i)) for i in range(8)]
    rounds = [tuple(client.name for client in sample(clients, share, 3, number)) for number in range(60)]
    assert {name for names in rounds for name in names} == {client.name for client in clients}
    assert len(set(rounds)) > 1
    assert rounds != [tuple(c.name for c in sample(clients, share, 4, number)) for number in range(60)]


def test_with_full_participation_all_are_asked() -> None:
    clients: list[Client] = [Named(str(i)) for i in range(5)]
    assert sample(clients, 1.0, 0, 3) == clients


async def test_the_bytes_of_a_round_are_counted_and_small() -> None:
    done = await play(await make_clients(3))
    assert 0 < done.bytes_up <= 4096
    assert 0 < done.bytes_down <= 4096
    wide = GlobalState.first(np.zeros(500), 1.0)
    done = await play([await make_client(train=2)], state=wide, plan=replace(PLAN, iterations=1))
    assert 2000 < done.bytes_up <= 4096
    assert 2000 < done.bytes_down <= 4096
