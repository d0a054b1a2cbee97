"""The commands of the federation over Flower: ``fedbpt flower ...``."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fedbpt_api.cli.output import ConfigPath, Json, Sets, err, out, overrides, print_result
from fedbpt_api.errors import ConfigError
from fedbpt_api.run.config import load_settings
from fedbpt_api.run.node import load_node


def init(
    folder: Annotated[Path, typer.Argument(help="A new folder; its name is the app's.")],
    config: Annotated[
        Path | None,
        typer.Option(help="A configuration whose public part and parties' names the app is to have."),
    ] = None,
) -> None:
    """Write a Flower app: the task that all parties see, and two files that only call this package."""
    _need_flower()
    from fedbpt_api.flower.init import write_app

    for path in write_app(folder, load_settings(config) if config else None):
        typer.echo(f"wrote {path}")
    typer.echo(
        f"next: look through {folder}/*/task.toml; each party fills in node.example.toml (docs/deploy.md)"
    )


def link(
    folder: Annotated[
        Path, typer.Argument(help="Where the SuperLink's state and keys' list are; made at first.")
    ],
    certificate: Annotated[
        Path, typer.Option(help="For parties: a PEM file, with what is between it and its root.")
    ],
    key: Annotated[Path, typer.Option(help="The certificate's private key, a PEM file.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Be the coordinator's SuperLink, until Ctrl-C: nodes are let in, commands are for this machine only."""
    _need_flower()
    from fedbpt_api.flower.link import run_link

    asyncio.run(
        run_link(
            folder, host, port, certificate, key, lambda line: err.print(line, markup=False, soft_wrap=True)
        )
    )


def node(
    config: Annotated[Path, typer.Argument(help="The party's own settings, a TOML file.")],
    superlink: Annotated[str | None, typer.Option(help="HOST:PORT of the coordinator's SuperLink.")] = None,
    root_certificates: Annotated[
        Path | None,
        typer.Option(help="Who vouches for the SuperLink; the system's if not given."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The node's private key, whose public part the SuperLink lists.")
    ] = None,
    supernode: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="More words for flower-supernode, as they are.")
    ] = None,
) -> None:
    """Take part as a party: hold its texts and ask its model, until Ctrl-C.

    Without --superlink no SuperNode is started; start your own with --node-config 'party="..."'.
    """
    settings = load_node(config)
    if superlink is None and (root_certificates or key or supernode):
        raise ConfigError("--superlink: expected HOST:PORT, got none", "there is no SuperNode without it")
    if superlink is not None:
        _need_flower()
    from fedbpt_api.flower.party import Link, run_party

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s: %(message)s")
    link = Link(superlink, root_certificates, key, supernode or ()) if superlink else None
    asyncio.run(run_party(settings, link, lambda line: err.print(line, markup=False, soft_wrap=True)))


def demo(
    config: ConfigPath,
    folder: Annotated[
        Path | None, typer.Option(help="A new folder for it; runs/flower-<time> where not given.")
    ] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Run CONFIG on this machine as a federation: a process a party, TLS, keys; all are ended at the end."""
    _need_flower()
    from fedbpt_api.flower.demo import run_demo

    settings = load_settings(config, overrides(sets))
    place = folder or Path("runs") / f"flower-{datetime.now():%Y%m%d-%H%M%S}"
    console = err if as_json else out

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt  # so that every process is ended

    signal.signal(signal.SIGTERM, end)
    result = run_demo(
        settings, place.resolve(), lambda line: console.print(line, markup=False, soft_wrap=True)
    )
    print_result(result, as_json)


def _need_flower() -> None:
    """Raises ConfigError where Flower is not installed."""
    if find_spec("flwr") is None:
        raise ConfigError("Flower is not installed", 'pip install "fedbpt-api[flower]"')
