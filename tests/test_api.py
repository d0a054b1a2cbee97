"""The library's front door: sync and async, events as callbacks and as an iterator, and a quiet import."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import orjson
import pytest

import fedbpt_api
from fedbpt_api import (
    Assessed,
    ConfigError,
    Event,
    Finished,
    RoundDone,
    RunResult,
    Started,
    Testing,
    TunedPrompt,
    load_settings,
    make_tuner,
    run_sync,
    stream,
    tune,
    tune_sync,
)
from toy import PROMPT, Toys, make_task
from toy_runs import make_settings, make_values, write_config

TASK = make_task(2, train=6, dev=4, test=4)


def facts(result: RunResult) -> dict[str, object]:
    """The result without times, folders and NaN."""
    data = result.to_dict() | {"folder": None}
    for record in data["rounds"]:
        record["seconds"] = 0
    return data


def test_everything_that_is_promised_can_be_imported() -> None:
    assert [name for name in fedbpt_api.__all__ if not hasattr(fedbpt_api, name)] == []
    assert fedbpt_api.__all__ == sorted(fedbpt_api.__all__)
    assert fedbpt_api.__version__


def test_a_file_a_mapping_and_settings_give_the_same_run(toys: Toys, tmp_path: Path) -> None:
    path = write_config(tmp_path, TASK)
    expected = facts(tune_sync(make_settings(TASK), task=TASK))
    toys.opened.clear()
    assert facts(tune_sync(make_values(TASK), task=TASK)) == expected
    for config in (path, str(path), load_settings(path)):
        toys.opened.clear()
        assert facts(tune_sync(config)) == expected


def test_texts_in_memory_need_no_clients_in_the_settings(toys: Toys) -> None:
    values = make_values(TASK)
    del values["clients"]
    assert tune_sync(values, task=TASK).stopped == "rounds"


def test_tune_sync_runs_where_there_is_no_loop(toys: Toys) -> None:
    threads: set[str] = set()
    result = tune_sync(
        make_values(TASK), task=TASK, on_event=lambda _: threads.add(threading.current_thread().name)
    )
    assert result.stopped == "rounds"
    assert threads == {threading.main_thread().name}


async def test_tune_sync_runs_inside_a_running_loop_too(toys: Toys, tmp_path: Path) -> None:
    before = threading.active_count()
    expected = facts(await tune(make_values(TASK), task=TASK))
    toys.opened.clear()
    assert facts(tune_sync(make_values(TASK), task=TASK, run_dir=tmp_path / "run")) == expected
    assert TunedPrompt.load(tmp_path / "run").text == expected["prompt"]
    assert threading.active_count() == before


async def test_errors_come_out_of_tune_sync_inside_a_running_loop(toys: Toys) -> None:
    with pytest.raises(ConfigError, match="no backend 'toi'"):
        tune_sync(make_values(TASK, {"backend.kind": "toi"}), task=TASK)


async def test_run_sync_hands_results_and_errors_over() -> None:
    async def give(value: int) -> int:
        await asyncio.sleep(0)
        return 12 // value

    assert run_sync(lambda: give(4)) == 3
    with pytest.raises(ZeroDivisionError):
        run_sync(lambda: give(0))


async def test_callbacks_get_the_events_in_order_and_see_the_status(toys: Toys) -> None:
    events: list[Event] = []
    phases: list[str] = []
    left: list[int | None] = []

    def listen(event: Event) -> None:
        events.append(event)
        phases.append(tuner.status.phase)
        left.append(tuner.status.left)

    tuner = make_tuner(make_values(TASK), task=TASK, on_event=listen)
    assert tuner.status.scored == 0
    result = await tuner.run()
    assert isinstance(events[0], Started) and events[-1] == Finished(result)
    order = ["opening", "words", "starting prompts", "search", "test", "done"]
    assert [order.index(phase) for phase in phases] == sorted(order.index(phase) for phase in phases)
    assert phases[-1] == "done" and "search" in phases
    numbers = [n for n in left if n is not None]
    assert numbers == sorted(numbers, reverse=True)
    status = tuner.status
    assert status.scored == sum(counts["scored"] for counts in result.spent.values())
    assert status.clients == {name: counts["scored"] for name, counts in result.spent.items()}
    assert status.tested[0] == status.tested[1] > 0
    assert status.round == 2 and status.rate > 0 and status.seconds_left is not None


async def test_stream_yields_the_events_that_callbacks_get(toys: Toys) -> None:
    told: list[Event] = []
    result = await tune(make_values(TASK), task=TASK, on_event=told.append)
    toys.opened.clear()
    events = [event async for event in stream(make_values(TASK), task=TASK)]
    assert [type(event) for event in events] == [type(event) for event in told]
    prompts = [[e.prompt for e in group if isinstance(e, Assessed)] for group in (events, told)]
    assert prompts[0] == prompts[1] and prompts[0][0] == PROMPT
    last = events[-1]
    assert isinstance(last, Finished) and facts(last.result) == facts(result)
    assert any(isinstance(event, Testing) for event in events)


async def test_leaving_the_stream_early_cancels_the_run_and_keeps_the_best_prompt(
    toys: Toys, tmp_path: Path
) -> None:
    values = make_values(TASK, {"search.rounds": 500, "budget.scored": 100_000})
    events = stream(values, task=TASK, run_dir=tmp_path / "run")
    assert isinstance(events, AsyncGenerator)
    async with aclosing(events) as open_events:
        async for event in open_events:
            if isinstance(event, RoundDone) and event.record.round == 1:
                break
    toy = toys["toy"]
    assert toy.closed == 1
    asked = toy.requests
    for _ in range(50):
        await asyncio.sleep(0)
    assert toy.requests == asked
    assert TunedPrompt.load(tmp_path / "run").model["kind"] == "toy"
    assert not (tmp_path / "run" / "result.json").exists()
    running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert running == []


async def test_breaking_out_of_the_stream_ends_the_run_soon(toys: Toys) -> None:
    values = make_values(TASK, {"search.rounds": 500, "budget.scored": 100_000})
    async for event in stream(values, task=TASK):
        if isinstance(event, RoundDone):
            break
    for _ in range(200):  # turns of the loop
        await asyncio.sleep(0)
    assert toys["toy"].closed == 1


async def test_an_error_in_the_run_comes_out_of_the_stream(toys: Toys) -> None:
    toys["toy"].fail_from = 12
    seen: list[Event] = []
    with pytest.raises(fedbpt_api.FedbptError, match="the toy fails"):
        async for event in stream(make_values(TASK), task=TASK):
            seen.append(event)
    assert isinstance(seen[0], Started)
    assert toys["toy"].closed == 1


async def test_a_wrong_config_is_told_before_a_run_folder_is_made(toys: Toys, tmp_path: Path) -> None:
    values = make_values(TASK, {"search.popsiz": 4})
    with pytest.raises(ConfigError, match=r"search\.popsiz.*did you mean 'popsize'"):
        await tune(values, task=TASK, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


IMPORT = """
import json, sys, threading
import numpy
state = numpy.random.get_state()
opened, others = [], []

