"""How far estimates are off: each of the runs in benchmarks/results foreseen, beside what it really took.

    FEDBPT_DATA=... python benchmarks/estimates.py --out DIR

For tweets (five seeds), SST-2 and AG's News (five splits each): scored examples and prompt tokens of the
search, estimated and spent, and the error in per cent. Nothing is scored.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated

import fewshot
import orjson
import tweets
import typer

from fedbpt_api import RunResult, Settings, load_task
from fedbpt_api.run.estimate import estimate

RESULTS = Path(__file__).parent / "results"


def runs(data: Path, out: Path) -> Iterator[tuple[str, Settings, Path]]:
    """Name, settings and result of every run."""
    for seed in range(5):
        settings = tweets.settings_of(seed, 500, out / "tweets", [])
        yield f"tweets {seed}", settings, RESULTS / "tweets" / f"{seed}.json"
    for name, rows, file in (("sst2", None, "{}.json"), ("agnews", 1000, "{}/result.json")):
        for split in fewshot.SPLITS:
            settings = fewshot.settings_of(name, split, data, out / name, (8000, rows, "test"), [])
            yield f"{name} {split}", settings, RESULTS / name / file.format(split)


def main(out: Annotated[Path, typer.Option(help="Folder for the texts.")]) -> None:
    data = Path(os.environ.get("FEDBPT_DATA", ""))
    if not (data / "sst2").is_dir():
        sys.exit("set FEDBPT_DATA to the folder that holds sst2, agnews and fewshot16")
    errors: dict[str, list[tuple[float, float]]] = {}
    print("| run | scored, estimated | spent | off | tokens, estimated | spent | off |\n" + "|---" * 7 + "|")
    for name, settings, path in runs(data, out):
        made = asyncio.run(estimate(settings, load_task(settings), probes=0)).total
        spent = RunResult.from_dict(orjson.loads(path.read_bytes())).spent.values()
        scored, tokens = (sum(int(counts[key]) for counts in spent) for key in ("scored", "prompt_tokens"))
        off = 100 * (made.scored / scored - 1), 100 * (made.prompt_tokens / tokens - 1)
        errors.setdefault(name.split()[0], []).append(off)
        scored_cells = f"{made.scored:,} | {scored:,} | {off[0]:+.1f} %"
        token_cells = f"{made.prompt_tokens:,} | {tokens:,} | {off[1]:+.1f} %"
        print(f"| {name} | {scored_cells} | {token_cells} |", flush=True)
    for name, found in {**errors, "all": [off for part in errors.values() for off in part]}.items():
        middle = [median(abs(off[i]) for off in found) for i in range(2)]
        print(f"\n{name}: median error {middle[0]:.1f} % in scored examples, {middle[1]:.1f} % in tokens")


if __name__ == "__main__":
    typer.run(main)
