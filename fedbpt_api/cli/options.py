"""Arguments and options that several commands share."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from fedbpt_api.errors import ConfigError

ConfigPath = Annotated[Path, typer.Argument(help="The configuration, a TOML file (see: fedbpt init).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting that wins over the file, e.g. budget.scored=500."
    ),
]


def overrides(sets: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs; a value is TOML where it can be read as such, else text.

    Raises:
        ConfigError: One of them is no such pair.
    """
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
