"""Directions in which labels differ: linear discriminants with a shrunken covariance.

With x a text's log-probabilities of T words, m_c the mean of label c's n_c texts, m the mean of all n,
S = 1/n sum_i (x_i - m_{y_i})(x_i - m_{y_i})' the covariance within labels and t = tr S / T,

    D_c(x) = (x - m - (m_c - m) / 2)' W (m_c - m) / u,    W = ((1 - l) S + l t I)^-1,

    u^2 = mean_c (m_c - m)' W S W (m_c - m),

for a strength l of shrinkage in (0, 1): regularised discriminant analysis (Friedman 1989, "Regularized
discriminant analysis", equations 15 and 18, one covariance for all labels); u, the standard deviation within
labels, only sets a unit.

A text's own scores are taken without it: m_c and S lose the text, in closed form by a rank-one change of W
(Sherman and Morrison 1950; t, m, u and the term that is quadratic in m_c stay). So they are what the scores
of a text not seen would be, and how far to trust them, and which strength, can be learnt from the very texts
that the directions come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer.regression import Ints

_FLAT = 1e-12  # nats squared; words that vary by less within labels do not vary


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """What n texts of C labels add up to.

    Attributes:
        counts: Texts of each label, shape [C].
        mean: Mean of all texts, shape [T].
        means: Mean of each label's texts, shape [C, T]; `mean` where it has none.
        axes: Principal axes of the covariance within labels, one a column, shape [T, T].
        variances: Along these axes, shape [T].
    """

    counts: Ints
    mean: Floats
    means: Floats
    axes: Floats
    variances: Floats

    @classmethod
    def of(cls, counts: Ints, means: Floats, covariance: Floats) -> Classes:
        """From the labels' means [C, T] and the covariance within labels [T, T]."""
        mean = counts @ means / max(1, int(counts.sum()))
        variances, axes = np.linalg.eigh(covariance)
        own = np.where(counts[:, None] > 0, means, mean)
        return cls(counts, mean, own, axes, np.maximum(variances, 0.0))

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def flat(self) -> bool:
        """Whether there is nothing to tell labels apart by: no variation within them, or one label only."""
        return bool(np.mean(self.variances) < _FLAT or np.count_nonzero(self.counts) < 2)

    def directions(self, strength: float) -> Floats:
        """Weights of x - m in each label's score, shape [C, T]."""
        weights, unit = self._weights(strength)
        return self._differences * weights / unit @ self.axes.T

    def offsets(self, strength: float) -> Floats:
        """What the scores are less than `directions` times x - m, shape [C]."""
        weights, unit = self._weights(strength)
        found: Floats = (self._differences**2 * weights).sum(axis=1) / (2 * unit)
        return found

    def held_out(self, rows: Floats, labels: Ints, strengths: Sequence[float]) -> Floats:
        """Scores of texts that are among the n, each without itself.

        Args:
            rows: Their log-probabilities x, shape [k, T].
            labels: Shape [k].
            strengths: R strengths l.

        Returns:
            Shape [R, k, C].
        """
        every, counts = np.arange(len(rows)), self.counts[labels]
        x, apart = (rows - self.mean) @ self.axes, self._differences
        off = (rows - self.means[labels]) @ self.axes
        # m_c - m without the text; a label's only text leaves nothing behind that tells of the label.
        more = counts > 1
        own = np.where(more[:, None], apart[labels] - off / np.maximum(counts - 1, 1)[:, None], 0.0)
        # n S loses off off' n_c / (n_c - 1), and n a text.
        share = np.where(more, counts / np.maximum(counts - 1, 1), 0.0) / (self.n - 1)
        scores = []
        for strength in strengths:
            _, unit = self._weights(strength)
            weights = self._inverse(strength, self.n / (self.n - 1))
            through = off * weights
            lost = (1 - strength) * share
            pull = lost * (x * through).sum(axis=1) / (1 - lost * (off * through).sum(axis=1))
            found = x * weights @ apart.T + pull[:, None] * (through @ apart.T)
            found[every, labels] = ((x * weights + pull[:, None] * through) * own).sum(axis=1)
            scores.append(found / unit - self.offsets(strength))
        return np.array(scores).reshape(len(strengths), len(rows), len(self.counts))

    @property
    def _differences(self) -> Floats:
        """m_c - m along the axes, shape [C, T]."""
        apart: Floats = (self.means - self.mean) @ self.axes
        return apart

    def _inverse(self, strength: float, factor: float = 1.0) -> Floats:
        """The diagonal of W along the axes, with S times `factor`, shape [T]."""
        found: Floats = 1 / ((1 - strength) * factor * self.variances + strength * self.variances.mean())
        return found

    def _weights(self, strength: float) -> tuple[Floats, float]:
        """The diagonal of W, and u."""
        weights = self._inverse(strength)
        unit = np.sqrt((((self._differences * weights) ** 2) @ self.variances).mean())
        return weights, float(unit) or 1.0


@lru_cache(maxsize=64)
def triangle(width: int) -> tuple[Ints, Ints]:
    """Rows and columns of a square matrix's upper triangle, row by row; found once: they are needed often."""
    rows, columns = np.triu_indices(width)
    return rows, columns


def square(upper: Floats) -> Floats:
    """A symmetric matrix from its upper triangle, row by row."""
    width = int(np.sqrt(2 * len(upper) + 0.25) - 0.5)
    rows, columns = triangle(width)
    full = np.zeros((width, width))
    full[rows, columns] = upper
    full[columns, rows] = upper
    return full
