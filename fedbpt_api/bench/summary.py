"""What a suite's runs come to: means and standard deviations over seeds, as Markdown, CSV, JSON and SVG."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import orjson

from fedbpt_api.bench.grid import Cell
from fedbpt_api.bench.plot import Curve, curves_svg
from fedbpt_api.errors import ConfigError
from fedbpt_api.methods import RECIPES
from fedbpt_api.run.ensemble import ORIGIN
from fedbpt_api.run.result import ALL_CLIENTS, RunResult

Point = tuple[int, float, float]  # scored examples; development loss and accuracy of the best so far


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished run. Shares are 0 to 1; no prompt and no text is part of it.

    Attributes:
        task: Its task.
        split: How texts were spread.
        method: The recipe or variant.
        base: The recipe.
        budget: Scored examples it might take; 0 where it searches for nothing.
        seed: Its seed.
        accuracy: On the test texts.
        accuracy_with_bias: The same prompt read with a fitted bias, where the recipe itself fits none.
        n_test: Test texts.
        scored: Scored examples it took, without the test's.
        test_scored: Those of the test.
        bytes_up: Largest message of a search round from a client.
        bytes_down: Largest to one.
        stopped: Why it ended.
        curve: For each prompt that was judged: scored examples so far, development loss and accuracy of the
            best prompt so far; at the end those of the result.
    """

    task: str
    split: str
    method: str
    base: str
    budget: int
    seed: int
    accuracy: float
    accuracy_with_bias: float | None
    n_test: int
    scored: int
    test_scored: int
    bytes_up: int
    bytes_down: int
    stopped: str
    curve: tuple[Point, ...]

    @classmethod
    def of(cls, cell: Cell, base: str, result: RunResult) -> Entry:
        """The entry of a run that has been tested."""
        assert result.test is not None, "a bench always has test texts"
        rows = {row.method: row for row in result.test.rows if row.client == ALL_CLIENTS}
        sent = [client for record in result.rounds for client in record.clients]
        with_bias = rows.get("tuned+bias")
        return cls(
            task=cell.task,
            split=cell.split,
            method=cell.method,
            base=base,
            budget=cell.budget,
            seed=cell.seed,
            accuracy=rows["tuned"].accuracy,
            accuracy_with_bias=with_bias.accuracy if with_bias is not None else None,
            n_test=rows["tuned"].n,
            scored=sum(int(counts["scored"]) for counts in result.spent.values()),
            test_scored=sum(int(counts.get("test_scored", 0)) for counts in result.spent.values()),
            bytes_up=max((client.bytes_up for client in sent), default=0),
            bytes_down=max((client.bytes_down for client in sent), default=0),
            stopped=result.stopped,
            curve=tuple(_curve(Path(result.folder))) if result.folder else (),
        )

    @property
    def cell(self) -> Cell:
        return Cell(self.task, self.split, self.method, self.budget, self.seed)

    @property
    def fall(self) -> float:
        """How far development accuracy in the last tenth of the curve lies below its best; 0 without one."""
        known = [(scored, accuracy) for scored, _, accuracy in self.curve if math.isfinite(accuracy)]
        if not known:
            return 0.0
        late = [accuracy for scored, accuracy in known if scored >= 0.9 * known[-1][0]]
        return max(accuracy for _, accuracy in known) - min(late)


def _curve(folder: Path) -> Iterator[Point]:
    """The best so far by held-out loss, after each prompt that a run judged."""
    best = math.inf
    point = (math.nan, math.nan)
    with (folder / "prompts.jsonl").open("rb") as file:
        for line in map(orjson.loads, file):
            result = line["origin"] == ORIGIN  # what was chosen, whatever its loss
            if line["loss"] is not None and line["dev_loss"] is not None and (result or line["loss"] < best):
                best, point = line["loss"], (line["dev_loss"], line["dev_accuracy"])
            if "scored" in line:  # earlier versions did not write it
                yield line["scored"], *point


def read_entries(path: Path) -> list[Entry]:
    """The runs of a results.json that `summarise` wrote, here or on another machine.

    Raises:
        ConfigError: It cannot be read, or is something else.
    """
    try:
        runs = orjson.loads(path.read_bytes())["runs"]
        return [Entry(**{**run, "curve": tuple(_point(*point) for point in run["curve"])}) for run in runs]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", "check the path") from None
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"{path} is no results.json of a bench", "name one that a bench wrote") from None


def _point(scored: int, loss: float | None, accuracy: float | None) -> Point:
    """JSON has no NaN: what was not known yet is null there."""
    return scored, math.nan if loss is None else loss, math.nan if accuracy is None else accuracy


