"""Federations on real Flower that are struck at random moments: killed, frozen, cut off.

    python benchmarks/chaos.py DIR --runs 30
    python benchmarks/chaos.py DIR --runs 30       # once more: goes on with the runs that are not done

Each run is a SuperLink with TLS and three parties with keys, all processes of their own; a stub answers the
parties (the toy model of the tests), and writes down every answer that it gave. First some runs are left
alone. Then each run is struck one to three times: a party's process, its SuperNode or both are killed
(SIGKILL) and started again after a while; frozen (SIGSTOP), for less or more than the deadline; the
coordinator is killed, and started again with the same folder; a party's connections are cut, or what they
carry is held.

Each must end within the time that follows from its settings, must have every answer that the stub gave in a
journal, none of them twice, and account for them; and come within 2 % of the undisturbed runs' median
development loss. DIR keeps each run's row, and what a run that was not as it should be has left.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from chaos_plan import Strike, bound, drawn
from chaos_play import play
from chaos_row import DEADLINE, PARTIES, Row

START: Final = 90.0
"""Seconds that a coordinator has to start, or Flower to see that it died."""

WITHIN: Final = 0.02


def table(rows: Sequence[Row], usual: float) -> str:
    """The runs side by side, in Markdown."""
    lines = [
        "| run | what happened | seconds (bound) | starts | left out | late, used | answers | lost | twice "
        "| dev loss | of the median | as it should be |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row.name, "; ".join(row.strikes) or "nothing", f"{row.seconds:.0f} ({row.bound:.0f})", row.starts,
            row.missing, row.late, row.answered, row.lost, row.twice, f"{row.loss:.4f}",
            f"{100 * (row.loss / usual - 1):+.2f} %" if row.loss else "-", "; ".join(row.problems) or "yes",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(
    folder: Annotated[Path, typer.Argument(help="Where the runs are kept.")],
    runs: Annotated[int, typer.Option(help="Runs that are struck.")] = 30,
    calm: Annotated[int, typer.Option(help="Runs that are left alone.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the strikes.")] = 0,
) -> None:
    """Strike federations, and see whether they end as they should."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    def done(name: str, strikes: Callable[[], tuple[Sequence[Strike], float]], usual: float | None) -> Row:
        """A run's row, from before or from now."""
        path = folder / f"{name}.json"
        if path.exists():
            return Row(**json.loads(path.read_text()))
        if (folder / name).exists():
            shutil.rmtree(folder / name)  # it was interrupted
        struck, limit = strikes()
        print(f"{name}: {'; '.join(map(str, struck)) or 'left alone'}", flush=True)
        row = play(folder / name, struck, limit, lambda line: print(f"  {line}", flush=True))
        if usual is not None and not row.problems and row.loss > usual * (1 + WITHIN):
            row.problems.append(f"the loss is {100 * (row.loss / usual - 1):.1f} % above the usual one")
        path.write_text(json.dumps(asdict(row)))
        if not row.problems:
            shutil.rmtree(folder / name)
        print(f"  {row.seconds:.0f} s, {'; '.join(row.problems) or 'as it should be'}", flush=True)
        return row

    left_alone = [done(f"calm{number}", lambda: ([], 3600.0), None) for number in range(calm)]
    usual = median(row.loss for row in left_alone)
    seconds = median(row.seconds for row in left_alone)
    messages = max(row.envelopes for row in left_alone)

    def struck(number: int) -> tuple[list[Strike], float]:
        strikes = drawn(seed, number, seconds, DEADLINE, [f"client{k}" for k in range(PARTIES)])
        return strikes, bound(messages, DEADLINE, strikes, START)

    rows = [done(f"run{number:02}", partial(struck, number), usual) for number in range(runs)]
    print(table([*left_alone, *rows], usual))
    bad = [row for row in rows if row.problems]
    strikes = sum(len(row.strikes) for row in rows)
    print(f"\n{len(rows)} runs, {strikes} strikes; {len(bad)} runs not as they should be")
    print(f"undisturbed: median development loss {usual:.4f} (start {left_alone[0].start_loss:.4f})")
    losses = [row.loss / usual - 1 for row in rows if row.loss]
    if losses:
        print(f"struck: {100 * min(losses):+.2f} to {100 * max(losses):+.2f} % of it")
    lost, twice, answered = (sum(getattr(row, key) for row in rows) for key in ("lost", "twice", "answered"))
    print(f"{answered} answers were paid for: {lost} lost, {twice} paid twice")
    if bad:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
