"""From a suite to its runs: every cell's settings and texts. Nothing is drawn but by the cell's seed."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fedbpt_api.bench.suite import SplitOver, Suite
from fedbpt_api.data import Columns, read_examples, split_dirichlet, split_iid
from fedbpt_api.errors import ConfigError
from fedbpt_api.methods import RECIPES, UNSEARCHED, with_preset
from fedbpt_api.run.config import Settings, build_settings
from fedbpt_api.task import ClientData, Example, LabelWords, Place, Task, Template


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a suite. `budget` is in scored examples, 0 for a method that searches for nothing."""

    task: str
    split: str
    method: str
    budget: int
    seed: int

    @property
    def folder(self) -> Path:
        """Where it is kept, below the suite's runs."""
        return Path(self.task, self.split, self.method, str(self.budget), str(self.seed))

    def __str__(self) -> str:
        budget = f", {self.budget:,} scored examples" if self.budget else ""
        return f"{self.task}, {self.split}, {self.method}{budget}, seed {self.seed}"


def cells(suite: Suite) -> tuple[Cell, ...]:
    """All runs of a suite, each once, seed by seed so that a part of them says something already."""
    found = [
        Cell(task, split, method, 0 if _unsearched(suite, method) else budget, seed)
        for grid in suite.grid
        for seed in grid.seeds
        for task in grid.tasks
        for split in grid.splits
        for method in grid.methods
        for budget in grid.budgets
    ]
    return tuple(dict.fromkeys(found))


def _unsearched(suite: Suite, method: str) -> bool:
    variant = suite.variant(method)
    preset = RECIPES[variant.base].preset["search"]["algorithm"]
    return variant.set.get("search.algorithm", preset) in UNSEARCHED


def prepared(suite: Suite, cell: Cell) -> tuple[Settings, Task]:
    """A cell's settings and texts.

    Raises:
        ConfigError: Its config or data cannot be used.
    """
    values = _config(suite, cell)
    clients = _clients(suite, cell, values)
    values["clients"] = [{"name": client.name, "train": "(in memory)"} for client in clients]
    base = suite.path(suite.tasks[cell.task].config).parent
    settings = build_settings(values, base=base, files=False, source=str(cell))
    place: Place = "after" if settings.prompt_place == "after" else "before"
    template = Template.parse(settings.template, place)
    return settings, Task(template, LabelWords.from_mapping(settings.labels), clients)


def _config(suite: Suite, cell: Cell) -> dict[str, Any]:
    path = suite.path(suite.tasks[cell.task].config)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"tasks.{cell.task}.config: {path} cannot be read: {error}") from None
    values.pop("data", None)
    variant = suite.variant(cell.method)
    values |= {"method": variant.base, "seed": cell.seed}
    # A recipe is what it says: the config's own search, federation and verbalizer are not put on top of it.
    kept = {"search": values.pop("search", {}), "federation": values.pop("federation", {})}
    values.pop("verbalizer", None)
    values = with_preset(values)
    values["search"] = {**kept["search"], **values["search"]}
    values["federation"] = {**kept["federation"], **values.get("federation", {})}
    keys: dict[str, Any] = {
        "test.compare": "none",
        "cache.scores": True,
        "cache.charged": True,
        **suite.set,
        **variant.set,
        "budget.scored": cell.budget or 1_000_000,
    }
    for key, value in keys.items():
        *way, last = key.split(".")
        place = values
        for name in way:
            place = place.setdefault(name, {})
        place[last] = value
    return values


def _clients(suite: Suite, cell: Cell, values: dict[str, Any]) -> tuple[ClientData, ...]:
    files, split = suite.tasks[cell.task], suite.split(cell.split)
    labels = tuple(values.get("labels", {}))
    columns = Columns(**values.get("columns", {}))

    def read(path: Path) -> tuple[Example, ...]:
        return read_examples(path, columns, labels=labels)

    if split.each is not None:
        if files.pool is None:
            raise ConfigError(f"tasks.{cell.task}.pool: the split {cell.split!r} draws from it; name a file")
        pool = suite.path(files.pool)
        train, dev = _drawn(read(pool), labels, split.each, cell.seed, pool)
    elif files.fewshot is not None:
        folder = suite.path(files.fewshot) / str(cell.seed)
        train, dev = (read(folder / f"{part}.jsonl") for part in ("train", "dev"))
    else:
        raise ConfigError(f"tasks.{cell.task}.fewshot: the split {cell.split!r} needs it; name a folder")
    test = read(suite.path(files.test))
    if files.rows is not None:
        test = balanced(test, labels, files.rows, suite.path(files.test))
    parts = [_spread(part, split, cell.seed) for part in (train, dev)]
    return tuple(
        ClientData(f"client{n + 1:02d}", rows[0], rows[1], test if n == 0 else ())
        for n, rows in enumerate(zip(*parts, strict=True))
    )


def _spread(rows: Sequence[Example], split: SplitOver, seed: int) -> Sequence[tuple[Example, ...]]:
    if split.split == "dirichlet" and split.clients > 1:
        return split_dirichlet(rows, split.clients, split.alpha, seed)
    return split_iid(rows, split.clients, seed)


def _drawn(
    pool: Sequence[Example], labels: Sequence[str], each: int, seed: int, source: Path
) -> Iterator[tuple[Example, ...]]:
    """Training and development texts, `each` of every label in both, without a common one."""
    chosen = [_sample(pool, label, 2 * each, Random(f"{seed} {label}"), source) for label in labels]
    for part in (slice(0, each), slice(each, None)):
        yield tuple(e for rows in chosen for e in rows[part])


def balanced(
    examples: Sequence[Example], labels: Sequence[str], rows: int, source: Path
) -> tuple[Example, ...]:
    """The same number of rows of each label, `rows` in all, always the same ones; `source` is their file.

    Raises:
        ConfigError: A label has fewer.
    """
    each = rows // len(labels)
    return tuple(e for label in labels for e in _sample(examples, label, each, Random(0), source))


def _sample(examples: Sequence[Example], label: str, number: int, rng: Random, source: Path) -> list[Example]:
    """So many texts of a label."""
    found = [e for e in examples if e.label == label]
    if len(found) < number:
        raise ConfigError(
            f"{source}: {len(found)} texts have the label {label!r}, {number} are asked for",
            "ask for fewer (rows, each), or leave rows out to take all test texts",
        )
    return rng.sample(found, number)
