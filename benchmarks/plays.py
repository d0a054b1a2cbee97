"""A play: one search's texts and money on the table of benchmarks/table.py, and what it may minimise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt
from table import GARBLED, POSITIONS, Table

from fedbpt_api.prompts.codebook import EMPTY
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.losses import cross_entropy, errors, hinge
from fedbpt_api.verbalizer import Verbalizer, fit

OWN = 32  # texts that are searched on
BUDGET = 1920  # scored examples: 60 of the 441 prompts
Places = npt.NDArray[np.intp]
Pair = tuple[int, int]
"""A prompt: the words of its positions, 0 for none."""


class Spent(Exception):
    """The budget does not hold what is asked."""


@dataclass(eq=False)
class Play:
    """One search's texts and money."""

    table: Table
    own: Places
    budget: int = BUDGET
    spent: int = 0
    paid: dict[Pair, npt.NDArray[np.bool_]] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Table, split: int) -> Play:
        """On 16 texts of each label of those that stand garbled in the table too."""
        rng = np.random.default_rng((3, split))
        early = [np.flatnonzero(table.labels[:GARBLED] == label) for label in (0, 1)]
        return cls(table, np.sort(np.concatenate([rng.permutation(some)[: OWN // 2] for some in early])))

    def rows(self, prompt: Pair, places: Places, *, garbled: bool = False) -> Floats:
        """Label log-probabilities [n, 2] of texts.

        Raises:
            Spent: They cost more than is left; nothing is paid.
        """
        paid = self.paid.setdefault(prompt, np.zeros(2 * len(self.table.labels), dtype=bool))
        asked = places + garbled * len(self.table.labels)
        price = int((~paid[asked]).sum())
        if self.spent + price > self.budget:
            raise Spent
        paid[asked] = True
        self.spent += price
        rows: Floats = (self.table.garbled if garbled else self.table.logprobs)[prompt][places]
        return rows

    def whole(self) -> list[Pair]:
        """Prompts that all texts were paid for."""
        return [prompt for prompt, paid in self.paid.items() if paid[self.own].all()]

    def missing(self, prompt: Pair) -> bool:
        return prompt not in self.paid or not self.paid[prompt][self.own].all()


def judged(rows: Floats, labels: npt.NDArray[np.intp], own: Places) -> tuple[float, float, float, Verbalizer]:
    """Of a prompt's label log-probabilities [N, 2] after a bias fitted on the texts at `own`.

    Returns:
        The loss on these, each without itself; loss and accuracy on all others; the bias.
    """
    others = np.setdiff1d(np.arange(len(labels)), own)
    verbalizer, report = fit(rows[own], labels[own], (0, 1), ((0,), (1,)), kind="bias")
    logits = verbalizer.logits(rows[others])
    wrong = errors(logits, labels[others]).mean()
    return report.loss, float(cross_entropy(logits, labels[others]).mean()), 1 - float(wrong), verbalizer


@cache
def read(table: Table, own: bytes, prompt: Pair) -> tuple[float, float, float, Verbalizer]:
    """What `judged` says of a pair of words."""
    return judged(table.logprobs[prompt], table.labels, np.frombuffer(own, dtype=np.intp))


def truth(play: Play, prompt: Pair) -> tuple[float, float, float]:
    """The prompt's loss on the play's texts; its loss and accuracy on all others."""
    return read(play.table, play.own.tobytes(), prompt)[:3]


@dataclass(frozen=True, eq=False)
class Space:
    """Points to pairs of words, as `prompts.codebook.CodebookSpace` does it; coordinates are [W, k]."""

    coordinates: Floats

    @classmethod
    def of(cls, table: Table, coordinates: int = 4, whitened: bool = True) -> Space:
        """With so many coordinates a word, of unit variance or of unit variance in the mean."""
        scales = np.ones(coordinates) if whitened else table.scales[:coordinates]
        return cls(table.coordinates[:, :coordinates] * scales / np.sqrt(np.mean(scales**2)))

    @property
    def dimension(self) -> int:
        return POSITIONS * int(self.coordinates.shape[1])

    def decode(self, z: Floats) -> Pair:
        first, second = (self._word(point) for point in z.reshape(POSITIONS, -1))
        return first, second

    def _word(self, point: Floats) -> int:
        if np.linalg.norm(point) < EMPTY:
            return 0
        apart: Floats = ((self.coordinates - point) ** 2).sum(axis=1)
        return 1 + int(np.argmin(apart))

    def at(self, prompt: Pair) -> Floats:
        """Where its words are; no word is at the origin."""
        return np.concatenate([self.coordinates[i - 1] if i else 0 * self.coordinates[0] for i in prompt])


def printed(rows: Iterable[tuple[str, Floats]]) -> None:
    """A line for each row's plays [plays, 3]: means, differences from the first row's, and their errors."""
    first: Floats | None = None
    for name, found in rows:
        first = found if first is None else first
        apart = found - first
        error = apart.std(axis=0, ddof=1) / np.sqrt(len(apart))
        said = [
            f"{what} {found[:, i].mean():.3f} ({apart[:, i].mean():+.3f}, {error[i]:.3f})"
            for i, what in enumerate(("on its texts", "on others", "accuracy"))
        ]
        print(f"{name}: {', '.join(said)}", flush=True)


# What is minimised.


Objective = Callable[[Play, Pair, Places], float]


def moved(play: Play, prompt: Pair, places: Places, *, garbled: bool = False) -> Floats:
    """Logits under the first prompt's bias, the mean moved onto its (as federation/local_search.py)."""
    rows = play.rows(prompt, places, garbled=garbled)
    anchor = play.table.logprobs[0, 0][places].mean(axis=0)
    return read(play.table, play.own.tobytes(), (0, 0))[3].logits(rows - rows.mean(axis=0) + anchor)


def plain(play: Play, prompt: Pair, places: Places) -> float:
    return float(cross_entropy(moved(play, prompt, places), play.table.labels[places]).mean())


def unmoved(play: Play, prompt: Pair, places: Places) -> float:
    logits = read(play.table, play.own.tobytes(), (0, 0))[3].logits(play.rows(prompt, places))
    return float(cross_entropy(logits, play.table.labels[places]).mean())


def words_alone(play: Play, prompt: Pair, places: Places) -> float:
    return float(cross_entropy(play.rows(prompt, places), play.table.labels[places]).mean())


def refitted(play: Play, prompt: Pair, places: Places) -> float:
    """The loss that chooses in the end; of whole sets only."""
    play.rows(prompt, places)
    return truth(play, prompt)[0]


def hinged(play: Play, prompt: Pair, places: Places) -> float:
    return float(hinge(moved(play, prompt, places), play.table.labels[places]).mean())


def wrong(play: Play, prompt: Pair, places: Places) -> float:
    return float(errors(moved(play, prompt, places), play.table.labels[places]).mean())


def smoothed(play: Play, prompt: Pair, places: Places) -> float:
    """A tenth of a label's weight goes to the other (label smoothing, Szegedy et al. 2016)."""
    logits, labels = moved(play, prompt, places), play.table.labels[places]
    return float(np.mean(0.95 * cross_entropy(logits, labels) + 0.05 * cross_entropy(logits, 1 - labels)))


def _with_garbled(
    play: Play, prompt: Pair, places: Places, weigh: Callable[[Floats, Floats], Floats]
) -> float:
    labels = play.table.labels[places]
    kept, garbled = (cross_entropy(moved(play, prompt, places, garbled=g), labels) for g in (False, True))
    return float(weigh(kept, garbled).mean())


def ratio(play: Play, prompt: Pair, places: Places) -> float:
    """FedBPT, equation 7."""
    return _with_garbled(play, prompt, places, lambda kept, garbled: kept / np.maximum(garbled, 1e-6))


def difference(play: Play, prompt: Pair, places: Places) -> float:
    return _with_garbled(play, prompt, places, lambda kept, garbled: kept - garbled)


def readable(weight: float) -> Objective:
    """Words that the model itself would write cost less: so many nats of loss a nat."""

    def objective(play: Play, prompt: Pair, places: Places) -> float:
        first, second = prompt
        said = (play.table.readable[0, first - 1] if first else 0.0) + (
            play.table.readable[first, second - 1] if second else 0.0
        )
        return plain(play, prompt, places) - weight * float(said)

    return objective
