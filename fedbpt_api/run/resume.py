"""Runs that go on after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedbpt_api.errors import RunFolderError
from fedbpt_api.run.config import load_task
from fedbpt_api.run.events import Event
from fedbpt_api.run.folder import RunFolder, is_finished
from fedbpt_api.run.inputs import Inputs, read_settings
from fedbpt_api.run.tune import Tuner
from fedbpt_api.task import Task


def resumed(
    folder: Path,
    task: Task | None = None,
    on_event: Callable[[Event], None] | None = None,
    *,
    as_begun: bool = False,
) -> Tuner:
    """The tuner of a run that was stopped, killed or ended by a failure: it goes on where it was.

    The run is computed anew from its beginning with the answers that are on disk; what is not there is asked
    for. So it ends as it would have without the interruption, and pays for nothing again but what was under
    way then.

    Args:
        folder: The run's.
        task: Its texts, where they were in memory; else its files are read.
        on_event: As for a new run.
        as_begun: Whether a configuration file that has changed since is no matter.

    Raises:
        ConfigError: The texts, or the configuration, are not what they were.
        RunFolderError: There is no such run, it is finished, damaged, or being worked on.
    """
    settings = read_settings(folder)
    inputs = Inputs.read(folder)
    if is_finished(folder):
        raise RunFolderError(f"{folder} is finished", f"look at it: fedbpt show {folder}")
    task = task if task is not None else load_task(settings)
    inputs.check(task, settings)
    if not as_begun:
        inputs.check_config(settings)
    return Tuner(settings, task, RunFolder.reopen(folder), on_event)
