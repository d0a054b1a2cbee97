"""``fedbpt estimate`` and ``fedbpt tune --dry-run``: what a run will cost, before it is paid for."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from fedbpt_api.cli.output import ConfigPath, Json, Sets, err, out, overrides, print_json
from fedbpt_api.run.config import Settings, load_settings, load_task
from fedbpt_api.run.estimate import PROBES
from fedbpt_api.run.estimate import estimate as foresee
from fedbpt_api.run.estimate_view import estimate_view, plain_estimate
from fedbpt_api.run.foreseen import Estimate
from fedbpt_api.task import Task


def estimate(
    config: ConfigPath,
    sets: Sets = None,
    as_json: Json = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help=f"Spend nothing: time is not known without {PROBES} requests.")
    ] = False,
) -> None:
    """What a run of CONFIG will take: scored examples, tokens, requests, bytes, money and time.

    The run is gone through with made-up answers. A few real requests measure the speed; they are paid for.
    """
    settings = load_settings(config, overrides(sets))
    print_estimate(settings, load_task(settings), 0 if no_probe else PROBES, as_json=as_json)


def print_estimate(settings: Settings, task: Task, probes: int, *, as_json: bool) -> None:
    """Make an estimate and print it: JSON, a table for a terminal, or plain lines."""
    made = made_estimate(settings, task, probes)
    if as_json:
        print_json(made.to_dict())
    elif out.is_terminal:
        out.print(estimate_view(made))
    else:
        typer.echo(plain_estimate(made))


def made_estimate(settings: Settings, task: Task, probes: int) -> Estimate:
    """The estimate, with a note that it is being made."""
    with err.status("going through the run with made-up answers"):
        return asyncio.run(foresee(settings, task, probes))
