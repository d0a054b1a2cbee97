"""Prices of a run's servers: from the settings, or from a file of prices by model."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

from pydantic import ValidationError

from fedbpt_api.errors import ConfigError
from fedbpt_api.run.config_problems import amount_problems, describe
from fedbpt_api.run.schema import PriceSettings
from fedbpt_api.scoring.backend import BackendInfo
from fedbpt_api.scoring.price import Price


def price_of(settings: PriceSettings | None, info: BackendInfo) -> Price | None:
    """What a server charges; None where nothing says so.

    Raises:
        ConfigError: The file of prices cannot be read, or has none for this model.
    """
    if settings is None:
        return None
    if settings.file is not None:
        settings = _from_file(settings.file, settings.model or info.model)
    full, output = settings.input, settings.output
    if full is None or output is None:
        raise ConfigError("price: input and output are needed", "give the price of a million tokens")
    cached = full if settings.cached is None else settings.cached
    return Price(_exact(full), _exact(cached), _exact(output), settings.currency, info.generated)


def _from_file(path: Path, model: str) -> PriceSettings:
    """The file's own table, or its table for the model."""
    try:
        found: Mapping[str, object] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"price.file: {path} cannot be read: {error}", "correct the file") from error
    tables = {key: value for key, value in found.items() if isinstance(value, Mapping)}
    where, table = str(path), found
    if tables:
        if model not in tables:
            known = ", ".join(sorted(tables))
            raise ConfigError(
                f"price.file: {path} has no table for the model {model!r} (it has: {known})",
                f'add one, ["{model}"], or choose one with price.model',
            )
        where, table = f"{path}: {model}", tables[model]
    problems = list(amount_problems(table))
    try:
        price = PriceSettings.model_validate(table)
    except ValidationError as error:
        problems += [describe(detail, PriceSettings) for detail in error.errors(include_url=False)]
    if problems:
        raise ConfigError([f"{where}: {problem}" for problem in problems], "correct the file")
    return price


def _exact(amount: float) -> Decimal:
    return Decimal(str(amount))
