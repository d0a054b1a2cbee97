"""Writing a Flower app: the public part of a task, and two files that only call this package."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import tomli_w

from fedbpt_api import __version__
from fedbpt_api.errors import ConfigError
from fedbpt_api.run.public import public_of
from fedbpt_api.run.schema import Settings

_TEMPLATE: Final = resources.files("fedbpt_api.flower").joinpath("template")
_REMARK: Final = "# What is tuned, for everybody to see: it travels to all parties.\n\n"


def write_app(folder: Path, settings: Settings | None = None, run_folder: Path | None = None) -> list[Path]:
    """Write an app into a new folder.

    Args:
        folder: Where; its name is the app's.
        settings: Of a run in one process, whose public part, parties' names and server become the task's; an
            example without.
        run_folder: Where the coordinator keeps the run.

    Returns:
        The files.

    Raises:
        ConfigError: The folder is not empty, or its name is no app's.
    """
    package = re.sub(r"\W", "_", folder.resolve().name)
    if not re.match(r"[A-Za-z]", package):
        raise ConfigError(f"{folder}: an app's name begins with a letter", "choose another folder")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", "name a new folder")
    filled = {
        "name": package.replace("_", "-"),
        "package": package,
        "publisher": "fedbpt",
        "version": __version__,
        "folder": str(run_folder.resolve()) if run_folder else f"~/fedbpt-runs/{package}",
    }
    files = {
        folder / "pyproject.toml": string.Template(_read("pyproject.template")).substitute(filled),
        folder / "node.example.toml": _read("node.example.toml"),
        folder / package / "__init__.py": "",
        folder / package / "client.py": _read("client.py"),
        folder / package / "server.py": _read("server.py"),
        folder / package / "task.toml": _task(settings) if settings else _read("task.toml"),
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)


def _task(settings: Settings) -> str:
    """The public part of a run's settings, as a file."""
    parties = settings.parties or [client.name for client in settings.clients]
    if not parties:
        raise ConfigError("data: parties behind a network bring their own files", "name [[clients]] instead")
    public = {key: value for key, value in public_of(settings).items() if key not in ("search", "verbalizer")}
    chosen = settings.model_dump(mode="json", include={"search", "verbalizer"}, exclude_unset=True)
    backend = settings.backend.model_dump(mode="json")
    return _REMARK + tomli_w.dumps(_told({"parties": parties, **public, **chosen, "backend": backend}))


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not set: TOML has no null."""
    return {
        key: _told(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def _read(name: str) -> str:
    return _TEMPLATE.joinpath(name).read_text(encoding="utf-8")
