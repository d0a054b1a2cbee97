"""FedAvg-BBT, the baseline of the FedBPT paper: clients' searches are averaged.

Means and step sizes are averaged with the weights n_k / Σ n_k of the paper's equation (4). Losses
are not looked at, so good and bad searches count alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy.typing as npt

from fedbpt_api.aggregate.state import GlobalState, Update, check_updates, weighted_average


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Weighted averages of the clients' means and of their last step sizes."""

    name: Literal["fedavg"] = field(default="fedavg", init=False)

    def initial(self, mean: npt.ArrayLike, sigma: float) -> GlobalState:
        """The state before round 0; see `Aggregator.initial`."""
        return GlobalState.first(mean, sigma)

    def merge(self, state: GlobalState, updates: Iterable[Update]) -> GlobalState:
        """The state of the next round; see `Aggregator.merge`."""
        mean, sigma = weighted_average(check_updates(state, updates))
        return replace(state, round=state.round + 1, mean=mean, sigma=sigma)
