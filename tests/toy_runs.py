"""Small whole runs on the toy model: settings that fit it, and what tests look at afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedbpt_api.cli import app
from fedbpt_api.data import write_examples
from fedbpt_api.run.config import Settings, build_settings
from fedbpt_api.run.events import Event, RoundDone
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring import registry
from fedbpt_api.scoring.journal import read_journal
from fedbpt_api.task import ClientData, Task
from toy import PROMPT, Toys

Values = dict[str, object]

METHODS = (
    "Starting prompt",
    "Starting prompt + bias",
    "Starting prompt + weighted",
    "Tuned prompt",
    "Majority label",
)
"""The rows that every table of results has, as people read them."""


def make_values(task: Task, changes: Mapping[str, object] | None = None) -> Values:
    """Settings of a run of two rounds, as nested values.

    Args:
        task: The clients are named after its clients.
        changes: Other values by dotted key, such as {"search.rounds": 1, "clients.0.budget": {...}}.
    """
    values: Values = {
        "prompts": [PROMPT, ""],
        "template": "Text: {text}\nMood:",
        "labels": {"negative": " negative", "positive": " positive"},
        "clients": [{"name": client.name, "train": f"{client.name}.jsonl"} for client in task.clients],
        "budget": {"scored": 2000},
        "backend": {"kind": "toy"},
        "search": {
            "form": "words",
            "positions": 2,
            "coordinates": 2,
            "popsize": 4,
            "iterations": 1,
            "rounds": 2,
            "choice": "held-out",
        },
        "verbalizer": {"words": 12},
    }
    for key, value in (changes or {}).items():
        *way, last = key.split(".")
        place: object = values
        for name in way:
            if isinstance(place, list):
                place = place[int(name)]
            else:
                assert isinstance(place, dict)
                place = place.setdefault(name, {})
        assert isinstance(place, dict)
        place[last] = value
    return values


def make_settings(task: Task, changes: Mapping[str, object] | None = None) -> Settings:
    """`make_values`, checked."""
    return build_settings(make_values(task, changes), files=False)


@contextmanager
def installed_toys() -> Iterator[Toys]:
    """Toys of its own for one example of a property."""
    toys = Toys()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", toys.entry_points)
        yield toys


def write_config(folder: Path, task: Task, changes: Mapping[str, object] | None = None) -> Path:
    """The task's files, and a config for them in TOML."""
    values = make_values(task, changes)
    clients = values.pop("clients")
    assert isinstance(clients, list)
    for client, entry in zip(task.clients, clients, strict=True):
        for part, rows in client.parts():
            entry[part] = f"{client.name}/{part}.jsonl"
            write_examples(folder / client.name / f"{part}.jsonl", rows)
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"[{key}]", *(f"{k} = {_toml(v)}" for k, v in value.items())]
    for entry in clients:
        lines += ["[[clients]]", *(f"{k} = {_toml(v)}" for k, v in entry.items())]
    path = folder / "toy.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _toml(value: object) -> str:
    """JSON is TOML, for what stands in a toy's config."""
    return orjson.dumps(value).decode()


def without_times(path: Path) -> object:
    """A file's content without what a clock has measured."""
    if path.suffix == ".json":
        return _timeless(orjson.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [_timeless(orjson.loads(line)) for line in path.read_bytes().splitlines()]
    if path.suffix == ".journal":
        return [(record.keys, str(record.answers), record.usage) for record in read_journal(path)]
    if path.suffix == ".facts" or path.name == ".lock":
        return path.read_bytes()
    return _SECONDS_CELL.sub("<td>seconds</td>", path.read_text(encoding="utf-8"))


_SECONDS_CELL = re.compile(
    r"<td>\d+\.\d</td>(?=<td>[\d,]+</td><td>[\d,]+</td></tr>)"
)  # before the two of bytes


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key != "seconds"}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def texts_of(clients: tuple[ClientData, ...]) -> list[str]:
    """Every text of every part."""
    return [row.text for client in clients for _, rows in client.parts() for row in rows]


FILES = {
    ".lock",
    "settings.json",
    "inputs.json",
    "model.facts",
    "versions.json",
    "rounds.jsonl",
    "prompts.jsonl",
    "prompt.json",
    "result.json",
    "report.html",
    *(f"scores-{client}.journal" for client in range(3)),  # make_task's clients
}


async def run_toy(
    task: Task,
    changes: dict[str, object] | None = None,
    folder: Path | None = None,
    events: list[Event] | None = None,
) -> RunResult:
    """A run with the toy's settings and these changes."""
    listener = None if events is None else events.append
    return await Tuner(make_settings(task, changes), task, folder, listener).run()


def numbers(result: RunResult) -> list[dict[str, object]]:
    """The rounds without their times; NaN, which is unlike itself, is None."""
    return [replace(record, seconds=0.0).to_dict() for record in result.rounds]


def scored(result: RunResult) -> int:
    """Scored examples of all clients, without the test's."""
    return int(sum(counts["scored"] for counts in result.spent.values()))


def after_round(number: int, act: Callable[[], object]) -> Callable[[Event], None]:
    """A listener that acts when a round is done."""

    def listen(event: Event) -> None:
        if isinstance(event, RoundDone) and event.record.round == number:
            act()

    return listen


def contains(ids: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))


def fedbpt(*words: object, stdin: str | None = None) -> Result:
    """What the command does; no exception may reach the user."""
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result
