"""Ways to search, each played many times on a space whose every prompt was scored (benchmarks/table.py).

    python benchmarks/searches.py table.npz

Each play draws 32 texts of the table to search on, spends its budget on them as a run does (a prompt's answer
for a text is paid once), and takes the prompt with the smallest loss of those that all 32 were paid for.
Printed are means over plays: that prompt's loss on the 32 texts (what was searched for), and its loss and
accuracy on all others, after a bias fitted on the 32. In brackets are the difference from the first row, on
the same texts, and its standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from optimizers import Adapted, Client, Drawn, Floored, Optimizer, Plain, Separable
from plays import (
    OWN,
    Objective,
    Pair,
    Places,
    Play,
    Space,
    Spent,
    difference,
    hinged,
    judged,
    moved,
    plain,
    printed,
    ratio,
    readable,
    refitted,
    smoothed,
    truth,
    unmoved,
    words_alone,
    wrong,
)
from table import POSITIONS, Table

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.losses import cross_entropy

SPLITS, SEEDS = 40, 3
IDLE = 20  # generations that ask for nothing new, after which a search ends
Make = Callable[[int, float, int, tuple[int, ...]], Optimizer]


@dataclass(frozen=True)
class Way:
    """One way to search; what it does not say is CMA-ES on the whole loss.

    Attributes:
        optimizer: What moves.
        sigma: Its first step size.
        popsize: Candidates a generation.
        coordinates: Of a word.
        whitened: Whether they have unit variance.
        objective: What is minimised.
        batch: Texts of a generation, by its number.
        common: Whether all candidates of a generation have the same ones.
        race: Whether candidates stop that are worse than the third best by two standard errors of the
            differences, after every 8 texts.
        elite: Whether the best of a generation is asked again in the next, in the worst one's place.
        fresh: Whether points are drawn again, ten times at most, where their prompt was asked before.
        screen: Points drawn for each that is asked; a surrogate leaves the others out.
        restart: Generations without a better prompt after which it starts anew; 0: never.
    """

    optimizer: Make = Plain
    sigma: float = 1.0
    popsize: int = 6
    coordinates: int = 4
    whitened: bool = True
    objective: Objective = plain
    batch: Callable[[int], int] = lambda generation: OWN
    common: bool = True
    race: bool = False
    elite: bool = False
    fresh: bool = False
    screen: int = 1
    restart: int = 0


def search(play: Play, way: Way, key: tuple[int, ...]) -> None:
    """Until the budget is spent, or nothing new is asked for."""
    play.rows((0, 0), play.own)
    place, rng = Space.of(play.table, way.coordinates, way.whitened), np.random.default_rng((*key, 1))
    optimizer = way.optimizer(place.dimension, way.sigma, way.popsize, (*key, 0))
    idle, elite, stale, least = 0, np.zeros((0, place.dimension)), 0, np.inf
    for generation in range(10_000):
        before = play.spent
        points = _points(play, way, place, optimizer, rng)
        if way.elite and len(elite):
            points[-1] = elite
        prompts = [place.decode(z) for z in points]
        size = min(way.batch(generation), OWN)
        batches = [np.sort(rng.permutation(play.own)[:size]) for _ in prompts]
        try:
            if way.race:
                losses = raced(play, prompts, way.objective, rng.permutation(play.own))
            else:
                losses = [
                    way.objective(play, prompt, batches[0] if way.common else batch)
                    for prompt, batch in zip(prompts, batches, strict=True)
                ]
            optimizer.tell(points, losses)
            elite = points[int(np.argmin(losses))]
            play.rows(prompts[int(np.argmin(losses))], play.own)
        except Spent:
            return
        stale, least = (0, min(losses)) if min(losses) < least else (stale + 1, least)
        if way.restart and stale == way.restart:
            key, stale, least = (*key, generation), 0, np.inf
            optimizer = way.optimizer(place.dimension, way.sigma, way.popsize, key)
        idle = idle + 1 if play.spent == before else 0
        if idle == IDLE:
            return


def _points(play: Play, way: Way, place: Space, optimizer: Optimizer, rng: np.random.Generator) -> Floats:
    points = optimizer.ask()
    for _ in range(10 if way.fresh else 0):
        asked = [not play.missing(place.decode(z)) for z in points]
        if not any(asked):
            break
        points[asked] = optimizer.ask()[asked]
    if way.screen == 1 or len(play.whole()) < 2 * way.popsize:
        return points
    many = np.concatenate([points, *(optimizer.ask() for _ in range(way.screen - 1))])
    known = play.whole()
    losses = np.array([way.objective(play, prompt, play.own) for prompt in known])
    predicted = surrogate(
        np.array([place.at(p) for p in known]), losses, np.array([place.at(place.decode(z)) for z in many])
    )
    return many[np.argsort(predicted, kind="stable")[: way.popsize]]


def surrogate(known: Floats, losses: Floats, asked: Floats) -> Floats:
    """Mean of a Gaussian process, one squared exponential kernel a position, noise as large as the signal."""

    def kernel(a: Floats, b: Floats) -> Floats:
        a, b = (x.reshape(len(x), 1, POSITIONS, -1) for x in (a, b))
        return np.asarray(np.exp(-((a - b.swapaxes(0, 1)) ** 2).sum(axis=3) / 2).sum(axis=2))

    weights = np.linalg.solve(kernel(known, known) + POSITIONS * np.eye(len(known)), losses - losses.mean())
    return np.asarray(kernel(asked, known) @ weights + losses.mean())


def raced(play: Play, prompts: Sequence[Pair], objective: Objective, order: Places) -> list[float]:
    """Losses of a generation; those that stop early rank behind the others, the last stopped first."""
    alive, behind = list(range(len(prompts))), list[int]()
    labels, losses = play.table.labels, np.full((len(prompts), OWN), np.nan)
    for end in range(8, OWN + 1, 8):
        some = order[end - 8 : end]
        for i in alive:
            losses[i, end - 8 : end] = cross_entropy(moved(play, prompts[i], some), labels[some])
        seen = losses[:, :end]
        third = sorted(alive, key=lambda i: float(seen[i].mean()))[2]
        for i in list(alive):
            apart = seen[i] - seen[third]
            if end < OWN and apart.mean() > 2 * apart.std(ddof=1) / np.sqrt(end) > 0:
                alive.remove(i)
                behind.insert(0, i)
    found = np.zeros(len(prompts))
    found[alive] = losses[alive].mean(axis=1)
    found[behind] = 1e3 + np.arange(len(behind))
    return found.tolist()


# The rows.


WAYS: dict[str, Way] = {
    "CMA-ES that learns from the better half": Way(),
    "pycma, as clients run it": Way(optimizer=Client),
    "random search in the same space": Way(optimizer=Drawn),
    "first step size 0.5": Way(sigma=0.5),
    "first step size 2": Way(sigma=2.0),
    "12 candidates a generation": Way(popsize=12),
    "restarts after 3 generations without a better prompt": Way(restart=3),
    "a separable covariance": Way(optimizer=Separable),
    "learning rates adapted to the signal": Way(optimizer=Adapted),
    "steps never below 0.7 (a margin)": Way(optimizer=Floored),
    "prompts asked before drawn again": Way(fresh=True),
    "16 texts a generation, the best asked again": Way(batch=lambda generation: 16, elite=True),
    "16 texts a generation, drawn anew": Way(batch=lambda generation: 16),
    "8 texts a generation": Way(batch=lambda generation: 8),
    "16 texts, other ones for each candidate": Way(batch=lambda generation: 16, common=False),
    "8 texts, two more each generation": Way(batch=lambda generation: 8 + 2 * generation),
    "a race, by paired differences": Way(race=True),
    "a surrogate chooses 6 of 24 points": Way(screen=4),
    "2 coordinates a word (d = 4)": Way(coordinates=2),
    "1 coordinate a word (d = 2)": Way(coordinates=1),
    "8 coordinates a word (d = 16)": Way(coordinates=8),
    "16 coordinates a word (d = 32)": Way(coordinates=16),
    "coordinates not whitened": Way(whitened=False),
    "loss: a prompt's mean left where it is": Way(objective=unmoved),
    "loss: the label words as they are": Way(objective=words_alone),
    "loss: a bias fitted for each prompt": Way(objective=refitted),
    "loss: hinge": Way(objective=hinged),
    "loss: share of wrong answers": Way(objective=wrong),
    "loss: labels smoothed": Way(objective=smoothed),
    "loss: equation 7, a ratio": Way(objective=ratio),
    "loss: equation 7 as a difference": Way(objective=difference),
    "loss: less where the model would write the words, .01": Way(objective=readable(0.01)),
    "loss: the same with .05": Way(objective=readable(0.05)),
}


def played(table: Table, way: Way) -> Floats:
    """What each play found [plays, 3]: its loss on the texts searched on, loss and accuracy on others."""
    found = []
    for split in range(SPLITS):
        for seed in range(SEEDS):
            play = Play.of(table, split)
            search(play, way, (split, seed))
            best = min(play.whole(), key=lambda prompt: truth(play, prompt)[0])
            found.append(truth(play, best))
    return np.array(found)


def main(file: Annotated[Path, typer.Argument(help="What table.py wrote.")]) -> None:
    table = Table.load(file)
    _bounds(table)
    printed((name, played(table, way)) for name, way in WAYS.items())


def _bounds(table: Table) -> None:
    """What there is: of each kind of prompt one at random, the best on a split's texts and on others."""
    kinds = {
        "no words": table.logprobs[:1, 0],
        "one or two words": table.logprobs.reshape(-1, *table.logprobs.shape[2:])[1:],
        "a short instruction": table.phrases,
    }
    for kind, prompts in kinds.items():
        found = []
        for split in range(SPLITS):
            own = Play.of(table, split).own
            every = np.array([judged(rows, table.labels, own)[:3] for rows in prompts])
            best, ideal = (every[every[:, i].argmin()] for i in (0, 1))
            found.append([every.mean(axis=0), best, ideal])
        for name, values in zip(
            ("at random", "best on its texts", "best on others"), np.mean(found, axis=0), strict=True
        ):
            own_loss, held, right = values
            print(f"{kind}, {name}: on its texts {own_loss:.3f}, on others {held:.3f}, accuracy {right:.3f}")
        if len(prompts) > 1:
            print(
                f"  correlation of both losses {np.corrcoef(every[:, 0], every[:, 1])[0, 1]:.2f} (last split)"
            )


if __name__ == "__main__":
    typer.run(main)
