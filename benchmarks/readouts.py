"""Ways to read labels from word probabilities, fitted on a few texts: which is right most often?

    python benchmarks/readouts.py pool.npz

`pool.npz` is what `pool.py score` wrote. Each way is fitted on a split's training texts, or on these
and the development texts, for prompts drawn from the pool alone and three at a time, and tried on all texts
outside the split: accuracy and cross-entropy, mean and standard deviation over draws and splits. Three
prompts are read by one fit for their mean, and by a fit each whose logits are averaged.

The components are what this project used before discriminants: at most 30 principal axes of the standardised
words (21 for four labels), penalised weights on them, the penalty by 8-fold cross-validation.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy import optimize, special

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer import Kind, fit
from fedbpt_api.verbalizer.discriminant import Classes
from fedbpt_api.verbalizer.regression import Ints

DRAWS = 6
PENALTIES = (1.0, 0.3, 0.1, 0.03)
Way = Callable[
    [Floats, Ints, Floats], Floats
]  # fitted rows [n, T] and labels, new rows [k, T] -> logits [k, C]


def main(pool: Annotated[Path, typer.Argument(help="What pool.py's `score` wrote.")]) -> None:
    data = np.load(pool)
    scores = special.log_softmax(data["logprobs"].astype(np.float64), axis=2)
    labels, words = data["labels"].astype(np.intp), data["words"].tolist()
    groups: list[list[int]] = json.loads(str(data["groups"]))
    short = np.flatnonzero(data["sizes"] <= 1)
    ways = all_ways(words, groups)
    found: defaultdict[tuple[str, int, str], list[tuple[float, float]]] = defaultdict(list)
    rng = np.random.default_rng(1)
    for split in sorted(set(data["parts"].tolist()) - {0}):
        inside = data["parts"] == split
        for part, own in (("training", inside & data["trained"]), ("all", inside)):
            for size in (1, 3):
                for _ in range(DRAWS):
                    members = scores[rng.choice(short, size, replace=False)]
                    mean = special.log_softmax(members.mean(axis=0), axis=1)
                    for name, way in ways.items():
                        read = [way(rows[own], labels[own], rows[~inside]) for rows in (mean, *members)]
                        for each, logits in {
                            name: read[0],
                            f"{name}, each": np.mean(read[1:], axis=0),
                        }.items():
                            said = special.log_softmax(logits, axis=1)
                            right = said.argmax(axis=1) == labels[~inside]
                            loss = -said[np.arange(len(said)), labels[~inside]].mean()
                            found[part, size, each].append((float(right.mean()), float(loss)))
    for part, size in sorted({(part, size) for part, size, _ in found}):
        print(
            f"\nfitted on a split's {part} texts, {size} prompt{'s' * (size > 1)}: accuracy (sd), nats a text"
        )
        for name in ways if size == 1 else [f"{way}{more}" for way in ways for more in ("", ", each")]:
            accuracy, loss = np.array(found[part, size, name]).T
            print(f"  {name:30} {accuracy.mean():.3f} ({accuracy.std():.3f})  {loss.mean():.3f}")


def all_ways(words: list[int], groups: list[list[int]]) -> dict[str, Way]:
    def fitted(kind: Kind) -> Way:
        return lambda rows, labels, new: fit(rows, labels, words, groups, kind=kind)[0].logits(new)

    def shrunken(strength: float) -> Way:
        return lambda rows, labels, new: discriminants(rows, labels, new, len(groups), strength)

    def penalised(components: int | None) -> Way:
        return lambda rows, labels, new: regression(rows, labels, new, groups, components)

    most = min(30, 67 // (len(groups) - 1) - 1)
    return {
        "bias": fitted("bias"),
        f"{most} components": penalised(most),
        "all words, penalised": penalised(None),
        **{f"discriminants at {strength:g}": shrunken(strength) for strength in (0.9, 0.8, 0.6, 0.4, 0.1)},
        "as fitted (weighted)": fitted("weighted"),
    }


def discriminants(rows: Floats, labels: Ints, new: Floats, c: int, strength: float) -> Floats:
    """Regularised discriminant analysis, plain: a Gaussian a label, no trust fitted."""
    counts = np.bincount(labels, minlength=c)
    means = np.eye(c)[labels].T @ rows / counts[:, None]
    off = rows - means[labels]
    classes = Classes.of(counts, means, off.T @ off / len(rows))
    return np.array((new - classes.mean) @ classes.directions(strength).T - classes.offsets(strength))


def regression(
    rows: Floats, labels: Ints, new: Floats, groups: list[list[int]], components: int | None
) -> Floats:
    """Label log-probabilities with a free scale, biases, and weights of words or of their components."""
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 0.5
    axes = np.linalg.svd((rows - mean) / spread, full_matrices=False)[2][: components or len(rows)].T
    z, z_new = (rows - mean) / spread @ axes, (new - mean) / spread @ axes
    prior, prior_new = _labels(rows, groups), _labels(new, groups)
    folds = np.zeros(len(labels), dtype=np.intp)
    for label in range(len(groups)):  # spread evenly over folds
        own = np.random.default_rng(label).permutation(np.flatnonzero(labels == label))
        folds[own] = (np.arange(len(own)) + label) % 8
    losses = []
    for penalty in PENALTIES:
        held = 0.0
        for fold in range(8):
            out = folds == fold
            theta = _optimum(prior[~out], z[~out], labels[~out], penalty)
            logits = special.log_softmax(_read(theta, prior[out], z[out]), axis=1)
            held -= logits[np.arange(out.sum()), labels[out]].sum()
        losses.append(held)
    best = PENALTIES[int(np.argmin(losses))]
    return _read(_optimum(prior, z, labels, best), prior_new, z_new)


def _labels(rows: Floats, groups: list[list[int]]) -> Floats:
    summed = np.stack([special.logsumexp(rows[:, group], axis=1) for group in groups], axis=1)
    return np.array(special.log_softmax(summed, axis=1))


def _read(theta: Floats, prior: Floats, z: Floats) -> Floats:
    c = prior.shape[1]
    return np.array(theta[0] * prior + theta[1 : 1 + c] + z @ theta[1 + c :].reshape(z.shape[1], c))


def _optimum(prior: Floats, z: Floats, labels: Ints, penalty: float) -> Floats:
    n, c = prior.shape
    truth = np.eye(c)[labels]
    weight = np.concatenate([[0.5 / n], np.full(c, 0.003), np.full(z.shape[1] * c, penalty)])
    centre = np.eye(len(weight))[0]

    def objective(theta: Floats) -> tuple[float, Floats]:
        shares = special.log_softmax(_read(theta, prior, z), axis=1)
        errors, away = (np.exp(shares) - truth) / n, theta - centre
        slope = np.concatenate([[(errors * prior).sum()], errors.sum(axis=0), (z.T @ errors).ravel()])
        return float(-(shares * truth).sum() / n + weight @ away**2 / 2), slope + weight * away

    return np.array(optimize.minimize(objective, centre, jac=True, method="L-BFGS-B").x)


if __name__ == "__main__":
    typer.run(main)
