"""Runs that are stopped or cancelled: everything paid for is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from fedbpt_api.errors import FedbptError
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.events import Event, Testing
from fedbpt_api.run.folder import read_result
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.journal import read_journal
from toy import Toys, make_task
from toy_runs import (
    FILES,
    after_round,
    make_settings,
    scored,
)


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
    assert on_disk(tmp_path / "run") == scored(result)
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
    assert on_disk(tmp_path / "run") == tuner.status.scored


def on_disk(folder: Path) -> int:
    """Pairs whose scores a run has kept, each once."""
    records = [r for path in folder.glob("scores-*.journal") for r in read_journal(path)]
    keys = [key for record in records for key in record.keys]
    assert len(set(keys)) == len(keys) == sum(record.usage.scored for record in records)
    return len(keys)
