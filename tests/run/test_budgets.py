"""Budgets of whole runs: never exceeded, wherever they end, and the run ends well."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedbpt_api.api import run_sync
from fedbpt_api.errors import FedbptError
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run import opening as opening_module
from fedbpt_api.run.events import Event, RoundDone
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.budget import Budget
from toy import ALIKE, PROMPT, Toys, make_task
from toy_runs import (
    after_round,
    installed_toys,
    make_settings,
    run_toy,
    scored,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    limit=st.integers(1, 400),
    tokens=st.none() | st.integers(50, 8000),
    own=st.none() | st.integers(1, 150),
    kind=st.sampled_from(["words", "bias", "weighted"]),
    popsize=st.integers(3, 7),
    alike=st.booleans(),
)
def test_no_budget_is_ever_exceeded(
    limit: int, tokens: int | None, own: int | None, kind: str, popsize: int, alike: bool
) -> None:
    task = make_task(2, train=5, dev=3, test=2)
    task = replace(task, label_words=ALIKE) if alike else task
    changes: dict[str, object] = {
        "budget": {"scored": limit, "tokens": tokens},
        "clients.0.budget": {"scored": own},
        "verbalizer.kind": kind,
        "search.popsize": popsize,
        "search.rounds": 4,
    }
    if own is None:
        del changes["clients.0.budget"]
    with installed_toys() as toys:
        tuner = Tuner(make_settings(task, changes), task)
        try:
            result = run_sync(tuner.run)
        except FedbptError as error:  # not even the starting prompt fits
            assert error.message and error.hint
            assert "budget" in str(error)
            spent = tuner.status.scored
            assert spent < 26 + 16 * alike or own is not None or tokens is not None
            assert toys["toy"].scored <= spent <= limit
            return
        assert result.stopped in ("budget", "rounds")
        assert result.rounds or result.prompt == PROMPT
        assert scored(result) <= limit
        assert own is None or result.spent["client0"]["scored"] <= own
        used = sum(counts["prompt_tokens"] for counts in result.spent.values())
        assert tokens is None or used <= tokens
        lists = (
            1 if own is not None and own < 5 else 2
        )  # of 5 texts; the first client may have no budget for it
        asked_lists = 5 * lists if kind == "weighted" else 0
        tested = sum(counts.get("test_scored", 0) for counts in result.spent.values())
        assert toys["toy"].scored == scored(result) + tested - asked_lists
        assert result.test is not None


@pytest.mark.parametrize("limit", [1, 35, 36, 60, 95])
async def test_a_budget_too_small_for_the_starting_prompt_is_a_clear_error(
    toys: Toys, tmp_path: Path, limit: int
) -> None:
    with pytest.raises(FedbptError, match="budget") as raised:
        await run_toy(make_task(), {"budget.scored": limit}, tmp_path / "run")
    assert raised.value.hint
    assert toys["toy"].closed == 1


async def test_a_budget_for_the_first_of_two_starting_prompts_gives_that_prompt(
    toys: Toys, tmp_path: Path
) -> None:
    for compare in ("start", "all"):
        folder = tmp_path / compare
        result = await run_toy(make_task(), {"budget.scored": 100, "test.compare": compare}, folder)
        assert (result.prompt, result.stopped) == (PROMPT, "budget")
        assert scored(result) == 96  # 36 for the word list, 60 for the prompt
        assert [record.round for record in result.rounds] == [0] and result.rounds[0].scored == 96
        assert TunedPrompt.load(folder).text == PROMPT
        assert result.test is not None


async def test_the_budget_ends_the_run_and_the_test_is_counted_apart(toys: Toys) -> None:
    result = await run_toy(make_task(), {"budget.scored": 700, "search.rounds": 50})
    assert result.stopped == "budget"
    assert 600 < scored(result) <= 700
    assert sum(counts["test_scored"] for counts in result.spent.values()) > 0
    assert result.test is not None


@pytest.mark.parametrize("limit", range(300, 400, 20))
async def test_a_budget_that_ends_anywhere_in_a_round_ends_the_run_well(toys: Toys, limit: int) -> None:
    changes: dict[str, object] = {"budget.scored": limit, "search.popsize": 6, "search.rounds": 50}
    result = await run_toy(make_task(), changes)
    assert result.stopped == "budget" and result.test is not None


async def test_a_client_whose_own_budget_ends_is_named_and_the_others_go_on(toys: Toys) -> None:
    task = make_task(3, train=8, dev=4, test=4)
    changes: dict[str, object] = {"clients.1.budget": {"scored": 60}, "search.rounds": 4}
    result = await run_toy(task, changes | {"federation.quorum": 0.5})
    assert result.stopped == "rounds" and [record.round for record in result.rounds] == [0, 1, 2, 3, 4]
    last = {client.client: client for client in result.rounds[-1].clients}
    assert last["client1"].note == "its own budget of scored examples is spent"
    assert not last["client1"].answered and last["client0"].answered and last["client2"].answered
    assert result.spent["client1"]["scored"] <= 60 < result.spent["client0"]["scored"]
    assert result.test is not None


async def test_a_run_whose_clients_budgets_end_has_spent_its_budget(toys: Toys) -> None:
    task = make_task(2, train=8, dev=4, test=4)
    own: dict[str, object] = {f"clients.{i}.budget": {"scored": 90} for i in range(2)}
    result = await run_toy(task, own | {"search.rounds": 50})
    assert result.stopped == "budget" and result.test is not None
    assert all(counts["scored"] <= 90 for counts in result.spent.values())


async def test_tokens_end_the_run_too(toys: Toys) -> None:
    result = await run_toy(make_task(), {"budget": {"tokens": 12_000}, "search.rounds": 50})
    assert result.stopped == "budget"
    used = sum(counts["prompt_tokens"] for counts in result.spent.values())
    assert 10_000 < used <= 12_000


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def jump(self) -> None:
        self.now += 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all budgets of a run."""
    clock = Clock()
    monkeypatch.setattr(opening_module, "Budget", partial(Budget, clock=clock))
    return clock


async def test_seconds_end_the_run_too_and_the_test_is_still_made(toys: Toys, clock: Clock) -> None:
    task = make_task()
    checked = make_settings(task, {"budget": {"seconds": 900.0}, "search.rounds": 50})
    tuner = Tuner(checked, task, None, after_round(2, clock.jump))
    result = await tuner.run()
    assert result.stopped == "budget"
    assert 2 <= len(result.rounds) - 1 <= 3
    assert result.test is not None


async def test_a_client_s_own_seconds_are_kept_to(toys: Toys, clock: Clock) -> None:
    task = make_task()
    changes: dict[str, object] = {"clients.1.budget": {"seconds": 900.0}, "search.rounds": 6}
    tuner = Tuner(make_settings(task, changes), task, None, after_round(2, clock.jump))
    result = await tuner.run()
    late = [client for record in result.rounds[3:] for client in record.clients if client.client == "client1"]
    assert sum(client.scored for client in late) == 0


async def test_a_search_that_has_nothing_new_to_ask_comes_to_an_end(toys: Toys) -> None:
    """With a tiny step every candidate is the same prompt, and nothing is spent any more."""
    task = make_task()
    changes: dict[str, object] = {"search.sigma": 1e-9, "search.form": "words", "search.rounds": None}
    rounds: list[int] = []

    class Endless(Exception):
        pass

    def listen(event: Event) -> None:
        if isinstance(event, RoundDone):
            rounds.append(event.record.round)
            if len(rounds) > 100:
                raise Endless

    result = await Tuner(make_settings(task, changes), task, None, listen).run()
    assert result.stopped != "rounds"
