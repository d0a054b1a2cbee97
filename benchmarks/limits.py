"""The most that more labelled texts, or a perfect choice, could give: what bounds a search on a few texts.

    python benchmarks/limits.py pool.npz

`pool.npz` is what `pool.py score` wrote: prompts with one line a label, scored on the texts of all few-shot
splits and on development rows, never the test file. The first table fits the read-out of a prompt, and of
three together (the mean of a read-out for each), on n texts drawn from all of these, and tries it on the
others. The second fits it on one split's texts and tries it on all others: the user's first prompt, prompts
and threes at random, the three that a run chooses (from the labels of the split's development texts), and the
best of many *by the very texts they are tried on*: what a choice that knew them would reach.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pool import RULES, Places, Pool

NUMBERS = (32, 64, 128, 256, 512)
DRAWS = 20
THREES = 300


def main(pool: Annotated[Path, typer.Argument(help="What pool.py's `score` wrote.")]) -> None:
    found = Pool.load(pool)
    rng = np.random.default_rng(1)
    ones = np.flatnonzero(found.sizes == 1)
    print(
        "accuracy (sd over draws of texts and prompts) by the number of texts that the read-out is fitted on:"
    )
    for number in (n for n in NUMBERS if n < 0.85 * len(found.labels)):
        single, three = np.array([_drawn(found, ones, number, rng) for _ in range(DRAWS)]).T
        said = " | three at random ".join(f"{each.mean():.3f} ({each.std():.3f})" for each in (single, three))
        print(f"  {number:4}: one prompt {said}")
    print(f"accuracy on all texts outside a split, fitted on the split's; {THREES} threes:")
    every = np.array(list(combinations(ones, 3)))
    for split in found.splits:
        (chosen,) = RULES["labels"](found, ones.tolist(), split, 3, rng)
        own, others = (np.flatnonzero(mask) for mask in (found.parts == split, found.parts != split))
        start, *single = (found.accuracy([p], own, others) for p in [0, *ones])
        three = [
            found.accuracy(m, own, others) for m in rng.choice(every, min(THREES, len(every)), replace=False)
        ]
        ours = found.accuracy(chosen, own, others)
        print(
            f"  {split:4}: first prompt {start:.3f} | one at random {np.mean(single):.3f}, "
            f"best {max(single):.3f} | three at random {np.mean(three):.3f} (sd {np.std(three):.3f}), "
            f"chosen {ours:.3f}, best {max(three):.3f}"
        )


def _drawn(pool: Pool, ones: Places, number: int, rng: np.random.Generator) -> tuple[float, float]:
    """Of one prompt and of three that are drawn, fitted on texts that are drawn."""
    order, members = rng.permutation(len(pool.labels)), rng.choice(ones, 3, replace=False)
    own, others = order[:number], order[number:]
    return pool.accuracy(members[:1], own, others), pool.accuracy(members, own, others)


if __name__ == "__main__":
    typer.run(main)
