"""What a run was given, so that it is noticed when it is to go on with something else.

A run's texts must be the same to the letter when it goes on or is replayed. Of each part of each client's
texts the folder keeps their number and a slow, salted hash: enough to see a change, and no text can be tried
out against it in bulk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from fedbpt_api.errors import ConfigError, RunFolderError
from fedbpt_api.prompts.tuned import read_json
from fedbpt_api.run.config import Settings, build_settings, load_settings, rooted
from fedbpt_api.task import Task

_LIMIT = 50_000_000  # bytes
_BEFORE_METHODS = "rounds"  # what a run did before a method could be named
_WORK = 1 << 12  # scrypt's cost: some 10 ms a part


@dataclass(frozen=True, slots=True)
class Inputs:
    """What tells whether data and configuration are still the same.

    Attributes:
        texts: "client.part" to how many texts it has, and their hash.
        config: The configuration file; None where there was none.
        overrides: Settings from the command line, which won over it.
    """

    texts: Mapping[str, tuple[int, str]]
    config: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Inputs:
        """Those of a task."""
        parts = {f"{client.name}.{part}": rows for client in task.clients for part, rows in client.parts()}
        with ThreadPoolExecutor() as pool:  # a slow hash on every core: clients may be many
            digests = list(pool.map(_hash, parts, parts.values()))
        texts = {name: (len(parts[name]), digest) for name, digest in zip(parts, digests, strict=True)}
        return cls(
            texts,
            str(config.resolve()) if config else None,
            {key: rooted(key, value) for key, value in (overrides or {}).items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        texts = {name: [n, digest] for name, (n, digest) in self.texts.items()}
        return {"texts": texts, "config": self.config, "overrides": dict(self.overrides)}

    @classmethod
    def read(cls, folder: Path) -> Inputs:
        """Those of a run folder.

        Raises:
            RunFolderError: The file is missing or damaged.
        """
        data = read_json(folder / "inputs.json", _LIMIT)
        try:
            texts = {str(name): (int(n), str(digest)) for name, (n, digest) in data["texts"].items()}
            return cls(texts, data["config"], dict(data["overrides"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"{folder / 'inputs.json'} is damaged: {error}", "restore it from a copy"
            ) from None

    def check(self, task: Task, settings: Settings) -> None:
        """Go on only where a task has the same texts.

        Raises:
            ConfigError: With every part that differs, and its file.
        """
        now = Inputs.of(task).texts
        files = {
            f"{client.name}.{part}": path
            for client in settings.clients
            for part in ("train", "dev", "test")
            if (path := getattr(client, part)) is not None
        }
        problems = []
        for name in sorted(set(now) | set(self.texts)):
            (n, digest), (m, other) = self.texts.get(name, (0, "")), now.get(name, (0, ""))
            if digest != other:
                where = f"clients.{name}" + (f" ({files[name]})" if name in files else "")
                how = f"{n} texts then, {m} now" if n != m else f"{n} texts as then, but others"
                problems.append(f"{where} is not what it was when the run began: {how}")
        if problems:
            raise ConfigError(problems, "put the data back, or start a new run")

    def check_config(self, settings: Settings) -> None:
        """Go on only where the configuration file, if it is still there, says what the run began with.

        Raises:
            ConfigError: With every setting that differs.
        """
        if self.config is None or not Path(self.config).exists():
            return
        now = load_settings(Path(self.config), self.overrides).model_dump(mode="json")
        problems = [
            f"{self.config}: {key} was {orjson.dumps(old).decode()} when the run began, it is "
            f"{orjson.dumps(new).decode()}"
            for key, old, new in differences(settings.model_dump(mode="json"), now)
        ]
        if problems:
            raise ConfigError(
                problems, "put it back, start a new run, or go on as the run began: fedbpt resume --as-begun"
            )


def read_settings(folder: Path) -> Settings:
    """The settings that a run began with.

    Raises:
        RunFolderError: There is no such run, or the file is damaged.
    """
    path = folder / "settings.json"
    values = read_json(path, _LIMIT)
    if not isinstance(values, dict):
        raise RunFolderError(f"{path} holds no settings", "restore it from a copy")
    values.setdefault("method", _BEFORE_METHODS)
    try:
        return build_settings(values, base=folder, source=str(path), files=False)
    except ConfigError as error:
        raise RunFolderError(f"{path} is damaged: {error.problems[0]}", "restore it from a copy") from None


def _hash(name: str, rows: object) -> str:
    data = hashlib.blake2b(orjson.dumps(rows)).digest()
    return hashlib.scrypt(data, salt=name.encode(), n=_WORK, r=8, p=1, dklen=16).hex()


def differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys at which two nested values differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys((*old, *new))
        return [
            d
            for name in names
            for d in differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [(key, old, new)]
