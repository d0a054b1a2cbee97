"""What a client counts where its texts are: no text's own label, loss or prediction leaves it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedbpt_api.prompts.space import Asked
from fedbpt_api.verbalizer import Reading

Ints = npt.NDArray[np.int64]

TUNED = "tuned"
BASELINE = "start+bias"
RIVALS = (BASELINE, "start+weighted", "start+weighted+dev")
"""The methods that the tuned prompt is tested against."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over a client's texts for one prompt; how many are correct is None where that is not told."""

    n: int = 0
    loss: float = 0.0
    correct: int | None = 0

    @property
    def mean_loss(self) -> float:
        return self.loss / self.n if self.n else float("nan")

    @property
    def accuracy(self) -> float:
        return self.correct / self.n if self.n and self.correct is not None else float("nan")

    def __add__(self, other: Sums) -> Sums:
        known = self.correct is not None and other.correct is not None
        correct = (self.correct or 0) + (other.correct or 0) if known else None
        return Sums(self.n + other.n, self.loss + other.loss, correct)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A prompt and how it is read, under the name it has in the table."""

    method: str
    prompt: Asked
    verbalizer: Reading


@dataclass(frozen=True, slots=True)
class PairedCounts:
    """A fourfold table of two methods on the same texts.

    Attributes:
        both: Texts that both get right.
        wins: Texts that only the first gets right.
        losses: Texts that only the second gets right.
        neither: Texts that both get wrong.
    """

    both: int = 0
    wins: int = 0
    losses: int = 0
    neither: int = 0

    @property
    def n(self) -> int:
        """All texts."""
        return self.both + self.wins + self.losses + self.neither

    def __add__(self, other: PairedCounts) -> PairedCounts:
        return PairedCounts(
            self.both + other.both,
            self.wins + other.wins,
            self.losses + other.losses,
            self.neither + other.neither,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Test texts, counted.

    Attributes:
        confusions: For each method counts of shape [C, C], rows the true label, columns the predicted one.
        paired: For each of `RIVALS` that took part, the tuned prompt against it.
    """

    confusions: Mapping[str, Ints]
    paired: Mapping[str, PairedCounts]

    @classmethod
    def of(cls, truth: Ints, predictions: Mapping[str, Ints], classes: int) -> Tally:
        """From label indices, all of shape [n].

        Raises:
            ValueError: A label index is outside 0..classes-1, or the shapes differ.
        """
        confusions = {
            method: confusion_matrix(truth, predicted, classes) for method, predicted in predictions.items()
        }
        tested = rivals_of(predictions)
        paired = {rival: paired_counts(truth, predictions[TUNED], predictions[rival]) for rival in tested}
        return cls(confusions, paired)


def rivals_of(methods: Collection[str]) -> list[str]:
    """With which of these methods the tuned prompt is compared text by text."""
    return [rival for rival in RIVALS if TUNED in methods and rival in methods]


def paired_counts(truth: Ints, first: Ints, second: Ints) -> PairedCounts:
    """The fourfold table of two methods' predictions; all arrays of shape [n]."""
    a, b = first == truth, second == truth
    return PairedCounts(
        both=int(np.sum(a & b)),
        wins=int(np.sum(a & ~b)),
        losses=int(np.sum(~a & b)),
        neither=int(np.sum(~a & ~b)),
    )


def confusion_matrix(truth: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts of shape [classes, classes], rows the true label, columns the predicted one.

    Raises:
        ValueError: A label index is outside 0..classes-1, or the shapes differ.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"{truth.shape} true labels but {predicted.shape} predictions")
    for name, indices in (("true", truth), ("predicted", predicted)):
        if indices.size and (indices.min() < 0 or indices.max() >= classes):
            raise ValueError(f"a {name} label index is outside 0..{classes - 1}")
    counts = np.bincount(truth.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)
