"""What aggregators work on: the global state, a client's update, and the check that both fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from fedbpt_api.errors import FedbptError

Floats = npt.NDArray[np.float64]

LARGEST: Final = float(np.finfo(np.float32).max)
"""Updates travel as float32, so nothing in them is larger."""


class UpdateError(FedbptError):
    """A client's update cannot be merged; the message names the client.

    Args:
        client: Name of the client.
        problem: What is wrong with its update.
    """

    def __init__(self, client: str, problem: str) -> None:
        super().__init__(f"the update of client {client!r} {problem}", "leave this client out of the round")
        self.client = client


@dataclass(frozen=True, slots=True, eq=False)
class GlobalState:
    """Where the federation stands after a round. Arrays are copied and made read-only.

    `round`, `mean` and `sigma` are what clients are told; the rest never leaves the server. The last
    five fields belong to the server-level CMA-ES and keep their defaults under other rules.

    Attributes:
        round: Number of the round that starts from this state, 0 at first.
        mean: Centre of the clients' coming searches, shape [d].
        sigma: Step size that the clients start with.
        sigma0: Step size of round 0, which floor and ceiling are relative to.
        generation: Steps that the server-level CMA-ES has made.
        covariance: Its C, shape [d, d]; None stands for the identity.
        path_sigma: Its path for the step size (p_sigma), shape [d]; None stands for zeros.
        path_c: Its path for the covariance (p_c), shape [d]; None stands for zeros.
        server_sigma: Its own step size after the last step; 0 before the first.
    """

    round: int
    mean: Floats
    sigma: float
    sigma0: float
    generation: int = 0
    covariance: Floats | None = None
    path_sigma: Floats | None = None
    path_c: Floats | None = None
    server_sigma: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _frozen(self.mean, 1))
        for name, dimensions in (("covariance", 2), ("path_sigma", 1), ("path_c", 1)):
            value = getattr(self, name)
            if value is not None:
                array = _frozen(value, dimensions)
                if set(array.shape) != {self.dimension}:
                    raise ValueError(f"{name} has shape {array.shape}, but d is {self.dimension}")
                object.__setattr__(self, name, array)

    @property
    def dimension(self) -> int:
        """d, the number of coordinates searched."""
        return int(self.mean.shape[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GlobalState) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        arrays = (self.mean, self.covariance, self.path_sigma, self.path_c)
        numbers = (self.round, self.sigma, self.sigma0, self.generation, self.server_sigma)
        return (*numbers, *(None if array is None else array.tobytes() for array in arrays))

    def to_dict(self) -> dict[str, Any]:
        """The state as lists and numbers that JSON can carry."""
        return {
            "round": self.round,
            "mean": self.mean.tolist(),
            "sigma": self.sigma,
            "sigma0": self.sigma0,
            "generation": self.generation,
            "covariance": None if self.covariance is None else self.covariance.tolist(),
            "path_sigma": None if self.path_sigma is None else self.path_sigma.tolist(),
            "path_c": None if self.path_c is None else self.path_c.tolist(),
            "server_sigma": self.server_sigma,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GlobalState:
        """The state that `to_dict` wrote."""
        return cls(**data)

    @classmethod
    def first(cls, mean: npt.ArrayLike, sigma: float) -> GlobalState:
        """The state before round 0.

        Args:
            mean: Where the search starts, shape [d].
            sigma: Step size to start with, above 0.

        Raises:
            ValueError: If the mean or the step size cannot be searched from.
        """
        centre = np.asarray(mean, dtype=np.float64)
        if centre.ndim != 1 or not centre.size or not np.isfinite(centre).all():
            raise ValueError(f"the first mean must be a row of finite numbers, but has shape {centre.shape}")
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"the first step size must be finite and above 0, but is {sigma}")
        return cls(round=0, mean=centre, sigma=float(sigma), sigma0=float(sigma))


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What one client sends after its local search: no text, no label, no score of a text.

    Attributes:
        client: Name of the client.
        round: The round it answers.
        mean: Its search's final mean, shape [d].
        loss: Its loss at that mean (a mean over its training texts); only ranks are used.
        step_sizes: Step size of each local iteration, at least one.
        population: Candidates in each local iteration (λ_k).
        n: Training texts it holds (n_k).
        scored: Examples scored for this update.
    """

    client: str
    round: int
    mean: Floats
    loss: float
    step_sizes: tuple[float, ...]
    population: int
    n: int
    scored: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _frozen(self.mean, 1))
        object.__setattr__(self, "step_sizes", tuple(float(size) for size in self.step_sizes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Update) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        numbers = (self.client, self.round, self.loss, self.step_sizes, self.population, self.n, self.scored)
        return (*numbers, self.mean.tobytes())

    def to_dict(self) -> dict[str, Any]:
        """The update as lists and numbers that JSON can carry."""
        return {
            "client": self.client,
            "round": self.round,
            "mean": self.mean.tolist(),
            "loss": self.loss,
            "step_sizes": list(self.step_sizes),
            "population": self.population,
            "n": self.n,
            "scored": self.scored,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Update:
        """The update that `to_dict` wrote."""
        return cls(**data)


class Aggregator(Protocol):
    """A rule that turns a round's updates into the next global state. Pure, and blind to arrival order."""

    @property
    def name(self) -> str:
        """The name it is chosen by in a configuration."""

    def initial(self, mean: npt.ArrayLike, sigma: float) -> GlobalState:
        """The state before round 0, from a mean [d] and a step size."""

    def merge(self, state: GlobalState, updates: Iterable[Update]) -> GlobalState:
        """The state of the next round.

        Args:
            state: The state that the clients' searches started from.
            updates: The answers that arrived, one a client, in any order.

        Raises:
            UpdateError: If an update is not usable; nothing is merged then.
            ValueError: If there are no updates.
        """


def check_update(state: GlobalState, update: Update) -> None:
    """Raise `UpdateError` if `update` cannot answer `state`."""
    if problem := _problem(state, update):
        raise UpdateError(update.client, problem)


def _problem(state: GlobalState, update: Update) -> str:
    """Why an update is not usable; empty where it is."""
    if update.round != state.round:
        return f"answers round {update.round}, but this is round {state.round}"
    if update.mean.shape != state.mean.shape:
        return f"has a mean of {update.mean.shape[0]} coordinates, but {state.dimension} are searched"
    if not (np.abs(update.mean) <= LARGEST).all():
        return "has a mean that is not finite"
    if not abs(update.loss) <= LARGEST:
        return f"has the loss {update.loss}, which is not finite"
    if not update.step_sizes:
        return "has no step size; at least one local iteration is needed"
    if not all(0 < size <= LARGEST for size in update.step_sizes):
        return f"has the step sizes {update.step_sizes}, but all must be finite and above 0"
    if update.population < 2:
        return f"has a population of {update.population}, but at least 2 are needed"
    if update.n < 1:
        return f"counts {update.n} training texts, but at least 1 is needed"
    return "" if update.scored >= 0 else f"counts {update.scored} scored examples"


def check_updates(state: GlobalState, updates: Iterable[Update]) -> tuple[Update, ...]:
    """The updates in the order of the clients' names, all of them usable.

    Raises:
        UpdateError: If an update is not usable or a client answers twice.
        ValueError: If there are no updates.
    """
    ordered = tuple(sorted(updates, key=lambda update: update.client))
    if not ordered:
        raise ValueError(f"no client answered round {state.round}, so there is nothing to merge")
    for update in ordered:
        check_update(state, update)
    for first, second in itertools.pairwise(ordered):
        if first.client == second.client:
            raise UpdateError(second.client, f"came twice in round {state.round}")
    return ordered


def weighted_average(updates: Sequence[Update]) -> tuple[Floats, float]:
    """The n_k-weighted averages of the clients' means [d] and of their last step sizes."""
    total = sum(update.n for update in updates)
    shares = np.array([update.n / total for update in updates])
    mean = shares @ np.stack([update.mean for update in updates])
    return mean, float(shares @ np.array([update.step_sizes[-1] for update in updates]))


def _frozen(values: npt.ArrayLike, dimensions: int) -> Floats:
    """A read-only float64 copy of `values` with the given number of dimensions."""
    array: Floats = np.array(values, dtype=np.float64)
    if array.ndim != dimensions:
        raise ValueError(f"an array of {dimensions} dimensions is needed, but this one has {array.ndim}")
    array.setflags(write=False)
    return array
