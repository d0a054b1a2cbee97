"""The demo over several seeds, with more test tweets: does the tuned prompt really beat the simple ones?

    python benchmarks/tweets.py --out benchmarks/results/tweets

Each seed draws other training, development and test tweets. Prints every seed's accuracies, their means,
and the paired differences of all seeds pooled, with 95 % intervals. A finished seed is not run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from fedbpt_api import RunResult, Settings, load_settings, load_task, tune_sync
from fedbpt_api.federation.tally import PairedCounts
from fedbpt_api.run.folder import read_result
from fedbpt_api.run.result import ALL_CLIENTS
from fedbpt_api.run.stats import mcnemar_p, paired_interval

HERE = Path(__file__).parent
DEMO = HERE.parent / "examples" / "tweets"


def main(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the table.")],
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 5,
    tests: Annotated[int, typer.Option(help="Test tweets a party.")] = 500,
    sets: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE settings, JSON values.")] = None,
) -> None:
    results = {seed: one(seed, tests, out, sets or []) for seed in range(seeds)}
    table(results, out)


def one(seed: int, tests: int, out: Path, sets: list[str]) -> RunResult:
    """One seed's run, or what it came to when it ran before."""
    folder = out / str(seed)
    if (folder / "result.json").exists():
        return read_result(folder)
    settings = settings_of(seed, tests, out, sets)
    print(f"seed {seed}: tuning", flush=True)
    return tune_sync(settings, task=load_task(settings), run_dir=folder)


def settings_of(seed: int, tests: int, out: Path, sets: list[str]) -> Settings:
    """The settings of a seed's run, its tweets prepared in `out`."""
    data = (out / "data" / str(seed)).resolve()
    prepare = [sys.executable, str(DEMO / "prepare.py"), str(data), "--test", str(tests), "--seed", str(seed)]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    overrides: dict[str, object] = {"seed": seed}
    config = tomllib.loads((DEMO / "tweets.toml").read_text(encoding="utf-8"))
    for i, client in enumerate(config["clients"]):
        folder_of = data / client["name"]
        overrides |= {f"clients.{i}.{p}": str(folder_of / f"{p}.jsonl") for p in ("train", "dev", "test")}
    for item in sets:
        key, _, value = item.partition("=")
        overrides[key] = json.loads(value)
    return load_settings(DEMO / "tweets.toml", overrides)


def table(results: dict[int, RunResult], out: Path) -> None:
    """Print and write the seeds' accuracies and the pooled paired differences."""
    accuracy: defaultdict[str, list[float]] = defaultdict(list)
    counts: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for result in results.values():
        if result.test is None:
            continue
        overall = {row.method: row for row in result.test.rows if row.client == ALL_CLIENTS}
        for method, row in overall.items():
            accuracy[method].append(100 * row.accuracy)
        for paired in result.test.paired:
            counts[paired.against].append((overall["tuned"].correct, paired.wins, paired.losses))
    n = sum(next(iter(r.test.rows)).n for r in results.values() if r.test is not None)
    lines = [f"| method | mean | sd | {' | '.join(map(str, results))} |", "|---" * (3 + len(results)) + "|"]
    for method, values in accuracy.items():
        spread = stdev(values) if len(values) > 1 else 0.0
        cells = " | ".join(f"{v:.1f}" for v in values)
        lines.append(f"| {method} | {mean(values):.2f} | {spread:.2f} | {cells} |")
    for against, rows in counts.items():
        correct, wins, losses = (sum(column) for column in zip(*rows, strict=True))
        both = correct - wins
        low, high = paired_interval(PairedCounts(both, wins, losses, n - both - wins - losses))
        lines.append(
            f"\ntuned minus {against}: {100 * (wins - losses) / n:+.2f} points "
            f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f}, "
            f"n = {n:,}, p = {mcnemar_p(wins, losses):.2g})"
        )
    text = "\n".join(lines)
    print(text)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
