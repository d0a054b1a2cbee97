"""Whole runs on the toy model: what comes out of them, and that it is the best that was found."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fedbpt_api.errors import ConfigError
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.events import Assessed, Event, Finished, RoundDone, Started, Testing, Warned
from fedbpt_api.run.folder import read_result
from fedbpt_api.run.result import ALL_CLIENTS
from fedbpt_api.run.tune import Tuner
from fedbpt_api.task import Example
from toy import PROMPT, Toys, make_examples, make_task
from toy_runs import (
    contains,
    make_settings,
    run_toy,
    scored,
)


async def test_a_run_in_memory_tells_its_events_in_order_and_adds_up(toys: Toys) -> None:
    task = make_task()
    events: list[Event] = []
    result = await run_toy(task, events=events)

    assert result.stopped == "rounds" and result.folder is None
    kinds = [type(event) for event in events]
    assert kinds[0] is Started and kinds[-1] is Finished and kinds[-2] is Testing
    assert [e.record.round for e in events if isinstance(e, RoundDone)] == [0, 1, 2]
    assert kinds.index(RoundDone) > kinds.index(Assessed)
    assert events[-1] == Finished(result)
    assert [e.prompt for e in events if isinstance(e, Assessed)][:2] == [PROMPT, ""]
    started = events[0]
    assert isinstance(started, Started)
    assert started.texts == {"client0": (12, 8), "client1": (12, 8), "client2": (12, 8)}

    assert [record.round for record in result.rounds] == [0, 1, 2]
    assert sum(record.scored for record in result.rounds) == scored(result)
    for name, counts in result.spent.items():
        rows = [c for record in result.rounds for c in record.clients if c.client == name]
        assert sum(row.scored for row in rows) == counts["scored"]
    tokens = sum(counts["prompt_tokens"] for counts in result.spent.values())
    assert sum(record.tokens for record in result.rounds) == tokens
    for record in result.rounds[1:]:
        assert all(client.answered and not client.note for client in record.clients)
        assert all(0 < client.bytes_up <= 4096 for client in record.clients)
        assert record.bytes_up == sum(client.bytes_up for client in record.clients)
    toy = toys["toy"]
    tested = sum(counts["test_scored"] for counts in result.spent.values())
    assert toy.scored == scored(result) + tested - 36  # 36 were asked for the word list
    assert max(toy.answered.values()) == 1  # nothing was paid for twice
    assert toy.closed == 1


async def test_the_test_compares_four_ways_and_the_majority_on_every_client(toys: Toys) -> None:
    task = make_task()
    report = (await run_toy(task)).test
    assert report is not None
    methods = ["start", "start+bias", "start+weighted", "start+weighted+dev", "tuned"]
    by = {(row.method, row.client): row for row in report.rows}
    for client, n in ((ALL_CLIENTS, 30), ("client0", 10), ("client1", 10), ("client2", 10)):
        assert all(by[method, client].n == n for method in (*methods, "majority"))
    train = [str(row.label) for client in task.clients for row in client.train]
    common = max(sorted(set(train)), key=lambda label: train.count(label))
    test = [row.label for client in task.clients for row in client.test]
    assert by["majority", ALL_CLIENTS].correct == test.count(common)
    assert {pair.against for pair in report.paired} >= {"start+bias", "start+weighted"}


async def test_tuning_makes_the_toy_better_than_the_start_and_beats_every_starting_prompt(toys: Toys) -> None:
    for seed in range(3):
        events: list[Event] = []
        changes: dict[str, object] = {"seed": seed, "search.rounds": 3, "search.popsize": 6}
        result = await run_toy(make_task(seed=seed), changes, events=events)
        judged = [event for event in events if isinstance(event, Assessed)]
        starts = [event for event in judged if event.origin == "start"]
        (chosen,) = [event for event in judged if event.prompt == result.prompt]
        assert [event.prompt for event in starts] == [PROMPT, ""]
        assert chosen.loss == min(event.loss for event in judged)
        assert chosen.loss < min(event.loss for event in starts)
        best = [record.best_dev_loss for record in result.rounds]
        assert best[-1] < best[0]


async def test_a_starting_prompt_that_nothing_beats_is_the_result(toys: Toys) -> None:
    # One round around a prompt full of praise, with next to no step: all that is tried is worse.
    changes: dict[str, object] = {
        "prompts": ["Is the mood good or bad?\n", " neutral enough eat eat being being\n"],
        "search.sigma": 1e-6,
        "search.rounds": 1,
        "search.form": "words",
    }
    events: list[Event] = []
    result = await run_toy(make_task(), changes, events=events)
    judged = [event for event in events if isinstance(event, Assessed)]
    assert len(judged) == 2
    assert result.prompt == min(judged, key=lambda event: event.loss).prompt


@pytest.mark.parametrize("kind", ["words", "bias", "weighted"])
async def test_every_kind_of_verbalizer(toys: Toys, tmp_path: Path, kind: str) -> None:
    result = await run_toy(make_task(), {"verbalizer.kind": kind}, tmp_path / "run")
    prompt = TunedPrompt.load(tmp_path / "run")
    allowed = ["words", "bias", "weighted"][: ["words", "bias", "weighted"].index(kind) + 1]
    assert prompt.verbalizer.kind in allowed
    assert len(prompt.word_texts) == (12 if kind == "weighted" else 2)
    assert prompt.word_texts[:2] == (" negative", " positive")
    assert result.test is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"federation.aggregator": "fedavg"},
        {"federation.sigma_rule": "reference"},
        {"search.perturb": 0.2},
        {"search.minibatch": 4},
        {"search.loss": "hinge"},
        {"search.loss": "accuracy"},
        {"search.form": "demonstrations", "budget.scored": 4000},
        {"search.form": "auto", "budget.scored": 4000},
        {"search.proposals": 3},
        {"test.compare": "all"},
        {"prompt_place": "after", "template": "Text: {text}\nMood:"},
    ],
    ids=str,
)
async def test_every_way_of_searching_runs_to_its_end(
    toys: Toys, tmp_path: Path, changes: dict[str, object]
) -> None:
    task = make_task()
    if "prompt_place" in changes:
        task = replace(task, template=task.template.parse("Text: {text}\nMood:", "after"))
    result = await run_toy(task, changes, tmp_path / "run")
    assert result.stopped == "rounds"
    assert [record.round for record in result.rounds] == [0, 1, 2]
    assert all(math.isfinite(record.best_dev_loss) for record in result.rounds)
    assert read_result(tmp_path / "run").to_dict() == result.to_dict()
    assert TunedPrompt.load(tmp_path / "run").text == result.prompt


async def test_the_aggregators_go_different_ways(toys: Toys) -> None:
    task = make_task()
    sigmas = [
        [r.sigma for r in (await run_toy(task, {f"federation.{key}": value, "search.iterations": 2})).rounds]
        for key, value in (("aggregator", "fedbpt"), ("aggregator", "fedavg"), ("sigma_rule", "reference"))
    ]
    assert sigmas[0] != sigmas[1] and sigmas[0] != sigmas[2]


@pytest.mark.parametrize("clients", [1, 2, 9])
async def test_any_number_of_clients(toys: Toys, clients: int) -> None:
    task = make_task(clients, train=6, dev=3, test=4)
    result = await run_toy(task, {"search.rounds": 2})
    assert result.stopped == "rounds"
    assert all(len(record.clients) == clients for record in result.rounds)
    assert result.test is not None and result.test.rows[0].n == 4 * clients


async def test_with_less_than_full_participation_some_are_not_asked_and_nobody_is_blamed(toys: Toys) -> None:
    changes: dict[str, object] = {"federation.participation": 0.5, "search.rounds": 4}
    result = await run_toy(make_task(4, train=6, dev=4), changes)
    for record in result.rounds[1:]:
        asked = [client for client in record.clients if client.answered]
        assert len(asked) == 2
        assert all(client.bytes_up for client in asked)
        silent = [client for client in record.clients if not client.answered]
        assert all(c.bytes_up == 0 and math.isnan(c.loss) and c.note == "" for c in silent)
    groups = [[c.client for c in r.clients if c.answered] for r in result.rounds[1:]]
    assert len({tuple(group) for group in groups}) > 1


async def test_a_client_with_one_label_is_warned_about_and_takes_part(toys: Toys) -> None:
    task = make_task(3)
    happy = tuple(e for e in make_examples(60, 9, share=1.0) if e.label == "positive")[:12]
    task = replace(task, clients=(*task.clients[:2], replace(task.clients[2], train=happy)))
    events: list[Event] = []
    result = await run_toy(task, {"search.perturb": 0.3}, events=events)
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert any("client2" in message and "positive" in message for message in warnings)
    assert all(client.answered for record in result.rounds for client in record.clients)


async def test_clients_without_development_or_test_texts(toys: Toys, tmp_path: Path) -> None:
    task = make_task(2)
    bare = replace(task, clients=tuple(replace(c, dev=(), test=()) for c in task.clients))
    result = await run_toy(bare, folder=tmp_path / "run")
    assert result.test is None
    assert math.isnan(result.rounds[-1].best_dev_loss)
    assert "held_out_loss" in TunedPrompt.load(tmp_path / "run").scores
    half = replace(task, clients=(task.clients[0], replace(task.clients[1], test=())))
    report = (await run_toy(half)).test
    assert report is not None
    assert {row.client for row in report.rows} == {ALL_CLIENTS, "client0"}


async def test_test_texts_without_labels_are_refused_before_anything_is_scored(toys: Toys) -> None:
    task = make_task(2)
    unlabelled = (Example("the good boy"), *task.clients[1].test)
    task = replace(task, clients=(task.clients[0], replace(task.clients[1], test=unlabelled)))
    with pytest.raises(ConfigError, match="label"):
        await run_toy(task)
    assert toys["toy"].requests == 0


async def test_test_texts_are_asked_once_and_only_at_the_end(toys: Toys) -> None:
    task = make_task()
    toy = toys["toy"]
    tokens = [await toy.tokenize(f" {row.text}") for client in task.clients for row in client.test]
    before: list[bool] = []

    def asked() -> bool:
        return any(contains(ids, text) for ids, _ in toy.answered for text in tokens)

    def listen(event: Event) -> None:
        if isinstance(event, Testing):
            before.append(asked())

    await Tuner(make_settings(task), task, None, listen).run()
    assert before == [False]
    assert asked()
