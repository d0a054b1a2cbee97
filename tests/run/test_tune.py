"""Whole runs on the toy model: what comes out, what it costs, how it ends, and what is on disk then."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_runs import installed_toys, make_settings, make_values, texts_of, without_times

from fedbpt_api.api import run_sync, tune
from fedbpt_api.errors import BackendError, ConfigError, FedbptError, QuorumError, RunFolderError
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run import parties as parties_module
from fedbpt_api.run.config import build_settings
from fedbpt_api.run.events import Assessed, Event, Finished, RoundDone, Started, Testing, Warned
from fedbpt_api.run.folder import read_result
from fedbpt_api.run.result import ALL_CLIENTS, RunResult
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.task import ClientData, Example, Task
from toy import PROMPT, ToyBackend, Toys, make_examples, make_task

FILES = {
    "settings.json",
    "versions.json",
    "rounds.jsonl",
    "prompts.jsonl",
    "prompt.json",
    "result.json",
    "report.html",
}


async def run(
    task: Task,
    changes: dict[str, object] | None = None,
    folder: Path | None = None,
    events: list[Event] | None = None,
) -> RunResult:
    """A run with the toy's settings and these changes."""
    listener = None if events is None else events.append
    return await Tuner(make_settings(task, changes), task, folder, listener).run()


def numbers(result: RunResult) -> list[dict[str, object]]:
    """The rounds without their times; NaN, which is unlike itself, is None."""
    return [replace(record, seconds=0.0).to_dict() for record in result.rounds]


def scored(result: RunResult) -> int:
    """Scored examples of all clients, without the test's."""
    return int(sum(counts["scored"] for counts in result.spent.values()))


def after_round(number: int, act: Callable[[], object]) -> Callable[[Event], None]:
    """A listener that acts when a round is done."""

    def listen(event: Event) -> None:
        if isinstance(event, RoundDone) and event.record.round == number:
            act()

    return listen


# What comes out ------------------------------------------------------------------------------


async def test_a_run_in_memory_tells_its_events_in_order_and_adds_up(toys: Toys) -> None:
    task = make_task()
    events: list[Event] = []
    result = await run(task, events=events)

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
    report = (await run(task)).test
    assert report is not None
    methods = ["start", "start+bias", "start+weighted", "tuned"]
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
        result = await run(make_task(seed=seed), changes, events=events)
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
    result = await run(make_task(), changes, events=events)
    judged = [event for event in events if isinstance(event, Assessed)]
    assert len(judged) == 2
    assert result.prompt == min(judged, key=lambda event: event.loss).prompt


@pytest.mark.parametrize("kind", ["words", "bias", "weighted"])
async def test_every_kind_of_verbalizer(toys: Toys, tmp_path: Path, kind: str) -> None:
    result = await run(make_task(), {"verbalizer.kind": kind}, tmp_path / "run")
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
        {"search.form": "demonstrations"},
        {"search.form": "auto"},
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
    result = await run(task, changes, tmp_path / "run")
    assert result.stopped == "rounds"
    assert [record.round for record in result.rounds] == [0, 1, 2]
    assert all(math.isfinite(record.best_dev_loss) for record in result.rounds)
    assert read_result(tmp_path / "run").to_dict() == result.to_dict()
    assert TunedPrompt.load(tmp_path / "run").text == result.prompt


async def test_the_aggregators_go_different_ways(toys: Toys) -> None:
    task = make_task()
    sigmas = [
        [r.sigma for r in (await run(task, {f"federation.{key}": value, "search.iterations": 2})).rounds]
        for key, value in (("aggregator", "fedbpt"), ("aggregator", "fedavg"), ("sigma_rule", "reference"))
    ]
    assert sigmas[0] != sigmas[1] and sigmas[0] != sigmas[2]


@pytest.mark.parametrize("clients", [1, 2, 9])
async def test_any_number_of_clients(toys: Toys, clients: int) -> None:
    task = make_task(clients, train=6, dev=3, test=4)
    result = await run(task, {"search.rounds": 2})
    assert result.stopped == "rounds"
    assert all(len(record.clients) == clients for record in result.rounds)
    assert result.test is not None and result.test.rows[0].n == 4 * clients


