"""Runs a suite's cells one after another; what is finished is read, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedbpt_api.bench.grid import Cell, cells, prepared
from fedbpt_api.bench.suite import Suite
from fedbpt_api.bench.summary import Entry
from fedbpt_api.errors import ConfigError, FedbptError, QuotaError
from fedbpt_api.run.config import Settings
from fedbpt_api.run.folder import is_finished, read_result
from fedbpt_api.run.inputs import differences, read_settings
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.resume import resumed
from fedbpt_api.run.tune import Tuner
from fedbpt_api.task import Task

Listener = Callable[[Cell, RunResult | FedbptError], None]


async def run_suite(
    suite: Suite,
    out: Path,
    *,
    only: Callable[[Cell], bool] = lambda cell: True,
    on_start: Callable[[Cell, Tuner], None] = lambda cell, tuner: None,
    on_end: Listener = lambda cell, result: None,
) -> tuple[list[Entry], list[Cell]]:
    """Run what is missing.

    Args:
        suite: The suite.
        out: Folder of the runs, and of the tables that `summarise` writes.
        only: Which cells are run now.
        on_start: Called with each tuner before it runs, so that it can be watched and stopped.
        on_end: Called with each result, or the error that a run ended with; the others go on.

    Returns:
        The finished cells, and those that failed.

    Raises:
        ConfigError: A cell cannot be prepared, or was run with other settings.
        QuotaError: The user's quota or credit is used up.
    """
    wanted = [cell for cell in cells(suite) if only(cell)]
    ready = {cell: prepared(suite, cell) for cell in wanted}  # mistakes are told before anything is paid
    for cell, (settings, _) in ready.items():
        _check_same(out / "runs" / cell.folder, settings)
    entries, failed = list[Entry](), list[Cell]()
    for cell, (settings, task) in ready.items():
        folder = out / "runs" / cell.folder
        if is_finished(folder):
            result = read_result(folder)
        else:
            tuner = _tuner(folder, settings, task)
            on_start(cell, tuner)
            try:
                result = await tuner.run()
            except (QuotaError, ConfigError):
                raise
            except FedbptError as error:
                if tuner.stopping:
                    break
                failed.append(cell)
                on_end(cell, error)
                continue
            if result.stopped == "cancelled":
                break
            on_end(cell, result)
        entries.append(Entry.of(cell, suite.variant(cell.method).base, result))
    return entries, failed


def finished(suite: Suite, out: Path, also: Sequence[Entry] = ()) -> list[Entry]:
    """The cells that are done already, here or elsewhere, without running any."""
    elsewhere = {entry.cell: entry for entry in also}
    found = list[Entry]()
    for cell in cells(suite):
        folder = out / "runs" / cell.folder
        if is_finished(folder):
            found.append(Entry.of(cell, suite.variant(cell.method).base, read_result(folder)))
        elif cell in elsewhere:
            found.append(elsewhere[cell])
    return found


def _tuner(folder: Path, settings: Settings, task: Task) -> Tuner:
    if (folder / "settings.json").exists():
        return resumed(folder, task, as_begun=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Tuner(settings, task, folder)


def _without_files(settings: Settings) -> dict[str, Any]:
    """All but names of files: texts are in memory, and a checkout or a bench's folder may be moved."""
    values = settings.model_dump(mode="json")
    for client in values["clients"]:
        del client["train"]
    if values["price"] is not None:
        del values["price"]["file"]
    return values


def _check_same(folder: Path, settings: Settings) -> None:
    """Refuse to mix runs of two versions of a suite."""
    if not (folder / "settings.json").exists():
        return
    changes: Sequence[tuple[str, object, object]] = differences(
        _without_files(read_settings(folder)), _without_files(settings)
    )
    if changes:
        told = "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in changes[:3])
        raise ConfigError(
            f"{folder} was run with other settings: {told}",
            "remove that folder to run it again, or name another --out",
        )
