"""What the commands share: where they print to, results and JSON, KEY=VALUE options."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from fedbpt_api.errors import ConfigError
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tables import plain_text, result_view

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ConfigPath = Annotated[Path, typer.Argument(help="The configuration, a TOML file (see: fedbpt init).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting that wins over the file, e.g. budget.scored=500."
    ),
]


def overrides(sets: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs; a value is TOML where it can be read as such, else text."""
    found: dict[str, Any] = {}
    for item in sets or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {item}: expected KEY=VALUE", "for example: --set budget.scored=500")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found


def print_result(result: RunResult, as_json: bool) -> None:
    """A run's result: JSON, tables for a terminal, or plain lines."""
    if as_json:
        print_json(result.to_dict())
    elif out.is_terminal:
        out.print(result_view(result))
    else:
        typer.echo(plain_text(result))


def print_json(data: object) -> None:
    typer.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode())
