"""The coordinator's run: finds the parties, tunes with them, and leaves a run folder; no texts are here.

It may die at any moment: started again with the same folder it goes on from what parties have answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from fedbpt_api.cli.progress import Progress
from fedbpt_api.errors import ConfigError
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.flower.post import Grid, Post
from fedbpt_api.run.apart import opener
from fedbpt_api.run.config import load_settings, load_task
from fedbpt_api.run.events import Event
from fedbpt_api.run.folder import RunFolder, is_finished, read_result
from fedbpt_api.run.inputs import Inputs, read_settings
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.schema import Settings
from fedbpt_api.run.tables import plain_text
from fedbpt_api.run.tune import Tuner

DEADLINE = 900.0
"""Seconds that a party has for an answer, where `federation.timeout` says nothing."""


async def coordinate(grid: Grid, config: Path, folder: Path) -> RunResult:
    """Run, or go on with, the run of a folder over a grid.

    Args:
        grid: Reaches the parties' nodes.
        config: The run's settings; `parties` in them says how many there are to be.
        folder: The run's folder.

    Raises:
        ConfigError: The settings are wrong, or others than the run began with.
        FedbptError: Too few parties answer; what they have answered is kept.
    """
    console = Console(highlight=False, width=160)
    settings = with_deadline(load_settings(config))
    if settings.parties is None:
        raise ConfigError(f"{config}: parties: expected their number, or a list of their names")
    if (folder / "settings.json").exists() and is_finished(folder):
        result = read_result(folder)
        console.print(f"{folder} is finished; this is what it came to", markup=False)
        console.print(plain_text(result), markup=False)
        return result
    run = _opened(folder, settings)
    async with Post(grid, settings.federation.timeout or DEADLINE) as post:

        async def find(names: tuple[str, ...]) -> Mapping[str, Exchange]:
            wanted = len(names) if names or not isinstance(settings.parties, int) else settings.parties
            console.print(f"waiting for {wanted} parties", markup=False)
            # Who has answered before is known; a run that goes on does not wait for him for ever.
            before = (folder / "parties.json").exists()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.federation.timeout if before else None):
                    await post.find(wanted, names, lambda line: console.print(line, markup=False))
            return {name: post.to(name) for name in names or post.names}

        shown: list[Progress] = []

        def listen(event: Event) -> None:
            shown[0](event)

        tuner = Tuner(settings, load_task(settings), run, listen, opener=opener(find))
        shown.append(Progress(console, lambda: tuner.status))
        result = await tuner.run()
    console.print(plain_text(result), markup=False)
    return result


def with_deadline(settings: Settings) -> Settings:
    """The settings with a deadline: nobody behind a network is waited for without end."""
    if settings.federation.timeout is not None:
        return settings
    federation = settings.federation.model_copy(update={"timeout": DEADLINE})
    return settings.model_copy(update={"federation": federation})


def _opened(folder: Path, settings: Settings) -> RunFolder:
    """The run's folder, new or as it was left.

    Raises:
        ConfigError: The run began with other settings.
    """
    if not (folder / "settings.json").exists():
        return RunFolder.begin(folder, settings, Inputs({}))
    before = read_settings(folder)
    if before.model_dump(mode="json") != settings.model_dump(mode="json"):
        raise ConfigError(
            f"{folder} holds a run that began with other settings",
            "name another folder (--run-config 'folder=...'), or put back what was changed",
        )
    return RunFolder.reopen(folder)
