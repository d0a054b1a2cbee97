"""Minimising a convex function whose values and gradients come one exchange at a time.

BFGS with backtracking, begun from a known curvature. The same object serves a model on all texts and,
with what it has learned of the curvature, the models of the folds.
"""

from __future__ import annotations

import numpy as np

from fedbpt_api.scoring.backend import Floats

_ENOUGH = 1e-4  # share of the promised decrease that a step must bring
_ROUNDING = 1e-13  # increases that rounding alone can cause


class Descent:
    """One model's way to its optimum: mean loss of n texts plus its penalty.

    Args:
        start: First point, shape [p].
        inverse: Approximate inverse of the second derivatives, shape [p, p].
        penalty: Penalty of each parameter and the value it pulls to, each of shape [p]. A parameter
            whose penalty is infinite stays where it begins; its rows of `inverse` must be zero.
        n: Texts that the sums given to `observe` are over.
    """

    def __init__(self, start: Floats, inverse: Floats, penalty: tuple[Floats, Floats], n: int) -> None:
        self.trial = start
        """Where the sums are wanted next, shape [p]."""
        self.point = start
        """Best point whose sums are known, shape [p]."""
        self._inverse = inverse
        self._penalty = penalty
        self._free = np.isfinite(penalty[0])
        self._n = n
        self._step = 1.0
        self._loss = np.inf
        self._gradient = np.zeros_like(start)
        self._direction = np.zeros_like(start)

    @classmethod
    def from_curvature(
        cls, start: Floats, curvature: Floats, penalty: tuple[Floats, Floats], n: int
    ) -> Descent:
        """Begin with the summed loss's second derivatives [p, p] at or near `start`."""
        free = np.flatnonzero(np.isfinite(penalty[0]))
        inverse = np.zeros_like(curvature)
        block = np.ix_(free, free)
        inverse[block] = np.linalg.inv(curvature[block] / n + np.diag(penalty[0][free]))
        return cls(start, inverse, penalty, n)

    @property
    def residual(self) -> float:
        """Largest component of the gradient at `point`; infinite before the first sums."""
        return float(np.abs(self._gradient).max()) if np.isfinite(self._loss) else np.inf

    def fold(self, n: int) -> Descent:
        """The same problem with some texts left out: begins here, with the curvature learned here."""
        return Descent(self.point, self._inverse.copy(), self._penalty, n)

    def travel(self, dtype: type[np.float32] | type[np.float64]) -> Floats:
        """The trial point, rounded to what the message holds."""
        self.trial = self.trial.astype(dtype).astype(np.float64)
        return self.trial

    def observe(self, loss: float, gradient: Floats) -> None:
        """Take the summed loss and its gradient at `trial`; choose the next trial.

        Args:
            loss: Sum over n texts, in nats.
            gradient: Its derivatives, shape [p].
        """
        weight, prior = (np.where(self._free, values, 0.0) for values in self._penalty)
        away = np.where(self._free, self.trial - prior, 0.0)
        value = loss / self._n + float(weight @ away**2) / 2
        slope = np.where(self._free, gradient / self._n + weight * away, 0.0)
        if np.isfinite(self._loss):
            promised = float(self._gradient @ (self.trial - self.point))
            if not value <= self._loss + _ENOUGH * promised + _ROUNDING * (1 + abs(self._loss)):
                self._step *= 0.3
                self.trial = self.point + self._step * self._direction
                return
            self._learn(self.trial - self.point, slope - self._gradient)
        self.point, self._loss, self._gradient = self.trial, value, slope
        self._direction = -self._inverse @ slope
        self._step = 1.0
        self.trial = self.point + self._direction

    def _learn(self, moved: Floats, changed: Floats) -> None:
        """The BFGS update of the inverse; left out where the change is not that of a convex function."""
        product = float(moved @ changed)
        if product <= 1e-12 * float(moved @ moved):
            return
        through = self._inverse @ changed
        self._inverse = (
            self._inverse
            + (1 + float(changed @ through) / product) * np.outer(moved, moved) / product
            - (np.outer(moved, through) + np.outer(through, moved)) / product
        )