async def test_with_less_than_full_participation_some_are_not_asked_and_nobody_is_blamed(toys: Toys) -> None:
    changes: dict[str, object] = {"federation.participation": 0.5, "search.rounds": 4}
    result = await run(make_task(4, train=6, dev=4), changes)
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
    result = await run(task, {"search.perturb": 0.3}, events=events)
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert any("client2" in message and "positive" in message for message in warnings)
    assert all(client.answered for record in result.rounds for client in record.clients)


async def test_clients_without_development_or_test_texts(toys: Toys, tmp_path: Path) -> None:
    task = make_task(2)
    bare = replace(task, clients=tuple(replace(c, dev=(), test=()) for c in task.clients))
    result = await run(bare, folder=tmp_path / "run")
    assert result.test is None
    assert math.isnan(result.rounds[-1].best_dev_loss)
    assert "held_out_loss" in TunedPrompt.load(tmp_path / "run").scores
    half = replace(task, clients=(task.clients[0], replace(task.clients[1], test=())))
    report = (await run(half)).test
    assert report is not None
    assert {row.client for row in report.rows} == {ALL_CLIENTS, "client0"}


async def test_test_texts_without_labels_are_refused_before_anything_is_scored(toys: Toys) -> None:
    task = make_task(2)
    unlabelled = (Example("the good boy"), *task.clients[1].test)
    task = replace(task, clients=(task.clients[0], replace(task.clients[1], test=unlabelled)))
    with pytest.raises(ConfigError, match="label"):
        await run(task)
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


def contains(ids: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))


# On disk -------------------------------------------------------------------------------------


async def test_the_run_folder_holds_everything_and_reads_back(toys: Toys, tmp_path: Path) -> None:
    task = make_task()
    checked = make_settings(task)
    folder = tmp_path / "a" / "run"
    result = await Tuner(checked, task, folder).run()
    assert {path.name for path in folder.iterdir()} == FILES
    assert result.folder == str(folder)
    assert read_result(folder).to_dict() == result.to_dict()
    stored = orjson.loads((folder / "settings.json").read_bytes())
    assert build_settings(stored, files=False) == checked
    lines = (folder / "rounds.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line) for line in lines] == [record.to_dict() for record in result.rounds]
    prompt = TunedPrompt.load(folder)
    assert prompt.text == result.prompt
    assert prompt.ids == await toys["toy"].tokenize(prompt.text)
    assert prompt.model == {"kind": "toy", "name": "toy", "fingerprint": "toy-0"}
    assert prompt.space["codebook"]
    assert orjson.loads((folder / "versions.json").read_bytes())["model"] == "toy"
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert result.prompt.split()[-1] in report


async def test_no_text_of_the_data_is_anywhere_in_the_run_folder(toys: Toys, tmp_path: Path) -> None:
    task = make_task()
    await run(task, folder=tmp_path / "run")
    texts = texts_of(task.clients)
    assert len(texts) == 90
    for path in (tmp_path / "run").rglob("*"):
        content = path.read_bytes()
        assert not [text for text in texts if text.encode() in content], path.name
        for client in task.clients:
            labels = [("negative", "positive").index(str(row.label)) for row in client.train]
            assert ",".join(map(str, labels)).encode() not in b"".join(content.split()), path.name


async def test_the_same_seed_gives_the_same_files_but_for_times(toys: Toys, tmp_path: Path) -> None:
    task = make_task()
    contents = []
    for number in range(2):
        toys.opened.clear()
        changes: dict[str, object] = {"search.rounds": 3, "search.perturb": 0.1, "search.form": "auto"}
        await run(task, changes, tmp_path / "run")
        kept = tmp_path / str(number)
        shutil.move(tmp_path / "run", kept)
        contents.append({path.name: without_times(path) for path in kept.iterdir()})
    assert set(contents[0]) == FILES
    for name in FILES:
        assert contents[0][name] == contents[1][name], name


async def test_the_order_of_answers_changes_no_number(toys: Toys) -> None:
    results = []
    for turns in ((), (7, 0, 2) * 60, (0, 0, 9, 1) * 60):
        toys.opened["toy"] = ToyBackend(turns=turns)
        results.append(await run(make_task(), {"search.rounds": 3}))
    assert numbers(results[0]) == numbers(results[1]) == numbers(results[2])
    assert results[0].test == results[1].test == results[2].test


async def test_another_seed_gives_another_run(toys: Toys) -> None:
    first, second = [numbers(await run(make_task(), {"seed": seed})) for seed in (0, 1)]
    assert first != second


async def test_a_run_folder_is_never_overwritten(toys: Toys, tmp_path: Path) -> None:
    task = make_task(1, train=4, dev=2, test=0)
    await run(task, {"search.rounds": 1}, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunFolderError, match="holds a run already"):
        await run(task, folder=tmp_path / "run")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


async def test_two_runs_side_by_side_give_what_each_gives_alone(toys: Toys, tmp_path: Path) -> None:
    async def one(name: str, seed: int) -> RunResult:
        return await run(make_task(seed=seed), {"backend.name": name, "seed": seed}, tmp_path / name)

    # Their requests take turns, so that neither run gets far while the other waits.
    for name, turns in (("a", (1, 3, 0) * 60), ("b", (2, 0, 5) * 60), ("c", (1, 3, 0) * 60)):
        toys.opened[name] = ToyBackend(turns=turns)
    toys.opened["d"] = ToyBackend(turns=(2, 0, 5) * 60)
    state = np.random.get_state()
    both = await asyncio.gather(one("a", 1), one("b", 2))
    alone = [await one("c", 1), await one("d", 2)]
    for together, single in zip(both, alone, strict=True):
        assert numbers(together) == numbers(single)
        assert (together.prompt, together.spent, together.test) == (single.prompt, single.spent, single.test)
    after = np.random.get_state()
    assert isinstance(state, tuple) and isinstance(after, tuple)
    assert np.array_equal(state[1], after[1]) and state[2:] == after[2:]


# Budgets -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    limit=st.integers(1, 400),
    tokens=st.none() | st.integers(50, 8000),
    own=st.none() | st.integers(1, 150),
    kind=st.sampled_from(["words", "bias", "weighted"]),
    popsize=st.integers(3, 7),
)
def test_no_budget_is_ever_exceeded(
    limit: int, tokens: int | None, own: int | None, kind: str, popsize: int
) -> None:
    task = make_task(2, train=5, dev=3, test=2)
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
            assert spent < 26 or own is not None or tokens is not None
            assert toys["toy"].scored <= spent <= limit
            return
        assert result.stopped in ("budget", "rounds")
        assert result.rounds or result.prompt == PROMPT
        assert scored(result) <= limit
        assert own is None or result.spent["client0"]["scored"] <= own
        used = sum(counts["prompt_tokens"] for counts in result.spent.values())
        assert tokens is None or used <= tokens
        asked_lists = 10 if kind == "weighted" else 0
        tested = sum(counts.get("test_scored", 0) for counts in result.spent.values())
        assert toys["toy"].scored == scored(result) + tested - asked_lists
        assert result.test is not None


