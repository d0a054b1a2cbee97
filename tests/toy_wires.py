"""Whole toy runs whose parties are reached by envelopes only, through whatever stands between."""

from __future__ import annotations

from collections.abc import Callable

from fedbpt_api.federation.client import Client
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.remote import RemoteParty
from fedbpt_api.run.config import Settings
from fedbpt_api.run.events import Event
from fedbpt_api.run.opening import open_parties
from fedbpt_api.run.parties import Keep, Parties
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.task import Task
from toy_runs import make_settings

Between = Callable[[Client], Exchange]


async def run_between(
    task: Task, changes: dict[str, object], between: Between, on_event: Callable[[Event], None] | None = None
) -> RunResult:
    """A run whose parties are reached through what `between` makes for each."""

    async def opener(settings: Settings, task: Task, stopping: Callable[[], bool], keep: Keep) -> Parties:
        parties = await open_parties(settings, task, stopping, keep)
        remote = []
        for client in parties.local:
            client.budget.parent = Budget()
            remote.append(await RemoteParty.reach(between(client), parties.budget))
        parties.clients[:] = remote
        return parties

    return await Tuner(make_settings(task, changes), task, on_event=on_event, opener=opener).run()
