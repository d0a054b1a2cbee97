"""Merges that a few liars cannot move far: the coordinate-wise median, and the trimmed mean.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-robust distributed learning: towards optimal
statistical rates" (ICML 2018, arXiv 1803.01498), definitions 1 and 2. Clients count alike, whatever number of
texts and whatever loss they claim: neither can be checked. With K answers the median bears less than K / 2
liars, the trimmed mean as many as are cut off at each end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedbpt_api.aggregate.state import Floats, GlobalState, Update, check_updates


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Trimmed means of the clients' means and last step sizes, coordinate by coordinate.

    Attributes:
        share: Of the answers that is left out at each end (β of definition 2), rounded up; at least one
            answer stays. Below 3 answers nothing can be told apart, and nothing is left out.

    Raises:
        ValueError: Unless 0 <= share < 1/2.
    """

    share: float = 0.2
    name: Literal["trimmed"] = field(default="trimmed", init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise ValueError(f"the share that is trimmed is {self.share}, but must be from 0 to below 1/2")

    def initial(self, mean: npt.ArrayLike, sigma: float) -> GlobalState:
        """The state before round 0; see `Aggregator.initial`."""
        return GlobalState.first(mean, sigma)

    def merge(self, state: GlobalState, updates: Iterable[Update]) -> GlobalState:
        """The state of the next round; see `Aggregator.merge`."""
        answers = check_updates(state, updates)
        count = len(answers)
        cut = min(math.ceil(self.share * count - 1e-9), (count - 1) // 2) if count > 2 else 0
        return _merged(state, np.sort(_stacked(answers), axis=1)[:, cut : count - cut].mean(axis=1))


@dataclass(frozen=True, slots=True)
class Median:
    """Medians of the clients' means and last step sizes, coordinate by coordinate (definition 1)."""

    name: Literal["median"] = field(default="median", init=False)

    def initial(self, mean: npt.ArrayLike, sigma: float) -> GlobalState:
        """The state before round 0; see `Aggregator.initial`."""
        return GlobalState.first(mean, sigma)

    def merge(self, state: GlobalState, updates: Iterable[Update]) -> GlobalState:
        """The state of the next round; see `Aggregator.merge`."""
        return _merged(state, np.median(_stacked(check_updates(state, updates)), axis=1))


def _stacked(answers: Iterable[Update]) -> Floats:
    """A column a client: its mean, then its last step size, shape [d + 1, K]."""
    return np.array([np.append(update.mean, update.step_sizes[-1]) for update in answers]).T.copy()


def _merged(state: GlobalState, values: Floats) -> GlobalState:
    return replace(state, round=state.round + 1, mean=values[:-1], sigma=float(values[-1]))