@pytest.mark.parametrize("limit", [1, 35, 36, 60, 95])
async def test_a_budget_too_small_for_the_starting_prompt_is_a_clear_error(
    toys: Toys, tmp_path: Path, limit: int
) -> None:
    with pytest.raises(FedbptError, match="budget") as raised:
        await run(make_task(), {"budget.scored": limit}, tmp_path / "run")
    assert raised.value.hint
    assert toys["toy"].closed == 1


async def test_a_budget_for_the_first_of_two_starting_prompts_gives_that_prompt(
    toys: Toys, tmp_path: Path
) -> None:
    for compare in ("start", "all"):
        folder = tmp_path / compare
        result = await run(make_task(), {"budget.scored": 100, "test.compare": compare}, folder)
        assert (result.prompt, result.stopped) == (PROMPT, "budget")
        assert scored(result) == 96  # 36 for the word list, 60 for the prompt
        assert TunedPrompt.load(folder).text == PROMPT
        assert result.test is not None


async def test_the_budget_ends_the_run_and_the_test_is_counted_apart(toys: Toys) -> None:
    result = await run(make_task(), {"budget.scored": 700, "search.rounds": 50})
    assert result.stopped == "budget"
    assert 600 < scored(result) <= 700
    assert sum(counts["test_scored"] for counts in result.spent.values()) > 0
    assert result.test is not None


@pytest.mark.parametrize("limit", range(300, 400, 20))
async def test_a_budget_that_ends_anywhere_in_a_round_ends_the_run_well(toys: Toys, limit: int) -> None:
    changes: dict[str, object] = {"budget.scored": limit, "search.popsize": 6, "search.rounds": 50}
    result = await run(make_task(), changes)
    assert result.stopped == "budget" and result.test is not None


