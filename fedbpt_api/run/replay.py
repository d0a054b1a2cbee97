"""The whole run again from what its folder holds: no server, no network, the same to the bit.

Candidates, updates, merges and choices are computed anew; where a score is needed, the journals have it. So a
replay proves that a result is what the answers say, on any machine that has the folder and the texts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from fedbpt_api.errors import FedbptError, RunFolderError
from fedbpt_api.run.config import Settings, build_settings, load_task
from fedbpt_api.run.folder import RunFolder, read_result
from fedbpt_api.run.inputs import Inputs, read_settings
from fedbpt_api.run.parties import Keep
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.scorer import Stopped
from fedbpt_api.task import Task

COMPARED = ("rounds.jsonl", "prompts.jsonl", "prompt.json", "result.json")
"""Files that a replay makes anew."""

_CLOCKS = frozenset({"seconds", "folder"})  # what a clock measured, and where the run lay
_STOPPED = _CLOCKS | {"duplicates"}  # a replay does not know at which question the user stopped the run


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay came to.

    Attributes:
        answers: Scored examples that were looked up.
        rounds: Rounds that were computed anew.
        differences: Where it is not the run that the folder tells of, each a sentence; none if it is.
    """

    answers: int
    rounds: int
    differences: tuple[str, ...]


async def replay(
    folder: Path, task: Task | None = None, *, data: Mapping[str, object] = MappingProxyType({})
) -> Replay:
    """Compute a run anew and compare.

    Args:
        folder: The run's; nothing in it is changed.
        task: Its texts, where they were in memory; else its files are read.
        data: Where the data files are now, by setting: {"clients.0.train": path, "data.test": path}.

    Raises:
        ConfigError: The texts are not the run's.
        RunFolderError: There is no such run, or a file of it is damaged.
    """
    settings = _moved(read_settings(folder), data)
    task = task if task is not None else load_task(settings)
    Inputs.read(folder).check(task, settings)
    told = (folder / "result.json").exists()  # a run that was killed tells of no end
    stopped = told and read_result(folder).stopped == "cancelled"
    ended: Exception = BudgetSpent("recorded answers") if told and not stopped else Stopped()
    with tempfile.TemporaryDirectory(prefix="fedbpt-replay-") as place:
        again = RunFolder.begin(Path(place) / "run", settings, Inputs.of(task))
        tuner = Tuner(settings, task, again, keep=Keep(folder, ended))
        differences: list[str] = []
        try:
            await tuner.run()
        except RunFolderError:
            raise
        except (BudgetSpent, Stopped) as error:
            differences.append(
                f"the replay asks for what the run never did ({str(error) or 'it was stopped'})"
            )
        except FedbptError as error:
            if told:  # else it ends where the run was killed
                differences.append(f"the replay ended early: {error.message}")
        status = tuner.status
        compared = COMPARED if told else COMPARED[:2]
        apart = _STOPPED if stopped else _CLOCKS
        differences += [d for name in compared if (d := _difference(folder, again.path, name, told, apart))]
    return Replay(status.scored, status.round, tuple(differences))


def _moved(settings: Settings, data: Mapping[str, object]) -> Settings:
    """The settings with data files elsewhere."""
    if not data:
        return settings
    values = settings.model_dump(mode="json")
    for key, path in data.items():
        *way, last = key.split(".")
        place: Any = values
        try:
            for name in way:
                place = place[int(name)] if isinstance(place, list) else place[name]
            known = last in place and last in ("train", "dev", "test")
        except (KeyError, IndexError, TypeError, ValueError):
            known = False
        if not known:
            raise RunFolderError(
                f"{key} names no data file of the run", "for example: clients.0.train, data.test"
            )
        place[last] = str(Path(str(path)).absolute())
    return build_settings(values, source="command line")


def _difference(old: Path, new: Path, name: str, told: bool, apart: frozenset[str]) -> str:
    """How a file of the replay differs from the run's, in a sentence; empty where it does not."""
    if not (old / name).exists():
        return "" if not told else f"{name} is missing from the run's folder"
    if not (new / name).exists():
        return f"{name}: the replay has none"
    if name.endswith(".jsonl"):
        lines, again = [_lines(place / name) for place in (old, new)]
        if not told:  # a run that was killed may have been cut off anywhere
            again = again[: len(lines)]
        for number, (a, b) in enumerate(zip(lines, again, strict=False), start=1):
            if found := _first(a, b, apart):
                return f"{name}, line {number}: {found}"
        if len(lines) != len(again):
            return f"{name} has {len(lines)} lines, the replay {len(again)}"
        return ""
    if name == "prompt.json" and (old / name).read_bytes() == (new / name).read_bytes():
        return ""
    then, now = (_read((place / name).read_bytes(), place / name) for place in (old, new))
    found = _first(then, now, apart)
    return f"{name}: {found}" if found else ""


def _lines(path: Path) -> list[Any]:
    return [_read(line, path) for line in path.read_bytes().splitlines()]


def _read(data: bytes, path: Path) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RunFolderError(f"{path} is not valid JSON: {error}", "restore it from a copy") from None


def _first(then: Any, now: Any, apart: frozenset[str], key: str = "") -> str:
    """The first place where two JSON values differ, but for the keys `apart`; empty where they do not."""
    pairs: list[tuple[object, Any, Any]] = []
    if isinstance(then, dict) and isinstance(now, dict):
        names = [name for name in dict.fromkeys((*then, *now)) if name not in apart]
        pairs = [(name, then.get(name), now.get(name)) for name in names]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = list(zip(range(len(then)), then, now, strict=True))
    elif then != now:
        return f"{key or 'it'} was {_short(then)}, the replay has {_short(now)}"
    found = (_first(a, b, apart, f"{key}.{name}" if key else str(name)) for name, a, b in pairs)
    return next(filter(None, found), "")


def _short(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
