"""Clients and backends that fail or do not fit: named, left out, or refused before any cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedbpt_api.errors import BackendError, ConfigError, QuorumError
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.events import Event, Testing
from fedbpt_api.run.folder import read_result
from fedbpt_api.run.replay import replay
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.backend import Prompt, Scores
from fedbpt_api.task import ClientData, Example
from toy import ALIKE, IDS, ToyBackend, Toys, make_task
from toy_runs import (
    after_round,
    contains,
    make_settings,
    numbers,
    run_toy,
    scored,
    texts_of,
)


async def test_a_client_s_own_backend_is_asked_for_its_texts_and_nobody_else_s(toys: Toys) -> None:
    task = make_task()
    changes: dict[str, object] = {"clients.1.backend": {"kind": "toy", "name": "own"}}
    result = await run_toy(task, changes)
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
    whole = await run_toy(make_task(), changes)
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
        await run_toy(make_task(), {"search.rounds": 50}, tmp_path / "run")
    assert TunedPrompt.load(tmp_path / "run").scores["held_out_loss"] < 1
    assert toys["toy"].closed == 1


@pytest.mark.parametrize("when", ["at the start", "in the first starting prompt", "in the test"])
async def test_a_client_that_fails_costs_the_others_nothing_as_long_as_a_quorum_answers(
    toys: Toys, tmp_path: Path, when: str
) -> None:
    own = toys.opened["own"] = ToyBackend()
    if when == "at the start":
        own.fail_from = 1
    elif when == "in the first starting prompt":
        own.fail_on = frozenset({2})

    def listen(event: Event) -> None:
        if when == "in the test" and isinstance(event, Testing):
            own.fail_from = own.requests + 1

    task = make_task()
    changes: dict[str, object] = {"clients.1.backend": {"kind": "toy", "name": "own"}}
    changes |= {"budget.scored": 500, "search.rounds": 50}
    result = await Tuner(make_settings(task, changes), task, tmp_path / "run", listen).run()
    assert result.stopped == "budget"
    assert scored(result) <= 500
    assert read_result(tmp_path / "run").prompt == TunedPrompt.load(tmp_path / "run").text
    assert result.test is not None
    assert {"client0", "client2"} <= {row.client for row in result.test.rows}


async def test_a_server_that_answers_nonsense_is_a_failing_client_and_no_crash(toys: Toys) -> None:
    class Nonsense(ToyBackend):
        async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
            scores = await super().score(prompts, words)
            return replace(scores, logprobs=np.full_like(scores.logprobs, np.nan))

    toys.opened["own"] = Nonsense()
    result = await run_toy(make_task(), {"clients.1.backend": {"kind": "toy", "name": "own"}})
    assert result.stopped == "rounds"
    assert not any(c.answered for r in result.rounds[1:] for c in r.clients if c.client == "client1")


async def test_a_client_whose_server_hangs_from_some_round_on_is_left_out_of_judging_too(
    toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = toys.opened["own"] = ToyBackend()
    ticks = 0

    def hang() -> None:
        own.hold = asyncio.Event()

    task = make_task()
    changes: dict[str, object] = {"clients.1.backend": {"kind": "toy", "name": "own"}}
    changes |= {"federation.timeout": 10.0, "search.rounds": 3}
    tuner = Tuner(make_settings(task, changes), task, None, after_round(1, hang))
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: ticks / 100)
    running = asyncio.create_task(tuner.run())
    while ticks < 40_000 and tuner.status.round < 3:  # a turn of the loop is a hundredth of a second
        ticks += 1
        await asyncio.sleep(0)
    reached = tuner.status.round
    assert own.hold is not None
    own.hold.set()
    result = await running
    assert reached == 3, "the run waits for a server that hangs"
    notes = [c.note for r in result.rounds[2:] for c in r.clients if c.client == "client1"]
    assert notes == ["no answer within 10 s", "still at the search of round 2"]


async def test_a_run_with_a_late_search_is_replayed_to_the_same_prompt(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = toys.opened["own"] = ToyBackend()
    ticks = 0

    def hang() -> None:
        own.hold = asyncio.Event()

    task = make_task()
    changes: dict[str, object] = {"clients.1.backend": {"kind": "toy", "name": "own"}}
    changes |= {"federation.timeout": 10.0, "search.rounds": 4}
    tuner = Tuner(make_settings(task, changes), task, tmp_path / "run", after_round(1, hang))
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: ticks / 100)
    running = asyncio.create_task(tuner.run())
    while ticks < 40_000 and not running.done():
        ticks += 1
        await asyncio.sleep(0)
        if own.hold is not None and (tmp_path / "run" / "late.records").exists():
            own.hold.set()  # the round goes on without it, and it answers again
    result = await running
    monkeypatch.undo()
    notes = [c.note for r in result.rounds for c in r.clients if c.client == "client1"]
    assert notes == ["", "", "no answer within 10 s", "", ""]
    asked = sum(toy.requests for toy in toys.opened.values())
    again = await replay(tmp_path / "run", task)
    assert again.rounds == 4 and sum(toy.requests for toy in toys.opened.values()) == asked
    assert not any(difference.startswith("prompt.json") for difference in again.differences), again


async def test_a_client_s_backend_with_another_vocabulary_is_refused(toys: Toys) -> None:
    class Shifted(ToyBackend):
        async def tokenize(self, text: str) -> tuple[int, ...]:
            return tuple(max(i - 1, 0) for i in await super().tokenize(text))

    toys.opened["own"] = Shifted()
    changes: dict[str, object] = {"clients.1.backend": {"kind": "toy", "name": "own"}}
    with pytest.raises(ConfigError, match=r"clients\.client1\.backend.*vocabulary"):
        await run_toy(make_task(), changes)
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
        await run_toy(make_task(), changes)


class Apart(ToyBackend):
    """The toy without the token for " very": the words' numbers are the same, what is behind them is not."""

    async def tokenize(self, text: str) -> tuple[int, ...]:
        ids = await super().tokenize(text)
        return tuple(part for i in ids for part in (b" very" if i == IDS[" very"] else (i,)))


async def test_a_client_whose_model_spells_words_that_begin_alike_differently_is_refused(toys: Toys) -> None:
    toys.opened["other"] = Apart()
    task = replace(make_task(), label_words=ALIKE)
    with pytest.raises(ConfigError, match=r"clients\.client1\.backend: its model has another vocabulary"):
        await run_toy(task, {"clients.1.backend": {"kind": "toy", "name": "other"}})
    assert toys["toy"].closed == toys["other"].closed == 1


async def test_label_words_and_texts_that_do_not_fit_the_model_are_told_before_any_cost(toys: Toys) -> None:
    task = make_task()
    words = replace(task.label_words, words=((" bad",), (" good", " bad day")))
    with pytest.raises(
        ConfigError, match=r"labels\.positive: ' bad day' begins with all of labels\.negative"
    ):
        await run_toy(replace(task, label_words=words))
    long = Example("the " * 500 + "end", "positive")
    clients = (ClientData("client0", (*task.clients[0].train, long)), *task.clients[1:])
    with pytest.raises(ConfigError, match=r"clients\.client0\.train: text 13 has 5\d\d tokens"):
        await run_toy(replace(task, clients=clients))
    assert toys["toy"].requests == 0
    assert toys["toy"].closed == 2
