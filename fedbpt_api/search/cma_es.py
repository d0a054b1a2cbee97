"""A client's local search: CMA-ES as ask/tell over plain, frozen state.

The optimiser is pycma. Its object is never kept, sent or stored: a `SearchState` holds the starting
point, the key of the random generator and the losses told so far, and pycma is rebuilt from them by
replaying the generations. Normal draws come from the search's own generator, so that NumPy's global
generator is left alone and searches that run side by side do not disturb each other.

Only the ranking of the losses counts. An answer that is missing (NaN, infinite or not given) ranks
last; a generation with fewer answers than parents is skipped: its candidates are spent, nothing is
learnt from it and the next generation draws new ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedbpt_api.errors import ConfigError

with warnings.catch_warnings():
    # pycma says that its plots are off where matplotlib is not installed; nothing is plotted here.
    warnings.filterwarnings("ignore", message="Could not import matplotlib")
    import cma

Floats = npt.NDArray[np.float64]

MIN_POPULATION: Final = 3
"""The smallest generation that pycma can learn from."""


@dataclass(frozen=True, slots=True)
class SearchState:
    """Everything a local search is: where it starts, its random key, and what it was told.

    Attributes:
        mean: Centre of the first generation, d values.
        sigma: Step size of the first generation, above 0.
        seed: Key of the generator, whole numbers of 0 and above: run seed, round, client, purpose.
        population: Candidates in a generation (λ), at least 3.
        told: Losses of each finished generation, λ values each; infinite where an answer is missing.

    Raises:
        ConfigError: If a field is out of its range.
    """

    mean: tuple[float, ...]
    sigma: float
    seed: tuple[int, ...]
    population: int
    told: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if not self.mean or not all(math.isfinite(value) for value in self.mean):
            problems.append("search: the mean must have at least one coordinate, and all must be finite")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            problems.append(f"search: the step size sigma is {self.sigma}, but must be finite and above 0")
        if self.population < MIN_POPULATION:
            problems.append(
                f"search: the population (popsize) is {self.population}, but CMA-ES needs at least "
                f"{MIN_POPULATION} candidates a generation"
            )
        if any(part < 0 for part in self.seed):
            problems.append(f"search: the seed {self.seed} holds a number below 0")
        if any(len(losses) != self.population for losses in self.told):
            problems.append(f"search: every generation told must hold {self.population} losses")
        if problems:
            raise ConfigError(problems)

    def to_dict(self) -> dict[str, Any]:
        """The state as lists and numbers that JSON can carry; missing answers are None."""
        return {
            "mean": list(self.mean),
            "sigma": self.sigma,
            "seed": list(self.seed),
            "population": self.population,
            "told": [[loss if math.isfinite(loss) else None for loss in losses] for losses in self.told],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchState:
        """The state that `to_dict` wrote."""
        return cls(
            mean=tuple(float(value) for value in data["mean"]),
            sigma=float(data["sigma"]),
            seed=tuple(int(part) for part in data["seed"]),
            population=int(data["population"]),
            told=tuple(
                tuple(math.inf if loss is None else float(loss) for loss in losses) for losses in data["told"]
            ),
        )


def start(mean: Iterable[float], sigma: float, seed: Sequence[int], population: int) -> SearchState:
    """A new search around `mean` [d]; see `SearchState` for the arguments and errors."""
    centre = tuple(float(value) for value in mean)
    return SearchState(centre, float(sigma), tuple(int(part) for part in seed), int(population))


def ask(state: SearchState) -> Floats:
    """The candidates of the coming generation, shape [λ, d]; the same ones at every call."""
    return np.asarray(_replay(state)[0].ask(), dtype=np.float64)


def tell(state: SearchState, losses: Sequence[float]) -> SearchState:
    """The state after a generation.

    Args:
        state: The state that `ask` was called with.
        losses: Loss of each candidate in the order of `ask`, lower is better. NaN and infinite
            losses, and those missing at the end, count as missing answers.

    Raises:
        ValueError: If there are more losses than candidates.
    """
    if len(losses) > state.population:
        raise ValueError(f"{len(losses)} losses were told for {state.population} candidates")
    answers = [float(loss) if math.isfinite(loss) else math.inf for loss in losses]
    answers += [math.inf] * (state.population - len(answers))
    return replace(state, told=(*state.told, tuple(answers)))


def center(state: SearchState) -> tuple[Floats, float]:
    """Mean [d] and step size of the coming generation: what the search has arrived at."""
    strategy, _ = _replay(state)
    return np.array(strategy.mean, dtype=np.float64), float(strategy.sigma)


def step_sizes(state: SearchState) -> tuple[float, ...]:
    """The step size used in each generation that moved the mean; skipped generations have none."""
    return _replay(state)[1]


def parents(population: int) -> int:
    """How many of a generation's candidates move the mean (µ)."""
    return population // 2


def _replay(state: SearchState) -> tuple[Any, tuple[float, ...]]:
    """pycma's strategy as it stands after all generations told, and the step sizes it used."""
    generator = np.random.default_rng(np.random.SeedSequence(state.seed))
    options = {
        "popsize": state.population,
        "randn": lambda rows, columns: generator.standard_normal((rows, columns)),
        "seed": math.nan,  # a number here would seed NumPy's global generator
        # Above 299 dimensions pycma would take another step-size rule (TPA) than the papers'.
        "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
        "verbose": -9,
        "verb_disp": 0,
        "verb_log": 0,
    }
    strategy = cma.CMAEvolutionStrategy(np.array(state.mean), state.sigma, options)
    used: list[float] = []
    for losses in state.told:
        if sum(map(math.isfinite, losses)) < parents(state.population):
            # New draws for the next generation. pycma is not asked: it expects to be told what it was asked.
            generator.standard_normal((state.population, len(state.mean)))
            continue
        candidates = strategy.ask()
        used.append(float(strategy.sigma))
        # Ranks instead of losses: equal losses keep the order of `ask`, and nothing can overflow.
        ranks = np.empty(state.population)
        ranks[np.argsort(losses, kind="stable")] = np.arange(state.population)
        strategy.tell(candidates, [float(rank) for rank in ranks])
    return strategy, tuple(used)