async def test_tokens_end_the_run_too(toys: Toys) -> None:
    result = await run(make_task(), {"budget": {"tokens": 12_000}, "search.rounds": 50})
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
    monkeypatch.setattr(parties_module, "Budget", partial(Budget, clock=clock))
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


# Stopping ------------------------------------------------------------------------------------


async def test_stop_in_the_middle_keeps_the_best_prompt_and_skips_the_test(
    toys: Toys, tmp_path: Path
) -> None:
    task = make_task()
    tuner: Tuner
    tuner = Tuner(
        make_settings(task, {"search.rounds": 50}),
        task,
        tmp_path / "run",
        after_round(1, lambda: tuner.stop()),
    )
    result = await tuner.run()
    assert result.stopped == "cancelled" and result.test is None
    assert [record.round for record in result.rounds] == [0, 1]
    assert TunedPrompt.load(tmp_path / "run").text == result.prompt == result.rounds[-1].prompt
    assert read_result(tmp_path / "run").to_dict() == result.to_dict()
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert toys["toy"].closed == 1


async def test_what_had_been_sent_when_the_run_was_stopped_is_received_and_counted(
    toys: Toys, tmp_path: Path
) -> None:
    toy = toys["toy"]
    task = make_task()
    tuner = Tuner(make_settings(task, {"search.rounds": 50}), task, tmp_path / "run")
    running = asyncio.create_task(tuner.run())
    while not tuner.status.round:  # the first round is merged
        await asyncio.sleep(0)
    toy.hold = asyncio.Event()
    toy.arrived.clear()
    await toy.arrived.wait()
    tuner.stop()
    toy.hold.set()
    result = await running
    assert result.stopped == "cancelled"
    assert toy.scored == scored(result) - 36
    assert tuner.status.phase == "done"


async def test_stop_before_any_prompt_was_scored_is_no_crash(toys: Toys, tmp_path: Path) -> None:
    task = make_task()
    tuner = Tuner(make_settings(task), task, tmp_path / "run")
    tuner.stop()
    try:
        result = await tuner.run()
    except FedbptError as error:
        assert "stopped" in str(error)
    else:
        assert result.stopped == "cancelled"
    assert not (tmp_path / "run" / "prompt.json").exists()
    assert toys["toy"].closed == 1


async def test_stop_during_the_test_keeps_the_result(toys: Toys, tmp_path: Path) -> None:
    task = make_task()
    tuner: Tuner

    def listen(event: Event) -> None:
        if isinstance(event, Testing):
            tuner.stop()

    tuner = Tuner(make_settings(task), task, tmp_path / "run", listen)
    result = await tuner.run()
    assert result.stopped == "cancelled" and result.test is None
    assert read_result(tmp_path / "run").prompt == TunedPrompt.load(tmp_path / "run").text


async def test_stop_works_where_every_candidate_is_known_already(toys: Toys) -> None:
    task = make_task()
    changes: dict[str, object] = {"search.sigma": 1e-9, "search.form": "words", "search.rounds": 40}
    tuner: Tuner
    tuner = Tuner(make_settings(task, changes), task, None, after_round(3, lambda: tuner.stop()))
    result = await tuner.run()
    assert result.stopped == "cancelled"
    assert len(result.rounds) < 10


