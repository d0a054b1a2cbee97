"""Prompts with made-up examples: as many as the budget allows, beside whole rounds of the search."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest

from fedbpt_api.run.draws import MADE_UP
from fedbpt_api.run.estimate import estimate
from fedbpt_api.run.estimate_view import plain_estimate
from fedbpt_api.run.events import Assessed, Event, RoundDone
from fedbpt_api.run.replay import replay
from toy import Toys, make_task
from toy_runs import Values, make_settings, run_toy, scored

COST = 60  # examples that judging a prompt takes: three clients with 12 training and 8 development texts each
LIMIT = 2500
WHOLE: Values = {
    "search.form": "auto", "search.choice": "committee", "search.ensemble": 3, "search.opening": 0.75,
    "search.rounds": None, "budget": {"scored": LIMIT},
}  # fmt: skip


def origins(events: list[Event]) -> list[str]:
    return [event.origin for event in events if isinstance(event, Assessed) and event.origin != "ensemble"]


def many(popsize: int, iterations: int) -> Values:
    """Candidates of a search: each takes the 36 training texts, and so does their mean."""
    return WHOLE | {"search.popsize": popsize, "search.iterations": iterations}


@pytest.mark.parametrize(("popsize", "iterations", "rounds"), [(4, 1, True), (8, 1, True), (16, 3, False)])
async def test_what_is_left_after_whole_rounds_goes_on_more_draws(
    toys: Toys, tmp_path: Path, popsize: int, iterations: int, rounds: bool
) -> None:
    events: list[Event] = []
    result = await run_toy(make_task(), many(popsize, iterations), tmp_path / "run", events)
    told = origins(events)
    assert ("merged mean" in told) is rounds
    assert told[-1] == MADE_UP
    assert result.stopped == "budget" and LIMIT - COST < scored(result) <= LIMIT
    assert sum(record.scored for record in result.rounds) == scored(result)
    assert all(client.answered for record in result.rounds for client in record.clients)
    assert (await replay(tmp_path / "run", make_task())).differences == ()


async def test_no_round_is_begun_whose_prompts_could_not_be_judged(toys: Toys) -> None:
    events: list[Event] = []
    result = await run_toy(make_task(), many(8, 1), events=events)
    merged = [event for event in events if isinstance(event, Assessed) and event.origin == "merged mean"]
    searches = [r for r in result.rounds if any(not math.isnan(client.loss) for client in r.clients)]
    assert len(merged) == len(searches) > 0


async def test_only_those_who_are_asked_have_to_fit(toys: Toys) -> None:
    """A round of all three clients would not fit; one of a third of them does."""
    searched = []
    for share in (1.0, 0.3):
        events: list[Event] = []
        await run_toy(make_task(), many(8, 3) | {"federation.participation": share}, events=events)
        searched.append("merged mean" in origins(events))
    assert searched == [False, True]


async def test_draws_are_the_same_whenever_they_are_made(toys: Toys) -> None:
    """A search in between, or none, changes neither which prompts are drawn nor their order."""
    drawn = []
    for changes in (many(4, 1), many(16, 3), many(4, 1) | {"search.opening": 1.0}):
        events: list[Event] = []
        await run_toy(make_task(), changes, events=events)
        drawn.append([e.prompt for e in events if isinstance(e, Assessed) and e.origin == MADE_UP])
    for shorter, longer in pairwise(sorted(drawn, key=len)):
        assert longer[: len(shorter)] == shorter
    assert len({len(prompts) for prompts in drawn}) > 1


async def test_draws_after_the_rounds_are_judged_in_full(toys: Toys) -> None:
    """They were not searched for: no race by training texts, and their losses count as they are."""
    events: list[Event] = []
    await run_toy(make_task(), many(4, 1), events=events)
    told = [event for event in events if isinstance(event, Assessed)]
    last = max(place for place, event in enumerate(told) if event.origin in ("merged mean", "best candidate"))
    late = [event for event in told[last:] if event.origin == MADE_UP]
    assert late and all(math.isfinite(event.loss) and math.isfinite(event.dev_loss) for event in late)
    centre = min(event.train_loss for event in told[:last] if event.origin == MADE_UP)
    assert any(event.train_loss > centre for event in late)
    for event in late:
        assert event.loss == pytest.approx((36 * event.train_loss + 24 * event.dev_loss) / 60)


async def test_words_alone_take_the_budget_as_before(toys: Toys) -> None:
    """Without examples there is nothing else to spend it on: the last round may end within."""
    events: list[Event] = []
    result = await run_toy(make_task(), many(16, 3) | {"search.form": "words"}, events=events)
    assert MADE_UP not in origins(events)
    assert result.stopped == "budget" and [e for e in events if isinstance(e, RoundDone)]


async def test_rounds_that_were_asked_for_end_the_search(toys: Toys) -> None:
    events: list[Event] = []
    result = await run_toy(make_task(), many(4, 1) | {"search.rounds": 1}, events=events)
    assert result.stopped == "rounds" and origins(events).count("merged mean") == 1
    assert scored(result) < LIMIT - COST


async def test_rounds_that_find_nothing_new_make_room_for_draws(toys: Toys) -> None:
    events: list[Event] = []
    few = many(4, 1) | {"search.opening": 0.5, "search.draws": 20, "search.sigma": 0.01}
    result = await run_toy(make_task(), few, events=events)
    told = origins(events)
    assert told[-1] == MADE_UP and told.count(MADE_UP) > 10
    assert result.stopped == "cap" and scored(result) < LIMIT - COST


async def test_a_search_of_which_no_gain_is_expected_ends_before_its_budget(
    toys: Toys, tmp_path: Path
) -> None:
    events: list[Event] = []
    whole = await run_toy(make_task(), WHOLE, events=events)
    judged = [event for event in events if isinstance(event, Assessed)]
    early = await run_toy(make_task(), WHOLE | {"search.min_gain": 5.0}, tmp_path / "run")
    assert (whole.stopped, early.stopped) == ("budget", "settled")
    assert 0 < scored(early) < scored(whole) / 2
    assert early.test is not None and len(early.rounds) == 2  # the starting prompts, and the choice
    first = [json.loads(line) for line in (tmp_path / "run" / "prompts.jsonl").read_text().splitlines()]
    assert len([line for line in first if line["origin"] != "ensemble"]) == 8  # the fewest
    assert [line["prompt"] for line in first[:8]] == [event.prompt for event in judged[:8]]
    assert (await replay(tmp_path / "run", make_task())).differences == ()


@pytest.mark.parametrize("changes", [{"search.choice": "held-out"}, {"search.algorithm": "random"}])
async def test_an_early_end_is_for_committees_of_the_rounds_alone(toys: Toys, changes: Values) -> None:
    result = await run_toy(make_task(), WHOLE | {"search.min_gain": 5.0} | changes)
    assert result.stopped == "budget"


async def test_a_search_that_is_expected_to_gain_goes_on(toys: Toys) -> None:
    whole = await run_toy(make_task(), WHOLE)
    same = await run_toy(make_task(), WHOLE | {"search.min_gain": 1e-12})
    assert same.stopped == "budget" and scored(same) == scored(whole)


async def test_an_estimate_does_not_count_on_an_early_end(toys: Toys) -> None:
    task = make_task()
    early, plain = [
        await estimate(make_settings(task, WHOLE | {"search.min_gain": least}), task, probes=0)
        for least in (5.0, 0.0)
    ]
    assert plain_estimate(early) == plain_estimate(plain)


async def test_an_early_end_comes_after_the_rounds_too(toys: Toys) -> None:
    plain, settled = [
        await run_toy(make_task(), many(4, 1) | {"search.opening": 0.5, "search.min_gain": least})
        for least in (0.0, 5.0)
    ]
    assert (plain.stopped, settled.stopped) == ("budget", "settled")
    assert scored(settled) < scored(plain)
