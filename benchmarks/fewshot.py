"""SST-2 or AG's News, 16 examples a label: the tuned prompt beside the simple ones, over the five splits.

    FEDBPT_DATA=... python benchmarks/fewshot.py sst2 --out benchmarks/results/sst2

Prints mean and standard deviation of test accuracy over the splits for every row, and the gains that
count. Each split's run folder is kept, so a bench that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from fedbpt_api import RunResult, Settings, load_settings, load_task, tune_sync
from fedbpt_api.bench.grid import balanced
from fedbpt_api.data import read_examples, write_examples
from fedbpt_api.run.folder import read_result
from fedbpt_api.run.result import ALL_CLIENTS

SPLITS = (13, 21, 42, 87, 100)
HERE = Path(__file__).parent


def main(
    dataset: Annotated[str, typer.Argument(help="sst2 or agnews.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs and the table.")],
    splits: Annotated[list[int] | None, typer.Option(help="Only these splits.")] = None,
    scored: Annotated[int, typer.Option(help="Budget in scored examples.")] = 8000,
    rows: Annotated[int | None, typer.Option(help="Test rows, balanced; all where not given.")] = None,
    part: Annotated[str, typer.Option(help="test, or dev while anything is still being chosen.")] = "test",
    sets: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE settings, JSON values.")] = None,
) -> None:
    data = Path(os.environ.get("FEDBPT_DATA", ""))
    if not (data / dataset).is_dir():
        sys.exit("set FEDBPT_DATA to the folder that holds sst2, agnews and fewshot16")
    results = {
        split: one(dataset, split, data, out, (scored, rows, part), sets or []) for split in splits or SPLITS
    }
    table(results, out)


def one(
    dataset: str, split: int, data: Path, out: Path, size: tuple[int, int | None, str], sets: list[str]
) -> RunResult:
    """One split's run, or what it came to when it ran before."""
    folder = out / str(split)
    if (folder / "result.json").exists():
        return read_result(folder)
    settings = settings_of(dataset, split, data, out, size, sets)
    print(f"split {split}: tuning", flush=True)
    return tune_sync(settings, task=load_task(settings), run_dir=folder)


def settings_of(
    dataset: str, split: int, data: Path, out: Path, size: tuple[int, int | None, str], sets: list[str]
) -> Settings:
    """The settings of a split's run, its texts written into `out`; `size` as on the command line."""
    scored, rows, part = size
    work = (out / "data" / str(split)).resolve()
    work.mkdir(parents=True, exist_ok=True)
    tests = list(read_examples(data / dataset / f"{part}.jsonl"))
    labels = sorted({str(example.label) for example in tests})
    write_examples(work / "test.jsonl", balanced(tests, labels, rows) if rows else tests)
    for name in ("train", "dev"):
        write_examples(
            work / f"{name}.jsonl", read_examples(data / "fewshot16" / dataset / str(split) / f"{name}.jsonl")
        )
    overrides: dict[str, object] = {
        f"clients.0.{name}": str(work / f"{name}.jsonl") for name in ("train", "dev", "test")
    }
    overrides |= {"budget.scored": scored, "seed": split, "test.compare": "all"}
    for item in sets:
        key, _, value = item.partition("=")
        overrides[key] = json.loads(value)
    return load_settings(HERE / f"{dataset}.toml", overrides)


def table(results: dict[int, RunResult], out: Path) -> None:
    """Print and write means, deviations and the gains over the simple prompts."""
    accuracy: defaultdict[str, list[float]] = defaultdict(list)
    for result in results.values():
        if result.test is not None:
            for row in result.test.rows:
                if row.client == ALL_CLIENTS:
                    accuracy[row.method].append(100 * row.accuracy)
    lines = [f"| method | mean | sd | {' | '.join(map(str, results))} |", "|---" * (3 + len(results)) + "|"]
    for method, values in accuracy.items():
        spread = stdev(values) if len(values) > 1 else 0.0
        cells = " | ".join(f"{v:.1f}" for v in values)
        lines.append(f"| {method} | {mean(values):.2f} | {spread:.2f} | {cells} |")
    tuned, start, empty = (accuracy[m] for m in ("tuned", "start+bias", "prompt 2+bias"))
    gains = [t - s for t, s in zip(tuned, start, strict=True)]
    worst = min(t - max(s, e) for t, s, e in zip(tuned, start, empty, strict=True))
    lines.append(f"\ntuned minus start+bias: {mean(gains):+.2f} points on average")
    lines.append(f"tuned minus the better simple prompt with bias, worst split: {worst:+.2f} points")
    text = "\n".join(lines)
    print(text)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
