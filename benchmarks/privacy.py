"""What the modes of `privacy` cost: one task, the same parties and texts, run with each of them.

    FEDBPT_DATA=... python benchmarks/privacy.py --out DIR [--task sst2] [--set 'backend.kind="vllm"' ...]

"tweets" is the demo (four parties, 32 training and 32 development tweets each); "sst2" has four parties with
100 and 100 reviews each. The tuned prompt of every run reads the same test texts afterwards, without noise;
that is the accuracy in the table, whatever noise the run's own test had. Runs with noise are repeated. A
finished run is kept. Answers are kept in DIR too, so that runs share them (DIR/store).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from fedbpt_api import Settings, TunedPrompt, load_settings, tune
from fedbpt_api.data import read_examples, write_examples
from fedbpt_api.run.classify import Classifier
from fedbpt_api.run.config import build_settings, load_task
from fedbpt_api.run.folder import read_result
from fedbpt_api.task import Example, Task

HERE = Path(__file__).parent
DEMO = HERE.parent / "examples" / "tweets"
PARTIES, EACH = 4, 100  # of SST-2: training texts a party, and as many development texts

NOISY: dict[str, object] = {"privacy.mode": "gaussian", "verbalizer.kind": "bias"}
RUNS: dict[str, dict[str, object]] = {
    "none": {},
    "none, label words and bias only": {"verbalizer.kind": "bias"},
    "sums": {"privacy.mode": "sums"},
    "gaussian, one text, epsilon 8": NOISY,
    "gaussian, one text, epsilon 3": NOISY | {"privacy.epsilon": 3.0},
    "gaussian, one text, epsilon 1": NOISY | {"privacy.epsilon": 1.0, "privacy.prompts": 4},
    "gaussian, all texts of a party, epsilon 8": NOISY | {"privacy.unit": "party", "privacy.prompts": 4},
    "gaussian, one text, epsilon 8, method fedbpt": NOISY
    | {"method": "fedbpt", "search.rounds": 4, "privacy.prompts": 8},
    "none, method fedbpt": {"method": "fedbpt", "verbalizer.kind": "bias", "search.rounds": 4},
}


def main(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the table.")],
    task: Annotated[str, typer.Option(help="tweets or sst2.")] = "tweets",
    tests: Annotated[int, typer.Option(help="Test texts in all.")] = 600,
    repeats: Annotated[int, typer.Option(help="Runs of each setting with noise.")] = 3,
    sets: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE settings, JSON values.")] = None,
) -> None:
    os.environ["FEDBPT_CACHE"] = str((out / "store").resolve())
    changes: dict[str, Any] = {"cache.scores": True, "cache.charged": True}
    for item in sets or []:
        key, _, value = item.partition("=")
        changes[key] = json.loads(value)
    lines = ["| privacy | accuracy | sd | runs | spent |", "|---" * 5 + "|"]
    for name, own in RUNS.items():
        found = []
        for number in range(repeats if own.get("privacy.mode") == "gaussian" else 1):
            folder = out / task / f"{name} {number}".replace(",", "").replace(" ", "-")
            found.append(asyncio.run(one(task, tests, changes | own, folder)))
        accuracies = [100 * accuracy for accuracy, _ in found]
        spread = f"{stdev(accuracies):.1f}" if len(accuracies) > 1 else "-"
        spent = found[0][1].partition(";")[0] or "-"
        lines.append(f"| {name} | {mean(accuracies):.1f} | {spread} | {len(found)} | {spent} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines)
    print(text)
    (out / f"{task}.md").write_text(text + "\n", encoding="utf-8")


async def one(name: str, tests: int, changes: dict[str, Any], folder: Path) -> tuple[float, str]:
    """A run's accuracy, measured without noise, and what it says of privacy."""
    task, settings = tweets(changes, tests) if name == "tweets" else sst2(changes, tests)
    if not (folder / "result.json").exists():
        await tune(settings, task=_untested(task), run_dir=folder)
    measured = folder / "accuracy.json"
    if not measured.exists():
        backend = settings.backend
        async with await Classifier.open(TunedPrompt.load(folder), backend.kind, **backend.options) as reader:
            report = await reader.evaluate([text for client in task.clients for text in client.test])
        measured.write_text(json.dumps(report.rows[0].accuracy), encoding="utf-8")
    return float(json.loads(measured.read_text(encoding="utf-8"))), read_result(folder).privacy


def _untested(task: Task) -> Task:
    return replace(task, clients=tuple(replace(client, test=()) for client in task.clients))


def tweets(changes: dict[str, Any], tests: int) -> tuple[Task, Settings]:
    """The demo."""
    data = Path(os.environ["FEDBPT_CACHE"]) / "tweets"
    if not data.exists():
        prepare = [sys.executable, str(DEMO / "prepare.py"), str(data), "--test", str(tests // PARTIES)]
        subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    names = ("airlines", "cars", "phone-maker", "football")
    files = {
        f"clients.{i}.{part}": str(data / name / f"{part}.jsonl")
        for i, name in enumerate(names)
        for part in ("train", "dev", "test")
    }
    settings = load_settings(DEMO / "tweets.toml", changes | files)
    return load_task(settings), settings


def sst2(changes: dict[str, Any], tests: int) -> tuple[Task, Settings]:
    """Four parties with reviews of their own."""
    source = Path(os.environ["FEDBPT_DATA"]) / "sst2"
    data = Path(os.environ["FEDBPT_CACHE"]) / "sst2"
    pool = read_examples(source / "train.jsonl")
    rows = {label: [row for row in pool if row.label == label] for label in ("negative", "positive")}
    half = EACH // 2

    def part(number: int) -> list[Example]:
        return [row for own in rows.values() for row in own[number * half : (number + 1) * half]]

    clients = []
    for k in range(PARTIES):
        files = {"train": part(2 * k), "dev": part(2 * k + 1)}
        files["test"] = list(read_examples(source / "test.jsonl"))[k::PARTIES][: tests // PARTIES]
        client = {"name": f"party-{k + 1}"}
        for kind, examples in files.items():
            place = data / client["name"] / f"{kind}.jsonl"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_examples(place, examples)
            client[kind] = str(place)
        clients.append(client)
    settings = load_settings(HERE / "sst2.toml", {"budget.scored": 12_000} | changes)
    values = settings.model_dump(mode="json", exclude_unset=True) | {"clients": clients}
    settings = build_settings(values, source="sst2")
    return load_task(settings), settings


if __name__ == "__main__":
    typer.run(main)
