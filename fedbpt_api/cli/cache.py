"""``fedbpt cache``: the shared store of answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import orjson
import typer

from fedbpt_api.errors import ConfigError
from fedbpt_api.scoring import store_care, store_file


def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Servers whose answers are in the store: model, address, answers, bytes, when they were last used."""
    found = store_care.held(store_file.folder())
    if as_json:
        servers = [
            {
                "server": one.number,
                "model": one.about.get("model", ""),
                "url": one.about.get("url", ""),
                "answers": one.answers,
                "bytes": one.size,
                "last_written": _when(one.written),
                "last_used": _when(one.used),
                "identity": one.about,
            }
            for one in found
        ]
        typer.echo(orjson.dumps(servers, option=orjson.OPT_INDENT_2).decode())
        return
    for one in found:
        about = one.about
        facts = (
            about.get("kind"),
            about.get("url") or "in this process",
            about.get("way"),
            about.get("fingerprint"),
        )
        typer.echo(
            f"{one.number}  {about.get('model', '')}  ({', '.join(filter(None, facts))})  "
            f"{one.answers:,} answers  {_bytes(one.size)}  last used {_when(one.used)}"
        )
    if not found:
        typer.echo("the store is empty; a run fills it with: fedbpt tune CONFIG --set cache.scores=true")
    if reason := store_file.why_off():
        typer.echo(f"it is off: {reason}")


def size(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """What the store takes on disk, and where it lies."""
    place = store_file.folder()
    taken = store_care.size(place)
    if as_json:
        typer.echo(orjson.dumps({"bytes": taken, "path": str(place)}).decode())
    else:
        typer.echo(f"{_bytes(taken)} in {place}")


def prune(
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=0, help="Only answers that were given more than DAYS days ago."),
    ] = None,
    server: Annotated[
        list[int] | None,
        typer.Option(
            metavar="NUMBER", help="Only answers of this server (see: fedbpt cache list); repeatable."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Everything, and a store that is damaged as a whole.")
    ] = False,
) -> None:
    """Remove answers from the store, by age, by server or all of them. Runs' own folders are not touched."""
    place = store_file.folder()
    if everything == (older_than is not None or bool(server)):
        raise ConfigError(
            "cache prune: say what to remove",
            "--older-than DAYS and --server NUMBER choose together; --all stands alone",
        )
    if everything:
        typer.echo(f"removed everything: {_bytes(store_care.clear(place))}")
        return
    chosen = frozenset(server or ())
    if unknown := chosen - {one.number for one in store_care.held(place)}:
        raise ConfigError(
            f"--server: the store has no server {', '.join(map(str, sorted(unknown)))}",
            "see: fedbpt cache list",
        )
    removed = store_care.prune(place, older_than=older_than, servers=chosen)
    typer.echo(f"removed {removed:,} answers; {_bytes(store_care.size(place))} are left")


def off() -> None:
    """Turn the store off on this machine, whatever a configuration says; what is in it stays.

    While it is off, none of its files is opened, read or made. FEDBPT_NO_CACHE=1 in the environment does the
    same for one process.
    """
    store_file.switch(on=False)
    typer.echo(
        "the store is off for every run on this machine; what is in it stays (remove it: fedbpt cache prune "
        "--all; allow it again: fedbpt cache on)"
    )


def on() -> None:
    """Undo `fedbpt cache off`: runs use the store where their configuration says cache.scores = true."""
    store_file.switch(on=True)
    reason = store_file.why_off()
    typer.echo(
        f"the store is still off: {reason}" if reason else "runs with cache.scores = true use the store"
    )


def _when(seconds: float | None) -> str | None:
    """A time as people and programs read it, in the machine's own time zone."""
    return (
        None
        if seconds is None
        else datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
    )


def _bytes(count: int) -> str:
    """A size in the unit that suits it."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} bytes"
