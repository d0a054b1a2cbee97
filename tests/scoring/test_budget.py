"""Budgets: what is set aside and spent never passes a limit, anywhere in the tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.budget import Budget, BudgetSpent, Limits

limits = st.builds(
    Limits,
    scored=st.none() | st.integers(0, 60),
    tokens=st.none() | st.integers(0, 900),
)
works = st.builds(Usage, scored=st.integers(0, 12), prompt_tokens=st.integers(0, 200))
# (client, work to set aside or None, how much of it is answered, which reservation is settled)
steps = st.lists(
    st.tuples(st.integers(0, 2), st.none() | works, st.floats(0, 1), st.integers(0)), max_size=60
)


def share(work: Usage, part: float) -> Usage:
    return Usage(int(part * work.scored), int(part * work.prompt_tokens))


@given(limits, st.lists(limits, min_size=3, max_size=3), steps)
def test_whatever_the_order_of_reserving_and_settling_no_limit_is_passed(
    run_limits: Limits, client_limits: list[Limits], todo: list[tuple[int, Usage | None, float, int]]
) -> None:
    run = Budget(run_limits)
    clients = [Budget(own, run) for own in client_limits]
    open_: list[list[Usage]] = [[], [], []]
    paid = [Usage(), Usage(), Usage()]
    for client, work, part, which in todo:
        if work is not None:
            before = run.left(), clients[client].left()
            try:
                clients[client].reserve(work)
            except BudgetSpent:
                assert (run.left(), clients[client].left()) == before
            else:
                open_[client].append(work)
        elif open_[client]:
            work = open_[client].pop(which % len(open_[client]))
            paid[client] = paid[client] + share(work, part)
            clients[client].settle(work, share(work, part))
        for budget, spent, held in [
            (run, sum(paid, Usage()), sum((w for ws in open_ for w in ws), Usage())),
            *((c, p, sum(ws, Usage())) for c, p, ws in zip(clients, paid, open_, strict=True)),
        ]:
            assert budget.spent == spent
            both = spent + held
            assert budget.limits.scored is None or both.scored <= budget.limits.scored
            assert budget.limits.tokens is None or both.prompt_tokens <= budget.limits.tokens
        rooms = [
            b.limits.scored - b.spent.scored - sum(w.scored for w in held)
            for b, held in [(run, [w for ws in open_ for w in ws]), (clients[client], open_[client])]
            if b.limits.scored is not None
        ]
        assert clients[client].left() == (min(rooms) if rooms else None)


@given(works)
def test_what_fits_exactly_is_let_through_and_one_more_is_not(work: Usage) -> None:
    budget = Budget(Limits(work.scored, work.prompt_tokens))
    budget.reserve(work)
    with pytest.raises(BudgetSpent) as caught:
        budget.reserve(Usage(scored=1))
    assert caught.value.cap == "scored examples"
    with pytest.raises(BudgetSpent) as caught:
        budget.reserve(Usage(prompt_tokens=1))
    assert caught.value.cap == "tokens"
    budget.settle(work, Usage())
    budget.reserve(work)


def test_a_refusal_by_the_run_leaves_nothing_set_aside_at_the_client() -> None:
    run = Budget(Limits(scored=10))
    client, other = Budget(Limits(scored=20), run), Budget(parent=run)
    other.reserve(Usage(scored=8))
    with pytest.raises(BudgetSpent):
        client.reserve(Usage(scored=3))
    other.settle(Usage(scored=8), Usage(scored=1))
    assert client.left() == 9
    client.reserve(Usage(scored=9))
    assert (client.left(), other.left(), run.left()) == (0, 0, 0)


def test_time_ends_work_at_its_limit_and_runs_only_once_it_is_started() -> None:
    now = 100.0
    run = Budget(Limits(seconds=5.0), clock=lambda: now)
    client = Budget(parent=run, clock=lambda: now)
    now = 200.0
    client.reserve(Usage(scored=1))
    assert run.seconds == 0.0
    run.start()
    now = 204.5
    client.reserve(Usage(scored=1))
    now = 205.0
    with pytest.raises(BudgetSpent) as caught:
        client.reserve(Usage(scored=1))
    assert caught.value.cap == "seconds"
    assert run.seconds == 5.0


def test_the_share_used_is_that_of_the_scarcest_limit() -> None:
    now = 0.0
    budget = Budget(Limits(scored=100, tokens=1000, seconds=10.0), clock=lambda: now)
    budget.start()
    assert budget.used() == 0.0
    assert budget.used(more=25) == 0.25  # nothing is known of tokens yet
    work = Usage(scored=10, prompt_tokens=200)
    budget.reserve(work)
    budget.settle(work, work)
    assert budget.used() == pytest.approx(0.2)  # of the tokens
    assert budget.used(more=30) == pytest.approx(0.8)
    now = 9.0
    assert budget.used() == pytest.approx(0.9)
    assert Budget().used(more=10**6) == 0.0


def test_duplicates_are_counted_up_to_the_run() -> None:
    run = Budget()
    clients = [Budget(parent=run), Budget(parent=run)]
    clients[0].count_duplicates(3)
    clients[1].count_duplicates(4)
    assert (clients[0].duplicates, clients[1].duplicates, run.duplicates) == (3, 4, 7)
    assert run.left() is None
    assert run.spent == Usage()
