"""Commands that run a tuner: ``tune``, ``resume`` and ``replay``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedbpt_api.cli.estimate import made_estimate, print_estimate
from fedbpt_api.cli.output import ConfigPath, Json, Sets, err, out, overrides, print_json, print_result
from fedbpt_api.cli.progress import Progress
from fedbpt_api.errors import ConfigError, FedbptError, QuotaError
from fedbpt_api.run.config import load_settings, load_task
from fedbpt_api.run.events import Event
from fedbpt_api.run.folder import RunFolder, is_finished, read_result
from fedbpt_api.run.inputs import Inputs
from fedbpt_api.run.replay import COMPARED
from fedbpt_api.run.replay import replay as replay_run
from fedbpt_api.run.resume import resumed
from fedbpt_api.run.tune import Tuner


def tune(
    config: ConfigPath,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder for this run; runs/<config>-<time> where not given.")
    ] = None,
    scored: Annotated[int | None, typer.Option(help="Budget in scored examples (budget.scored).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Most rounds (search.rounds).")] = None,
    sets: Sets = None,
    as_json: Json = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the run will take; nothing is spent or written.")
    ] = False,
    foresee: Annotated[
        bool, typer.Option("--estimate", help="Make an estimate first, for the report to set beside.")
    ] = False,
) -> None:
    """Tune one prompt over all clients of CONFIG and test it once at the end.

    Ctrl-C (or SIGTERM) stops soon: what was sent is received, the best prompt so far is saved, exit code 3.
    Give it twice to stop at once.
    """
    found = overrides(sets)
    given = {"budget.scored": scored, "seed": seed, "search.rounds": rounds}
    found |= {key: value for key, value in given.items() if value is not None}
    settings = load_settings(config, found)
    task = load_task(settings)
    if dry_run:
        print_estimate(settings, task, 0, as_json=as_json)
        return
    foreseen = made_estimate(settings, task, 0) if foresee else None
    path = run_dir or Path("runs") / f"{config.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder.begin(path, settings, Inputs.of(task, config, found))
    if foreseen is not None:
        folder.write_estimate(foreseen)
    _work(lambda listener: Tuner(settings, task, folder, listener), path, as_json)


def resume(
    run: Annotated[Path, typer.Argument(help="The folder of a run that did not come to its end.")],
    as_begun: Annotated[
        bool,
        typer.Option("--as-begun", help="Go on as it began, though its file has changed since."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped, killed or ended by a failure.

    Nothing is paid for again but what was under way then, and the run ends as it would have without the
    interruption. The texts, the configuration and the model must be what they were.
    """
    if is_finished(run):
        err.print(f"{run} is finished; this is what it came to", markup=False)
        print_result(read_result(run), as_json)
        return
    _work(lambda listener: resumed(run, on_event=listener, as_begun=as_begun), run, as_json)


def replay(
    run: Annotated[Path, typer.Argument(help="The run's folder; nothing in it is changed.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="KEY=FILE", help="Where a data file is now: clients.0.train=a.jsonl."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute a run anew from its journals, without a model or a network, and compare to the bit.

    The texts must be there. Exit code 1 where anything differs, with the first place in each file.
    """
    moved = {key: str(value) for key, value in overrides(data).items()}
    found = asyncio.run(replay_run(run, data=moved))
    if as_json:
        print_json(asdict(found))
    else:
        typer.echo(
            f"replayed {found.rounds} rounds from {found.answers:,} answers on disk; nothing was asked"
        )
        for difference in found.differences:
            typer.echo(f"differs: {difference}")
        if not found.differences:
            typer.echo(f"the same to the bit: {', '.join(COMPARED)} (but for seconds)")
    if found.differences:
        raise typer.Exit(1)


def _work(make: Callable[[Callable[[Event], None]], Tuner], folder: Path, as_json: bool) -> None:
    """Run a tuner with a progress display, and print what it came to."""
    console = Console(stderr=True, highlight=False) if as_json else out
    shown: list[Progress] = []
    tuner = make(lambda event: shown[0](event))
    try:
        with Progress(console, lambda: tuner.status) as progress, _graceful(tuner):
            shown.append(progress)
            result = asyncio.run(tuner.run())
    except FedbptError as error:
        if isinstance(error, ConfigError) or not tuner.status.scored:
            raise
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        err.print(f"what was paid for is kept; go on with: fedbpt resume {folder}", markup=False)
        raise typer.Exit(3 if isinstance(error, QuotaError) else 1) from None
    print_result(result, as_json)
    if result.stopped == "cancelled":
        err.print(
            f"stopped early; the best prompt so far is in {folder / 'prompt.json'}; "
            f"go on with: fedbpt resume {folder}",
            markup=False,
        )
        raise typer.Exit(3)


@contextlib.contextmanager
def _graceful(tuner: Tuner) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks the tuner to stop; the second one stops at once."""
    seen: list[int] = []

    def handle(number: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        tuner.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