def audit(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        opened.append((str(args[0]), str(args[1])))
    elif event.split(".")[0] in ("socket", "subprocess", "urllib", "http"):
        others.append(event)
    elif event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.mkdir", "os.rename", "os.remove"):
        others.append(event)

sys.addaudithook(audit)
import fedbpt_api
import fedbpt_api.cli
after = numpy.random.get_state()
print(json.dumps({
    "opened": opened,
    "others": others,
    "threads": [thread.name for thread in threading.enumerate()],
    "random": bool((state[1] == after[1]).all()) and state[2:] == after[2:],
    "modules": sorted(sys.modules),
}))
"""
CODE = (".py", ".pyc", ".so", ".pth", ".zip")


def test_importing_opens_nothing_but_modules_and_leaves_everything_as_it_was(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    found = orjson.loads(done.stdout)
    package = str(Path(fedbpt_api.__file__).parent)
    written = [name for name, mode in found["opened"] if set(mode) & set("wax+") and ".pyc" not in name]
    data = [name for name, _ in found["opened"] if name.startswith(package) and not _is_code(name)]
    assert written == []
    assert data == []
    assert found["threads"] == ["MainThread"]
    assert found["others"] == []
    assert found["random"]
    assert not {"fedbpt_backends", "xllamacpp", "gguf"} & set(found["modules"])
    assert list(tmp_path.iterdir()) == []


def _is_code(name: str) -> bool:
    return name.endswith(CODE) or ".pyc." in name
