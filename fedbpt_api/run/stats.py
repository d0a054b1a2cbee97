"""Evidence from predictions: accuracies with intervals, macro-F1, confusion matrices, paired tests.

Pure functions of label indices. Intervals are at 95 %:

- one accuracy: Wilson's score interval (E. B. Wilson, JASA 22, 1927);
- the difference of two accuracies on the same texts: Newcombe's square-and-add interval for paired
  proportions, method 10 of R. G. Newcombe, "Improved confidence intervals for the difference between
  binomial proportions based on paired data", Statistics in Medicine 17, 1998, pp. 2635-2650; it
  keeps its coverage for small samples and for accuracies near 0 or 1, where Wald's interval does not;
- the test that goes with it: McNemar's test in its exact, binomial form, two-sided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from fedbpt_api.run.result import ALL_CLIENTS, Paired, Row, TestReport

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]

TUNED = "tuned"
BASELINE = "start+bias"
RIVALS = (BASELINE, "start+weighted", "start+weighted+dev")
"""The methods that the tuned prompt is tested against."""

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class PairedCounts:
    """A fourfold table of two methods on the same texts.

    Attributes:
        both: Texts that both get right.
        wins: Texts that only the first gets right.
        losses: Texts that only the second gets right.
        neither: Texts that both get wrong.
    """

    both: int
    wins: int
    losses: int
    neither: int

    @property
    def n(self) -> int:
        """All texts."""
        return self.both + self.wins + self.losses + self.neither


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of `correct` out of `n`, both ends from 0 to 1.

    Raises:
        ValueError: n is not positive, or correct is not within 0..n.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"cannot give an interval for {correct} of {n}")
    share, z2 = correct / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if correct == 0 else centre - half  # exactly, not up to rounding
    high = 1.0 if correct == n else centre + half
    return low, high


def paired_counts(truth: Ints, first: Ints, second: Ints) -> PairedCounts:
    """The fourfold table of two methods' predictions; all arrays of shape [n]."""
    a, b = first == truth, second == truth
    return PairedCounts(
        both=int(np.sum(a & b)),
        wins=int(np.sum(a & ~b)),
        losses=int(np.sum(~a & b)),
        neither=int(np.sum(~a & ~b)),
    )


def paired_interval(counts: PairedCounts) -> tuple[float, float]:
    """Newcombe's 95 % interval of the first accuracy minus the second, both ends from -1 to 1.

    Raises:
        ValueError: The table is empty.
    """
    n = counts.n
    right_first, right_second = counts.both + counts.wins, counts.both + counts.losses
    low_1, high_1 = wilson_interval(right_first, n)
    low_2, high_2 = wilson_interval(right_second, n)
    p1, p2 = right_first / n, right_second / n
    below_1, above_1, below_2, above_2 = p1 - low_1, high_1 - p1, p2 - low_2, high_2 - p2
    phi = _correlation(counts)
    down = below_1**2 - 2 * phi * below_1 * above_2 + above_2**2
    up = above_1**2 - 2 * phi * above_1 * below_2 + below_2**2
    difference = (counts.wins - counts.losses) / n
    return difference - math.sqrt(max(down, 0.0)), difference + math.sqrt(max(up, 0.0))


def _correlation(counts: PairedCounts) -> float:
    """Newcombe's phi of the fourfold table, with his continuity correction; 0 where it is undefined."""
    n = counts.n
    first, second = counts.both + counts.wins, counts.both + counts.losses
    margins = first * (n - first) * second * (n - second)
    if margins == 0:
        return 0.0
    product = float(counts.both * counts.neither - counts.wins * counts.losses)
    if product > 0:
        product = max(product - n / 2, 0.0)
    return product / math.sqrt(margins)


def mcnemar_p(wins: int, losses: int) -> float:
    """Two-sided exact McNemar p-value: how surprising this split would be if each were as likely.

    Computed in whole numbers; 1.0 where there are no discordant texts.
    """
    n = wins + losses
    tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


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


def macro_f1(confusion: Ints) -> float:
    """Mean F1 over the labels that occur in the truth or in the predictions; confusion is [C, C].

    Raises:
        ValueError: The matrix is empty.
    """
    hits = np.diag(confusion)
    occurrences = confusion.sum(axis=0) + confusion.sum(axis=1)
    present = occurrences > 0
    if not present.any():
        raise ValueError("no texts: macro-F1 is undefined")
    return float(np.mean(2 * hits[present] / occurrences[present]))


def majority_label(truth: Ints, classes: int) -> int:
    """The most frequent label index; the first of them in case of a tie.

    Raises:
        ValueError: There are no labels.
    """
    if truth.size == 0:
        raise ValueError("no labels: there is no majority")
    return int(np.bincount(truth, minlength=classes).argmax())


def compare(
    labels: Sequence[str],
    truth: Ints,
    predictions: Mapping[str, Ints],
    clients: Names,
) -> TestReport:
    """Sets the methods side by side, all clients together and each alone.

    Args:
        labels: Names of the labels; length C.
        truth: True label indices, shape [n].
        predictions: Method to its predicted label indices, each of shape [n]. Nothing is added: pass the
            majority label's constant predictions too (its label from training texts) to have them shown.
        clients: Whose text each is, shape [n].

    Returns:
        Rows in the order of `predictions`, the paired tests of "tuned" against `RIVALS` as far as
        both are given, and the clients that "tuned" made worse than "start+bias".

    Raises:
        ValueError: No texts, shapes that differ, or a label index out of range.
    """
    if truth.size == 0:
        raise ValueError("no test texts to compare methods on")
    if clients.shape != truth.shape:
        raise ValueError(f"{truth.shape} true labels but {clients.shape} client names")
    names = list(dict.fromkeys(clients.tolist()))
    if ALL_CLIENTS in names:
        raise ValueError(f"a client cannot be called {ALL_CLIENTS!r}: that name means all of them")
    groups = [(ALL_CLIENTS, np.ones(truth.shape, dtype=np.bool_))]
    groups += [(name, np.asarray(clients == name)) for name in names]
    rows = tuple(
        _row(method, client, confusion_matrix(truth[chosen], predicted[chosen], len(labels)))
        for client, chosen in groups
        for method, predicted in predictions.items()
    )
    tested = [name for name in RIVALS if TUNED in predictions and name in predictions]
    correct = {(row.client, row.method): row.correct for row in rows}
    worse = [name for name in names if BASELINE in tested and correct[name, TUNED] < correct[name, BASELINE]]
    paired = tuple(
        _paired(name, paired_counts(truth, predictions[TUNED], predictions[name])) for name in tested
    )
    return TestReport(labels=tuple(labels), rows=rows, paired=paired, worse=tuple(worse))


def _row(method: str, client: str, confusion: Ints) -> Row:
    n, correct = int(confusion.sum()), int(np.trace(confusion))
    low, high = wilson_interval(correct, n)
    return Row(
        method=method,
        client=client,
        n=n,
        correct=correct,
        accuracy=correct / n,
        ci_low=low,
        ci_high=high,
        macro_f1=macro_f1(confusion),
        confusion=tuple(tuple(int(count) for count in line) for line in confusion),
    )


def _paired(against: str, counts: PairedCounts) -> Paired:
    low, high = paired_interval(counts)
    return Paired(
        against=against,
        difference=(counts.wins - counts.losses) / counts.n,
        ci_low=low,
        ci_high=high,
        wins=counts.wins,
        losses=counts.losses,
        p_value=mcnemar_p(counts.wins, counts.losses),
    )
