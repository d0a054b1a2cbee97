"""Settings from a TOML file, checked as a whole, and the task that they describe.

A mapping is checked by `build_settings`, which tells every problem at once in words that name the file, the
key, what was expected and what to do. `load_settings` reads the mapping from a TOML file, `load_task` reads
the texts that the settings name. The keys themselves are in `fedbpt_api.run.schema`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from fedbpt_api.data import Columns, Split, read_examples, split_dirichlet, split_iid
from fedbpt_api.errors import ConfigError
from fedbpt_api.run.config_problems import DATA_FILES, cross_problems, describe, file_problems
from fedbpt_api.run.schema import (
    BackendSettings,
    BudgetSettings,
    ClientSettings,
    ColumnsSettings,
    DataSettings,
    FederationSettings,
    SearchSettings,
    Settings,
    VerbalizerSettings,
)
from fedbpt_api.task import ClientData, LabelWords, Place, Task, Template, validate

__all__ = [
    "BackendSettings",
    "BudgetSettings",
    "ClientSettings",
    "ColumnsSettings",
    "DataSettings",
    "FederationSettings",
    "SearchSettings",
    "Settings",
    "VerbalizerSettings",
    "build_settings",
    "example_config",
    "load_settings",
    "load_task",
]


def example_config() -> str:
    """The commented configuration that ``fedbpt init`` writes."""
    return resources.files("fedbpt_api.run").joinpath("example.toml").read_text(encoding="utf-8")


OVERRIDDEN = "command line"


def build_settings(
    values: Mapping[str, object], *, base: Path | None = None, source: str = "settings", files: bool = True
) -> Settings:
    """Check a mapping and turn it into settings.

    Args:
        values: The settings as nested mappings, as TOML or a stored run gives them.
        base: Folder that relative paths start from; the working directory unless given.
        source: What a problem names as its place, usually the config file.
        files: Whether the data files must exist; a stored run can be read without them.

    Raises:
        ConfigError: With every problem at once.
    """
    base = (base or Path.cwd()).resolve()
    problems: list[str] = []
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(values, context={"base": base})
    except ValidationError as error:
        # What the whole is blamed for comes from `cross_problems`, which is asked below in any case.
        details = [detail for detail in error.errors(include_url=False) if detail["loc"]]
        problems.extend(describe(detail, Settings) for detail in details)
    problems.extend(cross_problems(values))
    if files:
        problems.extend(file_problems(values, base))
    if problems or settings is None:
        raise ConfigError(
            [f"{source}: {problem}" for problem in problems],
            "put this right and start again; nothing has been scored yet",
        )
    return settings


def load_settings(path: Path, overrides: Mapping[str, object] = MappingProxyType({})) -> Settings:
    """Read a TOML file, put `overrides` on top and check the whole.

    Args:
        path: The config file. Relative paths in it start from its folder.
        overrides: Values by dotted key ("budget.scored", "clients.0.train"); they win over the file. Relative
            paths among them start from the working directory.

    Raises:
        ConfigError: If the file cannot be read, with `file:line` if it is not TOML, or with every problem of
            what it says.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"{path}: the config file cannot be read ({reason})",
            "check the path, or write one with `fedbpt init`",
        ) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        where = re.search(r" \(at line (\d+), column \d+\)", message)
        line = int(where[1]) if where else text.count("\n") + 1
        what = message.removesuffix(where[0]) if where else message
        raise ConfigError(
            f"{path}:{line}: not valid TOML: {what}", 'correct the line; texts stand in quotes: key = "text"'
        ) from error
    wrong = [
        f"{OVERRIDDEN}: {problem}"
        for key, value in overrides.items()
        if (problem := _put(values, key, value))
    ]
    try:
        settings = build_settings(values, base=path.parent, source=str(path))
    except ConfigError as error:
        problems = [_blame(problem, str(path), overrides) for problem in error.problems]
        raise ConfigError([*wrong, *problems], error.hint) from error
    if wrong:
        raise ConfigError(wrong)
    return settings


def load_task(settings: Settings) -> Task:
    """Read the data files and check the task as a whole; `fedbpt_api.task.validate` gives its warnings.

    Raises:
        ConfigError: With every unusable row of every file as `file:line`, or every problem of the task.
    """
    columns = Columns(**settings.columns.model_dump())
    labels = tuple(settings.labels)
    problems: list[str] = []

    def read(path: Path | None) -> Split:
        try:
            return () if path is None else (read_examples(path, columns, labels=labels),)
        except ConfigError as error:
            problems.extend(error.problems)
            return ()

    groups: list[tuple[str, list[Split]]] = []
    if settings.data is None:
        for client in settings.clients:
            groups.append((client.name, [read(client.train), read(client.dev), read(client.test)]))
    else:
        data = settings.data
        parts = [
            _split(path, read(path), data, settings.seed, problems)
            for path in (data.train, data.dev, data.test)
        ]
        for index in range(data.clients):
            groups.append((f"client{index + 1}", [part[index : index + 1] for part in parts]))
    if problems:
        raise ConfigError(problems, "put this right and start again; nothing has been scored yet")
    clients = tuple(ClientData(name, *(part[0] if part else () for part in parts)) for name, parts in groups)
    place: Place = "after" if settings.prompt_place == "after" else "before"  # "auto" begins there
    template = Template.parse(settings.template, place)
    task = Task(template, LabelWords.from_mapping(settings.labels), clients)
    validate(task, apart=settings.parties is not None)
    return task


def _blame(problem: str, source: str, overrides: Mapping[str, object]) -> str:
    """The problem with the command line as its place, where an override set the key."""
    rest = problem.removeprefix(f"{source}: ")
    return f"{OVERRIDDEN}: {rest}" if any(rest.startswith(f"{key}:") for key in overrides) else problem


def _split(path: Path | None, found: Split, data: DataSettings, seed: int, problems: list[str]) -> Split:
    """One file's examples over the clients; nothing where there is no file."""
    splitters: dict[str, Callable[[], Split]] = {
        "iid": lambda: split_iid(found[0], data.clients, seed),
        "dirichlet": lambda: split_dirichlet(found[0], data.clients, data.alpha, seed),
    }
    try:
        return splitters[data.split]() if found else ()
    except ConfigError as error:
        problems.extend(f"{path}: {problem}; {error.hint}" for problem in error.problems)
        return ()


def rooted(key: str, value: object) -> object:
    """The value of a setting from the command line: a data file as seen from the working directory."""
    names = key.split(".")
    is_file = names[-1] in DATA_FILES and names[0] in ("data", "clients") and isinstance(value, str)
    return str(Path.cwd() / str(value)) if is_file else value


def _put(values: dict[str, object], key: str, value: object) -> str | None:
    """Set one dotted key in nested values; the problem if the way there is blocked."""
    names, value = key.split("."), rooted(key, value)
    place: object = values
    for depth, name in enumerate(names):
        here = ".".join(names[:depth])
        last = depth == len(names) - 1
        if isinstance(place, dict):
            place[name] = value if last else place.get(name, {})
            place = place[name]
        elif not isinstance(place, list):
            return f"{key}: {here} is a single value and has no key {name!r}; use {here} alone"
        elif not (name.isdigit() and int(name) < len(place)):
            return (
                f"{key}: {here} has {len(place)} entries; expected a number below that in place of {name!r}"
            )
        else:
            place[int(name)] = value if last else place[int(name)]
            place = place[int(name)]
    return None