def summarise(entries: Iterable[Entry], out: Path, head: Mapping[str, str]) -> str:
    """Write table.md, results.csv, results.json and a plot for each task and split; give the table.

    Args:
        entries: Finished runs.
        out: Folder to write to.
        head: What took part: versions, the command.
    """
    ordered = sorted(entries, key=lambda e: (e.task, e.split, _place(e), e.budget, e.seed))
    text = table(ordered)
    out.mkdir(parents=True, exist_ok=True)
    said = "\n".join(f"- {name}: {value}" for name, value in head.items())
    (out / "table.md").write_text(f"{text}\n{said}\n", encoding="utf-8")
    (out / "results.csv").write_text(_csv(ordered), encoding="utf-8")
    data = {"about": dict(head), "runs": [asdict(entry) for entry in ordered]}
    (out / "results.json").write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2))
    for (task, split), some in _grouped(ordered, lambda e: (e.task, e.split)).items():
        methods = _grouped([e for e in some if e.budget and e.curve], lambda e: e.method)
        for name, value, label in (
            ("accuracy", 2, "development accuracy"),
            ("loss", 1, "development loss"),
        ):
            lines = [
                Curve(method, [[(p[0], p[value]) for p in e.curve] for e in _longest(runs)])
                for method, runs in methods.items()
            ]
            if lines:
                (out / f"{task}-{split}-{name}.svg").write_text(
                    curves_svg(lines, "scored examples", f"{label}, best so far"), encoding="utf-8"
                )
    return text


def table(entries: Sequence[Entry]) -> str:
    """A Markdown table for each task and split: accuracy in per cent, mean and deviation over seeds.

    "fall" is how many points development accuracy ends below its best, in the worst run; "bytes" are the
    largest messages of a search round, up and down.
    """
    parts = []
    for (task, split), some in _grouped(entries, lambda e: (e.task, e.split)).items():
        seeds = sorted({e.seed for e in some})
        names = ["method", "budget", "mean", "sd", *(f"seed {s}" for s in seeds), "scored", "fall", "bytes"]
        lines = [
            f"### {task}, {split} ({some[0].n_test:,} test texts)\n",
            f"| {' | '.join(names)} |",
            "|---" * len(names) + "|",
        ]
        for (method, budget), runs in _grouped(some, lambda e: (e.method, e.budget)).items():
            for label, values in _rows(method, runs):
                cells = " | ".join(f"{100 * values[s]:.1f}" if s in values else "" for s in seeds)
                per_cent = [100 * v for v in values.values()]
                spread = f"{stdev(per_cent):.1f}" if len(per_cent) > 1 else "\u2013"
                cost = f"{mean(e.scored for e in runs):,.0f}"
                shown = f"{budget:,}" if budget else "\u2013"
                fall = f"{100 * max(e.fall for e in runs):.1f}"
                sent = f"{max(e.bytes_up for e in runs):,} / {max(e.bytes_down for e in runs):,}"
                kept = f"{cost} | {fall} | {sent}"
                lines.append(f"| {label} | {shown} | {mean(per_cent):.1f} | {spread} | {cells} | {kept} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _rows(method: str, runs: Sequence[Entry]) -> list[tuple[str, dict[int, float]]]:
    """A method's rows: its own reading, and with a bias where it fits none itself."""
    mark = "" if RECIPES[runs[0].base].private else " (not private)"
    rows = [(method + mark, {e.seed: e.accuracy for e in runs})]
    with_bias = {e.seed: e.accuracy_with_bias for e in runs if e.accuracy_with_bias is not None}
    if len(with_bias) == len(runs) and runs[0].base != "start":  # which has a method of its own with a bias
        rows.append((f"{method}, with bias{mark}", with_bias))
    return rows


def _csv(entries: Sequence[Entry]) -> str:
    text = io.StringIO()
    names = [name for name in Entry.__slots__ if name != "curve"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(entry, name) for name in names] for entry in entries)
    return text.getvalue()


def _longest(runs: Sequence[Entry]) -> list[Entry]:
    """A method's runs with the largest of its budgets."""
    most = max(e.budget for e in runs)
    return [e for e in runs if e.budget == most]


def _place(entry: Entry) -> tuple[int, str]:
    """Recipes in the order of their list, variants behind them."""
    names = list(RECIPES)
    return (names.index(entry.method) if entry.method in names else len(names), entry.method)


def _grouped(entries: Iterable[Entry], key: Any) -> dict[Any, list[Entry]]:
    groups: defaultdict[Any, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[key(entry)].append(entry)
    return dict(groups)
