"""Would a run know when more candidates bring nothing? A stop rule, played on a pool of prompts.

    python benchmarks/stopping.py pool.npz

`pool.npz` is what `pool.py score` wrote. The first table takes the first k of the prompts in a random order
and chooses three as a run does: their accuracy on all texts outside the split, their loss on the development
texts that chose them, and the loss of three that were chosen on one half of these, on the other half.

The second plays the rule of `search.min_gain` (`fedbpt_api/search/stopping.py`) from the eighth prompt on,
for a budget of 80 prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pool import Places, Pool, nearest

from fedbpt_api.run.assessment import SPREAD
from fedbpt_api.run.draws import FEWEST
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.search.stopping import expected_gain
from fedbpt_api.verbalizer.verbalizer import log_sum

CANDIDATES = (3, 6, 12, 24, 33)
ORDERS = 10
HALVES = 4
BUDGET = 80  # prompts that a run judges
LIMITS = (0.005, 0.01, 0.015, 0.02, 0.03)  # nats


def main(pool: Annotated[Path, typer.Argument(help="What pool.py's `score` wrote.")]) -> None:
    found = Pool.load(pool)
    ones = np.flatnonzero(found.sizes <= 1)
    splits = [Split(found, ones, split) for split in found.splits]
    rng = np.random.default_rng(0)
    orders = [(split, rng.permutation(len(ones))) for split in splits for _ in range(ORDERS)]
    print(
        "three of the first k prompts: accuracy, loss on the texts that chose them, on others (nats a text)"
    )
    for k in (k for k in CANDIDATES if k <= len(ones)):
        tried = [
            (split.accuracy(order[:k]), split.loss(split.choose(order[:k])), split.crossed(order[:k], rng))
            for split, order in orders
        ]
        accuracy, own, crossed = np.mean(tried, axis=0)
        print(f"  {k:3}: {accuracy:.3f}  {own:.3f}  {crossed:.3f}")
    whole = [split.accuracy(order) for split, order in orders]
    print(f"all {len(ones)}: {np.mean(whole):.3f}; with the rule (prompts judged, accuracy, difference):")
    for limit in LIMITS:
        ends = [split.end(order, limit) for split, order in orders]
        accuracies = [split.accuracy(order[:k]) for k, (split, order) in zip(ends, orders, strict=True)]
        lost = np.mean(accuracies) - np.mean(whole)
        print(f"  {limit:5} nats: {np.mean(ends):4.1f}  {np.mean(accuracies):.3f}  {lost:+.3f}")


class Split:
    """A split's texts; prompts are named by their places among those with at most one line a label."""

    def __init__(self, pool: Pool, ones: Places, split: int) -> None:
        self.pool, self.ones = pool, ones
        self.own, self.others = np.flatnonzero(pool.parts == split), np.flatnonzero(pool.parts != split)
        held = np.flatnonzero((pool.parts == split) & ~pool.trained)
        self.labels = pool.labels[held]
        self.logits = np.array([pool.logits(int(p), split)[held] for p in ones])  # [P, n, C]
        self.known: dict[tuple[int, ...], float] = {}
        self.losses = nats(self.logits, self.labels)  # [P, n]

    def choose(self, places: Places, texts: Places | slice = slice(None)) -> Places:
        """The three of these that read these texts best together."""
        return places[nearest(self.logits[places][:, texts], self.labels[texts], 3, 1.0)]

    def loss(self, members: Places, texts: Places | slice = slice(None)) -> float:
        return float(nats(self.logits[members][:, texts].mean(axis=0), self.labels[texts]).mean())

    def crossed(self, places: Places, rng: np.random.Generator) -> float:
        """Loss on one half of the texts of what the other half chooses."""
        found = []
        for _ in range(HALVES):
            texts = rng.permutation(len(self.labels))
            one, other = texts[::2], texts[1::2]
            found += [self.loss(self.choose(places, a), b) for a, b in ((one, other), (other, one))]
        return float(np.mean(found))

    def accuracy(self, places: Places) -> float:
        """Of three chosen among these, fitted on the split's texts, on all texts outside it."""
        members = tuple(sorted(self.ones[self.choose(places)].tolist()))
        if members not in self.known:
            self.known[members] = self.pool.accuracy(members, self.own, self.others)
        return self.known[members]

    def end(self, order: Places, limit: float) -> int:
        """Prompts that are judged until more of them promise less than `limit` nats."""
        losses = self.losses.mean(axis=1)
        for k in range(FEWEST, len(order)):
            if expected_gain(losses[order[:k]], len(self.labels), BUDGET - k, SPREAD) < limit:
                return k
        return len(order)


def nats(logits: Floats, labels: Places) -> Floats:
    """Losses [..., n] of texts with these labels, from logits [..., n, C]."""
    each = logits - log_sum(logits)
    return np.asarray(-each[..., np.arange(len(labels)), labels])


if __name__ == "__main__":
    typer.run(main)
