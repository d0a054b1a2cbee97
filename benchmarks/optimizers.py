"""What moves a search of benchmarks/searches.py from one generation to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from fedbpt_api.aggregate.fedbpt import cma_step
from fedbpt_api.aggregate.state import GlobalState
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.search import cma_es


class Optimizer(Protocol):
    """Asks for points [n, d], and is told their losses."""

    def ask(self) -> Floats: ...

    def tell(self, points: Floats, losses: Sequence[float]) -> None: ...


class Client:
    """As a client searches: pycma."""

    def __init__(self, d: int, sigma: float, popsize: int, key: tuple[int, ...]) -> None:
        self.state = cma_es.start(np.zeros(d), sigma, key, popsize)

    def ask(self) -> Floats:
        return cma_es.ask(self.state)

    def tell(self, points: Floats, losses: Sequence[float]) -> None:
        self.state = cma_es.tell(self.state, losses)


class Drawn:
    """Random search."""

    def __init__(self, d: int, sigma: float, popsize: int, key: tuple[int, ...]) -> None:
        self.rng, self.shape, self.sigma = np.random.default_rng(key), (popsize, d), sigma

    def ask(self) -> Floats:
        return self.sigma * self.rng.standard_normal(self.shape)

    def tell(self, points: Floats, losses: Sequence[float]) -> None: ...


class Plain:
    """CMA-ES that learns from the better half alone, and takes points that it did not draw."""

    def __init__(self, d: int, sigma: float, popsize: int, key: tuple[int, ...]) -> None:
        self.rng, self.popsize, self.sigma = np.random.default_rng(key), popsize, sigma
        self.state = GlobalState.first(np.zeros(d), sigma)

    def ask(self) -> Floats:
        c = np.eye(self.state.dimension) if self.state.covariance is None else self.state.covariance
        steps = self.rng.standard_normal((self.popsize, len(c))) @ np.linalg.cholesky(c).T
        return np.asarray(self.state.mean + self.sigma * steps)

    def tell(self, points: Floats, losses: Sequence[float]) -> None:
        best = points[np.argsort(losses, kind="stable")[: len(points) // 2]]
        self.state = cma_step(self.state, best, self.sigma)
        self.sigma = self.state.server_sigma


class Separable(Plain):
    """Its covariance is diagonal (Ros and Hansen 2008, without their larger learning rates)."""

    def tell(self, points: Floats, losses: Sequence[float]) -> None:
        super().tell(points, losses)
        assert self.state.covariance is not None
        self.state = replace(self.state, covariance=np.diag(np.diag(self.state.covariance)))


class Adapted(Plain):
    """Learning rates that follow how much of a step is signal (Nomura et al. 2023, arXiv 2304.03473).

    For the mean and for Sigma = sigma^2 C: with E and V the decaying means of the steps in local coordinates
    and of their squared lengths, SNR = (|E|^2 - b / (2 - b) V) / (V - |E|^2); eta grows where SNR > 1.4 eta.
    """

    def __init__(self, d: int, sigma: float, popsize: int, key: tuple[int, ...]) -> None:
        super().__init__(d, sigma, popsize, key)
        self.eta, self.means, self.squares = [1.0, 1.0], [np.zeros(d), np.zeros(d * d)], [0.0, 0.0]

    def tell(self, points: Floats, losses: Sequence[float]) -> None:
        d, before = self.state.dimension, self.state
        wide = self.sigma**2 * (np.eye(d) if before.covariance is None else before.covariance)
        super().tell(points, losses)
        assert self.state.covariance is not None
        steps = [self.state.mean - before.mean, self.sigma**2 * self.state.covariance - wide]
        values, axes = np.linalg.eigh(wide)
        root = axes / np.sqrt(values) @ axes.T
        local = [root @ steps[0], (root @ steps[1] @ root).ravel() / np.sqrt(2)]
        old = self.eta[0]
        for i, decay in enumerate((0.1, 0.03)):
            self.means[i] = (1 - decay) * self.means[i] + decay * local[i]
            self.squares[i] = (1 - decay) * self.squares[i] + decay * float(local[i] @ local[i])
            signal = float(self.means[i] @ self.means[i])
            snr = (signal - decay / (2 - decay) * self.squares[i]) / max(self.squares[i] - signal, 1e-12)
            change = min(0.1 * self.eta[i], decay) * np.clip(snr / (1.4 * self.eta[i]) - 1, -1, 1)
            self.eta[i] = min(1.0, self.eta[i] * float(np.exp(change)))
        wide = wide + self.eta[1] * steps[1]
        sigma = float(np.linalg.det(wide)) ** (1 / (2 * d))
        self.state = replace(
            self.state, mean=before.mean + self.eta[0] * steps[0], covariance=wide / sigma**2
        )
        self.sigma = sigma * old / self.eta[0]


class Floored(Plain):
    """Steps stay long enough to leave a word's cell (what CMA-ES with margin is for: Hamano et al. 2022)."""

    def tell(self, points: Floats, losses: Sequence[float]) -> None:
        super().tell(points, losses)
        self.sigma = max(self.sigma, 0.7)
