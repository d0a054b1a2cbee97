"""Minimising a convex function whose value, slope and curvature come one exchange at a time.

Newton's method with backtracking (Boyd and Vandenberghe 2004, "Convex optimization", algorithm 9.5).
"""

from __future__ import annotations

import numpy as np

from fedbpt_api.scoring.backend import Floats

_ENOUGH = 1e-4  # share of the promised decrease that a step must bring
_ROUNDING = 1e-13  # increases that rounding alone can cause
_BACK = 0.3


class Descent:
    """A model's way to its optimum: mean loss of n texts plus its penalty.

    Args:
        start: First point, shape [p].
        penalty: Penalty of each parameter and the value it pulls to, each of shape [p]. A parameter whose
            penalty is infinite stays where it begins.
        n: Texts that the sums given to `observe` are over.
    """

    def __init__(self, start: Floats, penalty: tuple[Floats, Floats], n: int) -> None:
        self.trial = start
        """Where the sums are wanted next, shape [p]."""
        self.promise = np.inf
        """Decrease that the trial point promises, in nats a text."""
        self.free = np.isfinite(penalty[0])
        self._weight, self._prior = (np.where(self.free, values, 0.0) for values in penalty)
        self._n = n
        self._point = start
        self._loss = np.inf
        self._slope = np.zeros_like(start)
        self._curvature = np.eye(len(start))
        self._direction = np.zeros_like(start)
        self._step = 1.0

    def pull(self, point: Floats) -> Floats:
        """The penalty's gradient there, shape [p]."""
        return np.where(self.free, self._weight * (point - self._prior), 0.0)

    def slope(self, gradient: Floats) -> Floats:
        """Derivatives of what is minimised, at the trial point, from the summed loss's; shape [p]."""
        return np.where(self.free, gradient / self._n, 0.0) + self.pull(self.trial)

    @property
    def without_one(self) -> Floats:
        """n - 1 times the second derivatives without one text, once what that one adds is taken off.

        Shape [p, p], at the last point observed; 1 on the diagonal of parameters that stay.
        """
        only = np.outer(self.free, self.free)
        diagonal = np.where(self.free, (self._n - 1) * self._weight, 1.0)
        found: Floats = np.where(only, self._curvature, 0.0) + np.diag(diagonal)
        return found

    def observe(self, loss: float, gradient: Floats, curvature: Floats) -> None:
        """Take the sums at `trial`; choose the next trial.

        Args:
            loss: Sum over n texts, in nats.
            gradient: Its derivatives, shape [p].
            curvature: Its second derivatives, shape [p, p].
        """
        away = np.where(self.free, self.trial - self._prior, 0.0)
        value = loss / self._n + float(self._weight @ away**2) / 2
        if np.isfinite(self._loss):
            wanted = self._loss + _ENOUGH * float(self._slope @ (self.trial - self._point))
            if not value <= wanted + _ROUNDING * (1 + abs(self._loss)):
                self._step *= _BACK
                self.trial = self._point + self._step * self._direction
                return
        self._point, self._loss, self._slope = self.trial, value, self.slope(gradient)
        self._curvature = curvature
        free = np.flatnonzero(self.free)
        second = curvature[np.ix_(free, free)] / self._n + np.diag(self._weight[free])
        self._direction = np.zeros_like(self._slope)
        self._direction[free] = -np.linalg.solve(second, self._slope[free])
        self._step = 1.0
        self.promise = -float(self._slope @ self._direction) / 2
        self.trial = self._point + self._direction
