"""The merges from sums over clients alone: first ranks, then a weighted sum; no client's mean is seen.

Two exchanges take the place of one. The clients tell loss, step sizes and counts; from these follow the
weights (tutorial (49) of N. Hansen, arXiv 1604.00772, for `FedBPT`; shares of texts for `FedAvg`). Then the
clients send w_i y_i, and for the covariance w_i y_i y_i' (tutorial (41) and (47)), of which only the sums
arrive. The step from these is that of `fedbpt.cma_step`, whose arithmetic it shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedbpt_api.aggregate.fedbpt import (
    MIN_ANSWERS,
    FedBPT,
    clipped_steps,
    cma_from_sums,
    constants,
    corrected_sigma,
    ranked,
)
from fedbpt_api.aggregate.state import Floats, GlobalState, Update
from fedbpt_api.verbalizer.discriminant import square, triangle


@dataclass(frozen=True, slots=True)
class Weighing:
    """What clients are told to weigh their steps with.

    Attributes:
        weights: Of each client, by name; 0 for one that has nothing to say.
        sigma: Unit of their steps y_i = (m_i - m) / sigma.
        second: Whether products of steps are wanted too.
    """

    weights: dict[str, float]
    sigma: float
    second: bool

    def length(self, d: int) -> int:
        """Numbers of an answer."""
        return d + (d * (d + 1) // 2 if self.second else 0)


def weighing(rule: FedBPT | None, state: GlobalState, answers: Sequence[Update]) -> Weighing:
    """The weights of clients that have told all but their means.

    Args:
        rule: FedBPT's, or None for averages weighted by numbers of texts.
        state: The state that the searches started from.
        answers: The clients', their `mean` not looked at; at least one.
    """
    if rule is None or len(answers) < MIN_ANSWERS:
        total = sum(answer.n for answer in answers)
        return Weighing({answer.client: answer.n / total for answer in answers}, 1.0, False)
    best_first = ranked(answers)
    weights = constants(state.dimension, len(best_first)).weights.tolist()
    names = [answer.client for answer in best_first]
    return Weighing(
        dict(zip(names, weights, strict=True)), corrected_sigma(best_first, rule.sigma_rule), True
    )


def weighed(mean: Floats, state: GlobalState, told: Weighing, name: str, count: int) -> Floats:
    """A client's answer.

    Args:
        mean: Its search's final mean, shape [d].
        state: The server's; only its mean and covariance are used.
        told: Its weight, and what is wanted.
        name: Its name.
        count: Clients that have something to say.

    Returns:
        w y, then the upper triangle of w y y', shape [d + d (d + 1) / 2]; w y alone where no more is wanted.
    """
    weight = told.weights.get(name, 0.0)
    if not told.second:
        return weight * (mean - state.mean) / told.sigma
    (step,), _ = clipped_steps(state, mean[None], told.sigma, constants(state.dimension, count).longest)
    return np.concatenate([weight * step, (weight * np.outer(step, step))[triangle(len(step))]])


def merged(
    rule: FedBPT | None, state: GlobalState, answers: Sequence[Update], told: Weighing, total: Floats
) -> GlobalState:
    """The state of the next round, from the sum of what clients weighed.

    Args:
        rule: As for `weighing`.
        state: The state before.
        answers: As for `weighing`.
        told: What clients were told.
        total: The sum of `weighed` over all of them.
    """
    d = state.dimension
    if rule is None or not told.second:
        sigma = sum(told.weights[a.client] * a.step_sizes[-1] for a in answers)
        mean = state.mean + told.sigma * total[:d]
        if rule is not None:
            sigma = rule.bounded(state, sigma)
        return replace(state, round=state.round + 1, mean=mean, sigma=sigma)
    after = cma_from_sums(state, len(answers), told.sigma, total[:d], square(total[d:]))
    ratio = after.server_sigma / told.sigma
    return replace(after, round=state.round + 1, sigma=rule.bounded(state, ratio * state.sigma))
