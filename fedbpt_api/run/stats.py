"""Evidence from predictions: accuracies with intervals, macro-F1, paired tests.

Pure functions of counts. Intervals are at 95 %:

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
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

from fedbpt_api.federation.tally import BASELINE, RIVALS, TUNED, Ints, PairedCounts, Tally
from fedbpt_api.run.result import ALL_CLIENTS, Paired, Row, TestReport

Names = npt.NDArray[np.str_]

_Z = NormalDist().inv_cdf(0.975)

_EXACT = 1000  # discordant texts


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

    Computed in whole numbers, for more than 1,000 discordant texts in double precision; 1.0 where there are
    no discordant texts.
    """
    n = wins + losses
    if n > _EXACT:
        return min(1.0, 2 * float(bdtr(min(wins, losses), n, 0.5)))
    tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


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
    if any(predicted.shape != truth.shape for predicted in predictions.values()):
        raise ValueError(f"expected predictions of shape {truth.shape}, as the true labels have")

    def of(name: str) -> Tally:
        own = clients == name
        return Tally.of(truth[own], {method: p[own] for method, p in predictions.items()}, len(labels))

    return report(labels, {name: of(name) for name in names})


def report(labels: Sequence[str], tallies: Mapping[str, Tally]) -> TestReport:
    """The same from what clients have counted.

    Args:
        labels: Names of the labels; length C.
        tallies: By client, one or more; each with the same methods.

    Raises:
        ValueError: A client has the name that means all of them.
    """
    if ALL_CLIENTS in tallies:
        raise ValueError(f"a client cannot be called {ALL_CLIENTS!r}: that name means all of them")
    each = list(tallies.values())
    methods, tested = list(each[0].confusions), [rival for rival in RIVALS if rival in each[0].paired]
    confusions = {
        ALL_CLIENTS: {method: np.sum([t.confusions[method] for t in each], axis=0) for method in methods}
    }
    confusions |= {name: dict(tally.confusions) for name, tally in tallies.items()}
    rows = tuple(_row(m, client, counts[m]) for client, counts in confusions.items() for m in methods)
    correct = {(row.client, row.method): row.correct for row in rows}
    worse = [n for n in tallies if BASELINE in tested and correct[n, TUNED] < correct[n, BASELINE]]
    paired = tuple(_paired(rival, sum((t.paired[rival] for t in each), PairedCounts())) for rival in tested)
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
