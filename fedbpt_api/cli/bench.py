"""``fedbpt bench``: recipes side by side on a grid of runs."""

from __future__ import annotations

import asyncio
import platform
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from fedbpt_api.bench import Cell, cells, load_suite, run_suite, summarise
from fedbpt_api.bench.runner import finished
from fedbpt_api.bench.suite import Suite
from fedbpt_api.bench.summary import read_entries
from fedbpt_api.cli.output import err
from fedbpt_api.errors import FedbptError
from fedbpt_api.run.result import ALL_CLIENTS, RunResult
from fedbpt_api.run.tune import Tuner


def bench(
    suite: Annotated[Path, typer.Argument(help="The suite's TOML file.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs and the tables.")] = Path("bench"),
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only cells that match TASK/SPLIT/METHOD/BUDGET/SEED, * for any; may be repeated."),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="results.json of runs made elsewhere, not run again; may be repeated."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be run, and run nothing.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Only put together what is finished.")] = False,
) -> None:
    """Run a grid of tasks, recipes, budgets and seeds; what is finished is kept, what was stopped goes on."""
    loaded = load_suite(suite)
    patterns = only or ["*"]
    elsewhere = [entry for path in also or () for entry in read_entries(path)]
    known = {entry.cell for entry in elsewhere}

    def wanted(cell: Cell) -> bool:
        return cell not in known and any(fnmatch(cell.folder.as_posix(), pattern) for pattern in patterns)

    if plan:
        _plan(loaded, [cell for cell in cells(loaded) if wanted(cell)])
        return
    failed: list[Cell] = []
    stopped = False
    if not table:
        watch = _Watch(sum(map(wanted, cells(loaded))))
        failed = asyncio.run(watch.run(loaded, out, wanted))
        stopped = watch.stopped
    entries = finished(loaded, out, elsewhere)
    if not entries:
        raise FedbptError(f"nothing in {out} is finished yet", "run it without --table")
    command = shlex.join(
        ["fedbpt", "bench", str(suite), "--out", str(out), *(f"--also={path}" for path in also or ())]
    )
    head = {
        "command": command,
        "fedbpt-api": version("fedbpt-api"),
        "python": platform.python_version(),
        "finished": f"{len(entries)} of {len(cells(loaded))} runs",
    }
    typer.echo(summarise(entries, out, head))
    err.print(f"tables and plots: {out}", markup=False)
    if stopped:
        raise typer.Exit(3)
    if failed:
        raise FedbptError(f"{len(failed)} runs failed: {'; '.join(map(str, failed[:3]))}", "start it again")


class _Watch:
    """Says which run is going on; Ctrl-C ends it, with what was paid for kept."""

    def __init__(self, total: int) -> None:
        self._total, self._begun = total, monotonic()
        self._tuner: Tuner | None = None
        self._number = 0
        self.stopped = False

    async def run(self, suite: Suite, out: Path, wanted: Callable[[Cell], bool]) -> list[Cell]:
        """The runs that failed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        _, failed = await run_suite(suite, out, only=wanted, on_start=self._start, on_end=self._end)
        return failed

    def _stop(self) -> None:
        self.stopped = True
        if self._tuner is not None:
            self._tuner.stop()

    def _start(self, cell: Cell, tuner: Tuner) -> None:
        self._tuner, self._begun = tuner, monotonic()
        if self.stopped:
            tuner.stop()
        err.print(f"{cell} ...", markup=False, end=" ")
        sys.stderr.flush()

    def _end(self, cell: Cell, result: RunResult | FedbptError) -> None:
        seconds = monotonic() - self._begun
        if isinstance(result, FedbptError):
            err.print(f"failed: {result}", markup=False)
            return
        rows = result.test.rows if result.test else ()
        accuracy = next(r.accuracy for r in rows if (r.method, r.client) == ("tuned", ALL_CLIENTS))
        err.print(f"{100 * accuracy:.1f} % in {seconds:.0f} s", markup=False)


def _plan(suite: Suite, some: list[Cell]) -> None:
    """What would be run, and what it takes at most."""
    scored: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    for cell in some:
        name = f"{cell.task}, {cell.split}, {cell.method}"
        runs[name] += 1
        scored[name] += cell.budget
    for name, number in runs.items():
        typer.echo(f"{name}: {number} runs, {scored[name]:,} scored examples")
    rows = {t: files.rows for t, files in suite.tasks.items()}
    tests = sum(rows[cell.task] or 0 for cell in some)
    typer.echo(f"in all: {len(some)} runs, {sum(scored.values()):,} scored examples, {tests:,} more to test")
