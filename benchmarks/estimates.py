"""How far estimates are off: runs of a bench foreseen, beside what they really took.

    FEDBPT_DATA=... python benchmarks/estimates.py benchmarks/main.toml DIR --only '*/ensemble/*'

DIR is what `fedbpt bench` wrote, its server at hand. For each finished run: scored examples and prompt tokens
of the search, estimated and spent, and the error in per cent. Nothing is scored.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from fedbpt_api.bench import cells, load_suite
from fedbpt_api.bench.grid import prepared
from fedbpt_api.run.estimate import estimate
from fedbpt_api.run.folder import is_finished, read_result


def main(
    suite: Annotated[Path, typer.Argument(help="The suite's TOML file.")],
    out: Annotated[Path, typer.Argument(help="Folder of its runs.")],
    only: Annotated[str, typer.Option(help="Cells, as for fedbpt bench.")] = "*",
) -> None:
    loaded = load_suite(suite)
    errors = defaultdict[str, list[tuple[float, float]]](list)
    print("| run | scored, estimated | spent | off | tokens, estimated | spent | off |\n" + "|---" * 7 + "|")
    for cell in cells(loaded):
        folder = out / "runs" / cell.folder
        if not (cell.budget and fnmatch(cell.folder.as_posix(), only) and is_finished(folder)):
            continue
        made = asyncio.run(estimate(*prepared(loaded, cell), probes=0)).total
        spent = read_result(folder).spent.values()
        scored, tokens = (sum(int(counts[key]) for counts in spent) for key in ("scored", "prompt_tokens"))
        off = 100 * (made.scored / scored - 1), 100 * (made.prompt_tokens / tokens - 1)
        errors[cell.task].append(off)
        scored_cells = f"{made.scored:,} | {scored:,} | {off[0]:+.1f} %"
        token_cells = f"{made.prompt_tokens:,} | {tokens:,} | {off[1]:+.1f} %"
        print(f"| {cell} | {scored_cells} | {token_cells} |", flush=True)
    for name, found in {**errors, "all": [off for part in errors.values() for off in part]}.items():
        if found:
            middle = [median(abs(off[i]) for off in found) for i in range(2)]
            print(f"\n{name}: median error {middle[0]:.1f} % in scored examples, {middle[1]:.1f} % in tokens")


if __name__ == "__main__":
    typer.run(main)
