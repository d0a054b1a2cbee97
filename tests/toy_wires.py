"""Whole toy runs whose parties are reached by envelopes only, through whatever stands between."""

from __future__ import annotations

from collections.abc import Callable

from fedbpt_api.federation.client import Client
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.run.events import Event
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tune import Tuner
from fedbpt_api.task import Task
from lies import reached_through
from toy_runs import make_settings

Between = Callable[[Client], Exchange]


async def run_between(
    task: Task, changes: dict[str, object], between: Between, on_event: Callable[[Event], None] | None = None
) -> RunResult:
    """A run whose parties are reached through what `between` makes for each."""
    settings = make_settings(task, changes)
    return await Tuner(settings, task, on_event=on_event, opener=reached_through(between)).run()
