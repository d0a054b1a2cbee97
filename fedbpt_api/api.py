"""The library's front door: tune from a config or from Python objects, async first, sync where needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fedbpt_api.run.config import Settings, build_settings, load_settings, load_task
from fedbpt_api.run.events import Event
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.resume import resumed
from fedbpt_api.run.tune import Tuner
from fedbpt_api.task import Task

R = TypeVar("R")
Config = Settings | Mapping[str, object] | Path | str


def make_tuner(
    config: Config,
    *,
    task: Task | None = None,
    run_dir: Path | str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Tuner:
    """A tuner for a config file, a mapping with the same keys, or checked settings.

    Args:
        config: Where the settings are.
        task: Texts in memory; without it the files named in the settings are read.
        run_dir: Folder to keep the run in; without it nothing is written.
        on_event: Called with each event.

    Raises:
        ConfigError: With every problem found; nothing has been scored.
        RunFolderError: `run_dir` holds a run already.
    """
    if isinstance(config, Settings):
        settings = config
    elif isinstance(config, Mapping):
        values = dict(config)
        if task is not None and not values.get("clients") and not values.get("data"):
            values["clients"] = [{"name": client.name, "train": "(in memory)"} for client in task.clients]
        settings = build_settings(values, files=task is None)
    else:
        settings = load_settings(Path(config))
    folder = Path(run_dir) if run_dir is not None else None
    return Tuner(settings, task if task is not None else load_task(settings), folder, on_event)


async def tune(
    config: Config,
    *,
    task: Task | None = None,
    run_dir: Path | str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunResult:
    """Tune one prompt. Cancelling the awaiting task keeps the best prompt so far in `run_dir`."""
    return await make_tuner(config, task=task, run_dir=run_dir, on_event=on_event).run()


async def stream(
    config: Config, *, task: Task | None = None, run_dir: Path | str | None = None
) -> AsyncGenerator[Event, None]:
    """Tune one prompt and yield its events; the last one is `Finished`.

    Leaving the loop early cancels the run.
    """
    queue: asyncio.Queue[Event | None] = asyncio.Queue()
    tuner = make_tuner(config, task=task, run_dir=run_dir, on_event=queue.put_nowait)
    running = asyncio.create_task(tuner.run())
    running.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (event := await queue.get()) is not None:
            yield event
        await running
    finally:
        if not running.done():
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def resume(
    run_dir: Path | str, *, task: Task | None = None, on_event: Callable[[Event], None] | None = None
) -> RunResult:
    """Go on with a run that was stopped, killed or ended by a failure; see `fedbpt_api.run.resume`.

    Args:
        run_dir: Its folder.
        task: Its texts, where they were in memory.
        on_event: Called with each event.

    Raises:
        ConfigError: Texts, configuration or model are not what they were.
        RunFolderError: There is no such run, it is finished, damaged, or being worked on.
    """
    return await resumed(Path(run_dir), task, on_event).run()


def resume_sync(
    run_dir: Path | str, *, task: Task | None = None, on_event: Callable[[Event], None] | None = None
) -> RunResult:
    """`resume` for programs without an event loop, and for notebooks."""
    return run_sync(lambda: resume(run_dir, task=task, on_event=on_event))


def tune_sync(
    config: Config,
    *,
    task: Task | None = None,
    run_dir: Path | str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunResult:
    """`tune` for programs without an event loop, and for notebooks, where one is running already."""
    return run_sync(lambda: tune(config, task=task, run_dir=run_dir, on_event=on_event))


def run_sync(work: Callable[[], Coroutine[object, object, R]]) -> R:
    """Run a coroutine to its end, on a thread of its own where this one has a running loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    results: list[R] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(asyncio.run(work()))
        except BaseException as error:  # carried over to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=target, name="fedbpt-sync")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