async def test_cancelling_keeps_the_best_prompt_and_closes_the_backend(toys: Toys, tmp_path: Path) -> None:
    task = make_task()
    running: asyncio.Task[RunResult]
    checked = make_settings(task, {"search.rounds": 50})
    tuner = Tuner(checked, task, tmp_path / "run", after_round(1, lambda: running.cancel()))
    running = asyncio.create_task(tuner.run())
    with pytest.raises(asyncio.CancelledError):
        await running
    prompt = TunedPrompt.load(tmp_path / "run")
    lines = (tmp_path / "run" / "rounds.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["round"] for line in lines] == [0, 1]
    assert orjson.loads(lines[-1])["prompt"] == prompt.text
    assert toys["toy"].closed == 1
    assert not list((tmp_path / "run").glob("*.tmp"))


# Trouble -------------------------------------------------------------------------------------


async def test_a_client_s_own_backend_is_asked_for_its_texts_and_nobody_else_s(toys: Toys) -> None:
    task = make_task()
    changes: dict[str, object] = {"clients.1.backend": {"kind": "toy", "name": "own"}}
    result = await run(task, changes)
    assert result.stopped == "rounds"
    for name, others in (("own", (0, 2)), ("toy", (1,))):
        texts = texts_of(tuple(task.clients[i] for i in others))
        tokens = [await toys[name].tokenize(f" {text}") for text in texts]
        assert toys[name].scored > 100
        assert not [ids for ids, _ in toys[name].answered if any(contains(ids, t) for t in tokens)]
        assert toys[name].closed == 1


async def test_a_client_whose_backend_fails_in_a_round_is_named_and_the_run_goes_on(
    toys: Toys, tmp_path: Path
) -> None:
    changes: dict[str, object] = {"clients.1.backend": {"kind": "toy", "name": "own"}, "search.rounds": 3}
    whole = await run(make_task(), changes)
    own = toys.opened["own"] = ToyBackend()

    def trouble() -> None:
        own.fail_on = frozenset({own.requests + 1})

    task = make_task()
    tuner = Tuner(make_settings(task, changes), task, tmp_path / "run", after_round(1, trouble))
    result = await tuner.run()
    lost = [(r.round, c.client, c.note) for r in result.rounds for c in r.clients if not c.answered]
    assert result.stopped == "rounds"
    assert lost == [(2, "client1", lost[0][2])] and "the toy fails" in lost[0][2]
    assert "the toy fails" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert numbers(result)[:2] == numbers(whole)[:2]
    assert len(whole.rounds) == len(result.rounds)


async def test_a_backend_that_fails_for_all_ends_the_run_and_keeps_the_best_prompt(
    toys: Toys, tmp_path: Path
) -> None:
    toys.opened["toy"] = ToyBackend(fail_from=40)
    with pytest.raises((QuorumError, BackendError), match="the toy fails"):
        await run(make_task(), {"search.rounds": 50}, tmp_path / "run")
    assert TunedPrompt.load(tmp_path / "run").scores["held_out_loss"] < 1
    assert toys["toy"].closed == 1


async def test_a_client_s_backend_with_another_vocabulary_is_refused(toys: Toys) -> None:
    class Shifted(ToyBackend):
        async def tokenize(self, text: str) -> tuple[int, ...]:
            return tuple(max(i - 1, 0) for i in await super().tokenize(text))

    toys.opened["own"] = Shifted()
    changes: dict[str, object] = {"clients.1.backend": {"kind": "toy", "name": "own"}}
    with pytest.raises(ConfigError, match=r"clients\.client1\.backend.*vocabulary"):
        await run(make_task(), changes)
    assert toys["own"].requests == toys["toy"].requests == 0
    assert toys["own"].closed == toys["toy"].closed == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"backend.kind": "toi"}, r"backend\.kind.*'toi'"),
        ({"backend.nam": "x"}, r"backend\.nam.*did you mean 'name'"),
    ],
)
async def test_a_backend_that_is_not_there_is_a_config_error(
    toys: Toys, changes: dict[str, object], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        await run(make_task(), changes)


async def test_label_words_and_texts_that_do_not_fit_the_model_are_told_before_any_cost(toys: Toys) -> None:
    task = make_task()
    words = replace(task.label_words, words=((" gruesome",), (" positive",)))
    with pytest.raises(ConfigError, match=r"labels\.negative.*9 tokens"):
        await run(replace(task, label_words=words))
    long = Example("the " * 500 + "end", "positive")
    clients = (ClientData("client0", (*task.clients[0].train, long)), *task.clients[1:])
    with pytest.raises(ConfigError, match=r"clients\.client0\.train: text 13 has 5\d\d tokens"):
        await run(replace(task, clients=clients))
    assert toys["toy"].requests == 0
    assert toys["toy"].closed == 2


async def test_the_library_s_tune_takes_the_same_settings_as_a_mapping(toys: Toys) -> None:
    task = make_task()
    assert numbers(await tune(make_values(task), task=task)) == numbers(await run(task))


async def test_texts_in_memory_need_no_clients_in_the_settings(toys: Toys) -> None:
    task = make_task()
    values = make_values(task)
    del values["clients"]
    result = await tune(values, task=task)
    assert result.stopped == "rounds"
