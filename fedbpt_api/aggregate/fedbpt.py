"""FedBPT's rule: the clients' means are the samples of one step of a server-level CMA-ES.

Numbers in brackets after "paper" are those of FedBPT (arXiv 2310.01467); after "tutorial" those of
N. Hansen, "The CMA Evolution Strategy: A Tutorial" (arXiv 1604.00772). Where pycma differs from the
tutorial (learning rates, damping, clipping of samples from elsewhere) the constants are pycma's, as in
the paper's own code: a population of K answers, all of which are parents.

Against the paper's code: the floor of the step size really acts (and so does a ceiling), any number
of clients from 1 up may answer, and the number may change from round to round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fedbpt_api.aggregate.state import Floats, GlobalState, Update, check_updates, weighted_average

SigmaRule = Literal["paper", "reference"]
Axes = tuple[Floats | None, Floats]

MIN_ANSWERS: Final = 3
"""Answers from which a step of CMA-ES is made; with fewer, the searches are averaged."""

MIN_EIGENVALUE: Final = 1e-14
"""Smallest eigenvalue of C relative to its largest, so that C can always be inverted."""


@dataclass(frozen=True, slots=True)
class FedBPT:
    """Server-level CMA-ES with the corrected step size.

    Attributes:
        sigma_rule: How the server's step size follows from the clients' (see `corrected_sigma`):
            "paper" is the paper's equation (6), "reference" the variant in the paper's code.
        floor: The clients' step size never goes below this share of the first round's.
        ceiling: The clients' step size never goes above this multiple of the first round's.

    Raises:
        ValueError: If the rule is unknown, or unless 0 < floor <= 1 <= ceiling.
    """

    sigma_rule: SigmaRule = "paper"
    floor: float = 0.1
    ceiling: float = 2.0
    name: Literal["fedbpt"] = field(default="fedbpt", init=False)

    def __post_init__(self) -> None:
        if self.sigma_rule not in ("paper", "reference"):
            raise ValueError(f"sigma_rule is {self.sigma_rule!r}, but must be 'paper' or 'reference'")
        if not 0 < self.floor <= 1 <= self.ceiling < math.inf:
            raise ValueError(f"floor {self.floor} and ceiling {self.ceiling} must enclose 1 and be above 0")

    def initial(self, mean: npt.ArrayLike, sigma: float) -> GlobalState:
        """The state before round 0; see `Aggregator.initial`."""
        return GlobalState.first(mean, sigma)

    def merge(self, state: GlobalState, updates: Iterable[Update]) -> GlobalState:
        """The state of the next round; see `Aggregator.merge`.

        With fewer than 3 answers the mean is the n_k-weighted average of the clients', the step size
        that of their last ones, and the server's CMA-ES stays as it is.
        """
        answers = check_updates(state, updates)
        if len(answers) < MIN_ANSWERS:
            mean, sigma = weighted_average(answers)
            return replace(state, round=state.round + 1, mean=mean, sigma=self.bounded(state, sigma))
        best_first = ranked(answers)
        before = corrected_sigma(best_first, self.sigma_rule)
        after = cma_step(state, np.stack([update.mean for update in best_first]), before)
        # Only the ratio of the server's change is carried to the clients' step size (paper's code).
        ratio = after.server_sigma / before
        return replace(after, round=state.round + 1, sigma=self.bounded(state, ratio * state.sigma))

    def bounded(self, state: GlobalState, sigma: float) -> float:
        """A step size for clients, within floor and ceiling."""
        return min(max(sigma, self.floor * state.sigma0), self.ceiling * state.sigma0)


def ranked(answers: Sequence[Update]) -> list[Update]:
    """Clients by loss, the best first; the name decides between equal losses."""
    return sorted(answers, key=lambda update: (update.loss, update.client))


def corrected_sigma(ranked: Sequence[Update], rule: SigmaRule) -> float:
    """The step size s' that the clients' means were drawn with, seen from the server.

    A client's mean is the end of a random walk of I steps of sizes s_kj, each an average over
    µ_k = λ_k / 2 parents, so its variance is Σ_j s_kj² / µ_k. The paper (6) averages that over the
    better half of the clients,

        s' = 2 sqrt( Σ_{k in S'} Σ_j s_kj² / (|S| λ_k) ),   |S'| = |S| / 2,

    and its code over all of them, with µ_k as pycma counts it (λ_k // 2). For odd |S|, which (6)
    leaves open, the better half is rounded up and the average is over those clients.

    Args:
        ranked: Updates, the best loss first; at least one.
        rule: "paper" or "reference".
    """
    variances = []
    for update in ranked[: (len(ranked) + 1) // 2] if rule == "paper" else ranked:
        parents = update.population / 2 if rule == "paper" else update.population // 2
        variances.append(sum(size**2 for size in update.step_sizes) / parents)
    return math.sqrt(sum(variances) / len(variances))


@dataclass(frozen=True, slots=True)
class Constants:
    """What CMA-ES in d dimensions uses when all K samples are parents: tutorial (49)-(58), pycma's values.

    Attributes:
        weights: Recombination weights, best first, summing to 1, shape [K].
        mu_eff: Variance-effective number of parents (µ_eff).
        c_sigma: Learning rate of the step-size path.
        damping: Damping of the step size.
        c_c: Learning rate of the covariance path.
        c_1: Learning rate of the rank-one update.
        c_mu: Learning rate of the rank-µ update.
        chi: Expected length of a standard normal vector, E||N(0, I)||.
        longest: Length at which samples from elsewhere are clipped, in units of sigma C^(1/2).
    """

    weights: Floats
    mu_eff: float
    c_sigma: float
    damping: float
    c_c: float
    c_1: float
    c_mu: float
    chi: float
    longest: float


def constants(d: int, count: int) -> Constants:
    """The constants for `count` answers in d dimensions."""
    # Tutorial (49) with λ = 2K: ln((λ+1)/2) - ln i is positive exactly for the K parents; normalised (53).
    weights = math.log(count + 0.5) - np.log(np.arange(1, count + 1))
    weights /= weights.sum()
    mu_eff = float(1 / np.sum(weights**2))  # tutorial (8)
    c_sigma = min(0.5, (mu_eff + 2) / (d + mu_eff + 3))  # tutorial (55); pycma allows 1/2 at most
    # Tutorial (55). pycma has a factor more for µ_eff > d >> 1, and damps less below 6 samples (for the
    # mirrored sample that it would draw there); both are kept, so that a step equals the paper's code.
    inner = max(1.0, 3 * (1 - 0.5 ** (d / 9)))
    base = 1.0 if count >= 6 else 0.5 + min(1.0, (1 / (0.159 * count) - 1) ** 2) / 2
    damping = base + c_sigma + 2 * max(0.0, inner * math.sqrt((mu_eff - 1) / (d + 1)) - 1)
    c_c = (4 + mu_eff / d) / (d + 4 + 2 * mu_eff / d)  # tutorial (56)
    # Tutorial (57); pycma lowers it below 6 samples, of which it counts λ = 2K here: 3 answers suffice.
    c_1 = 2 / ((d + 1.3) ** 2 + mu_eff)
    c_mu = min(1 - c_1, 2 * (0.25 + mu_eff - 2 + 1 / mu_eff) / ((d + 2) ** 2 + mu_eff))  # tutorial (58)
    chi = math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    longest = math.sqrt(d) + 2 * d / (d + 2)
    return Constants(weights, mu_eff, c_sigma, damping, c_c, c_1, c_mu, chi, longest)


def cma_step(state: GlobalState, samples: Floats, sigma: float) -> GlobalState:
    """One update of the server's mean, covariance, paths and own step size.

    Args:
        state: The state before; its `mean` is the m of the step.
        samples: Points x_i, the best first, shape [K, d] with K >= 3.
        sigma: Step size that the points count as drawn with, see `corrected_sigma`.

    Returns:
        `state` with a new mean, covariance, paths, generation and `server_sigma`.
    """
    count, d = samples.shape
    k = constants(d, count)
    steps, axes = clipped_steps(state, samples, sigma, k.longest)
    weighed = steps * np.sqrt(k.weights)[:, None]
    return cma_from_sums(state, count, sigma, k.weights @ steps, weighed.T @ weighed, axes)


def clipped_steps(state: GlobalState, samples: Floats, sigma: float, longest: float) -> tuple[Floats, Axes]:
    """Steps y_i = (x_i - m) / sigma of tutorial (39), shape [K, d], those that are too long shortened.

    Args:
        state: Its mean and covariance.
        samples: Points x_i, shape [K, d].
        sigma: Unit of the steps.
        longest: Length in units of C^(1/2) from which a step is shortened: pycma clips what it did not draw.

    Returns:
        The steps; and `principal` of the covariance, which `cma_from_sums` needs too.
    """
    axes, scales = principal(state.covariance, state.dimension)
    steps = (samples - state.mean) / sigma
    turned = steps if axes is None else steps @ (axes * scales)  # C^(-1/2) y_i, along the axes
    lengths = np.sqrt(np.einsum("kd,kd->k", turned, turned))
    steps /= np.maximum(1.0, lengths / longest)[:, None]
    return steps, (axes, scales)


def cma_from_sums(
    state: GlobalState, count: int, sigma: float, shift: Floats, square: Floats, axes: Axes | None = None
) -> GlobalState:
    """The update of `cma_step` from sums over the samples.

    Args:
        state: As for `cma_step`.
        count: Samples, K.
        sigma: As for `cma_step`.
        shift: Sum of w_i y_i over the clipped steps, shape [d].
        square: Sum of w_i y_i y_i', shape [d, d].
        axes: `principal` of the state's covariance, where it is known already.
    """
    d = state.dimension
    k = constants(d, count)
    turn, scales = axes or principal(state.covariance, d)
    path_sigma = np.zeros(d) if state.path_sigma is None else state.path_sigma
    path_c = np.zeros(d) if state.path_c is None else state.path_c
    generation = state.generation + 1

    white = shift if turn is None else turn @ (scales * (turn.T @ shift))  # C^(-1/2) <y>_w, tutorial (41)
    # Step-size path, tutorial (43).
    path_sigma = (1 - k.c_sigma) * path_sigma + math.sqrt(k.c_sigma * (2 - k.c_sigma) * k.mu_eff) * white
    # The rank-one update stalls while the step-size path is long (h_sigma); pycma's form of the test.
    scale = 1 - (1 - k.c_sigma) ** (2 * generation)
    moves = float(path_sigma @ path_sigma) / scale / d - 1 < 1 + 4 / (d + 1)
    # Covariance path, tutorial (45).
    path_c = (1 - k.c_c) * path_c
    if moves:
        path_c = path_c + math.sqrt(k.c_c * (2 - k.c_c) * k.mu_eff) * shift
    # Covariance, tutorial (47): rank one, rank µ, and the variance that a stalled path lacks.
    decay = k.c_1 * (1.0 if moves else 1 - k.c_c * (2 - k.c_c))
    covariance = k.c_mu * square + k.c_1 * np.outer(path_c, path_c)
    covariance += (1 - decay - k.c_mu) * (np.eye(d) if state.covariance is None else state.covariance)
    # Step size, tutorial (44); pycma limits the change to a factor e.
    change = (float(np.linalg.norm(path_sigma)) / k.chi - 1) * k.c_sigma / k.damping
    return replace(
        state,
        mean=state.mean + sigma * shift,  # tutorial (42)
        generation=generation,
        covariance=(covariance + covariance.T) / 2,
        path_sigma=path_sigma,
        path_c=path_c,
        server_sigma=sigma * math.exp(min(1.0, max(-1.0, change))),
    )


def principal(covariance: Floats | None, d: int) -> Axes:
    """C^(-1/2) as axes and scales: C^(-1/2) = axes diag(scales) axes'.

    Args:
        covariance: A symmetric positive definite C, shape [d, d]; None for the identity, which has no axes.
        d: Its dimension.
    """
    if covariance is None:
        return None, np.ones(d)
    values, axes = np.linalg.eigh(covariance)
    return axes, 1 / np.sqrt(np.maximum(values, MIN_EIGENVALUE * values[-1]))
