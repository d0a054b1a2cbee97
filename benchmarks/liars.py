"""What one hostile party of ten can do to a run: each lie beside the run without that party.

    FEDBPT_DATA=... python benchmarks/liars.py DIR --url http://127.0.0.1:8001

Ten parties share texts of SST-2's pool (`splits.iid` of main.toml); settings are the defaults. One party lies
in all its answers, in each of six ways (`fedbpt_api.bench.liars`). Answers are kept in DIR/cache and shared
by the runs, and count against each run's budget as if they were asked for. Prints a Markdown table; what a
run came to is kept in DIR, and not run again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from fedbpt_api.bench.grid import Cell, prepared
from fedbpt_api.bench.liars import LIES, lying, reached_through
from fedbpt_api.bench.suite import Suite, load_suite
from fedbpt_api.federation.responder import Responder
from fedbpt_api.run.events import Event, Warned
from fedbpt_api.run.tune import Tuner

HERE = Path(__file__).parent
LIAR = "client05"
WITHOUT, HONEST, OFF = "without it", "honest", "honest, nothing clipped or cross-scored"
app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Where results and answers are kept.")],
    url: Annotated[str, typer.Option(help="A vLLM.")] = "http://127.0.0.1:8001",
    budget: Annotated[int, typer.Option(help="Scored examples a run.")] = 4000,
    rows: Annotated[int, typer.Option(help="Test texts.")] = 300,
    seed: Annotated[int, typer.Option(help="Of split and search.")] = 13,
    split: Annotated[str, typer.Option(help="A split of main.toml.")] = "iid",
    only: Annotated[str, typer.Option(help="Runs of which the name has this in it.")] = "",
) -> None:
    if not os.environ.get("FEDBPT_DATA"):
        sys.exit("set FEDBPT_DATA to the folder that holds sst2")
    os.environ["FEDBPT_CACHE"] = str(out.resolve() / "cache")
    base = load_suite(HERE / "main.toml")
    tasks = {"sst2": base.tasks["sst2"].model_copy(update={"rows": rows})}
    suite = base.model_copy(update={"tasks": tasks, "set": {"backend.kind": "vllm", "backend.base_url": url}})
    cell = Cell("sst2", split, "ensemble", budget, seed)
    found: dict[str, dict[str, Any]] = {}
    for name in (WITHOUT, HONEST, OFF, *LIES):
        path = out / f"{name.replace(' ', '-').replace(',', '')}-{split}-{seed}-{budget}.json"
        if not path.exists() and only in name:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(orjson.dumps(asyncio.run(_run(suite, cell, name)), option=orjson.OPT_INDENT_2))
        if path.exists():
            found[name] = orjson.loads(path.read_bytes())
    print(table(found))


async def _run(suite: Suite, cell: Cell, name: str) -> dict[str, Any]:
    """One run: its accuracy and its warnings."""
    settings, task = prepared(suite, cell)
    if name == WITHOUT:
        task = replace(task, clients=tuple(c for c in task.clients if c.name != LIAR))
        settings = settings.model_copy(
            update={"clients": tuple(c for c in settings.clients if c.name != LIAR)}
        )
    if name == OFF:
        off = settings.federation.model_copy(update={"clip": 0.0, "cross_scoring": False})
        settings = settings.model_copy(update={"federation": off})
    told: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Warned):
            told.append(event.message)

    between = lying(name, LIAR) if name in LIES else lambda client: Responder(client).answer
    result = await Tuner(settings, task, None, listen, opener=reached_through(between)).run()
    assert result.test is not None
    (row,) = (row for row in result.test.rows if row.client == "*" and row.method == "tuned")
    return {
        "accuracy": row.accuracy,
        "n": row.n,
        "prompt": result.prompt,
        "scored": sum(int(counts["scored"]) for counts in result.spent.values()),
        "stored": sum(int(counts["stored"]) for counts in result.spent.values()),
        "told": told,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Accuracies, differences from the run without the liar in points, and who was named."""
    lines = ["| the tenth party | pooled test accuracy | difference | named |", "|---|---|---|---|"]
    base = found.get(WITHOUT)
    for name, run in found.items():
        difference = "" if base is None else f"{100 * (run['accuracy'] - base['accuracy']):+.1f}"
        named = [line for line in run["told"] if "left out" in line]
        said = "; ".join(line.split(":")[0] for line in named) or "nobody"
        lines.append(f"| {name} | {100 * run['accuracy']:.1f} | {difference} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app()
