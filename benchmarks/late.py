"""Late searches: is it better to use them in a later round, or to drop them?

    python benchmarks/late.py

Ten parties search for the weights of a classifier, each on 32 texts of its own with a mix of labels of its
own. Some are always a round late. The loss on texts of all mixes is printed where their updates are used, and
where they are dropped.
"""

from __future__ import annotations

import warnings
from typing import Annotated

import numpy as np
import typer

from fedbpt_api.aggregate import Aggregator, FedAvg, FedBPT, GlobalState, Update, rebased
from fedbpt_api.scoring.backend import Floats

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Could not import matplotlib")
    from cma import CMAEvolutionStrategy


class Mixes:
    """A task: two labels, d features that tell them apart, and parties with unlike mixes of both.

    Args:
        seed: Of the draw.
        parties: How many.
        dimension: d.
    """

    def __init__(self, seed: int, parties: int, dimension: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed, self.truth = seed, 2 * rng.normal(size=dimension) / np.sqrt(dimension)
        self.texts = [self._drawn(rng, 32, share) for share in rng.beta(0.5, 0.5, parties)]
        self.held_out = self._drawn(rng, 5000, 0.5)

    def _drawn(self, rng: np.random.Generator, n: int, share: float) -> tuple[Floats, Floats]:
        signs = np.where(rng.random(n) < share, 1.0, -1.0)
        return rng.normal(size=(n, len(self.truth))) + signs[:, None] * self.truth, signs

    def loss(self, z: Floats, texts: tuple[Floats, Floats]) -> float:
        """Mean cross-entropy of the classifier with weights z."""
        features, signs = texts
        return float(np.logaddexp(0, -signs * (features @ z)).mean())

    def searched(self, party: int, state: GlobalState) -> Update:
        """A party's local search: four generations of six, as by default."""
        draws = np.random.default_rng((self.seed, state.round, party))
        options = {
            "popsize": 6,
            "randn": lambda rows, columns: draws.standard_normal((rows, columns)),
            "seed": np.nan,
            "verbose": -9,
        }
        search = CMAEvolutionStrategy(state.mean, state.sigma, options)
        steps = []
        for _ in range(4):
            steps.append(float(search.sigma))
            points = search.ask()
            search.tell(points, [self.loss(z, self.texts[party]) for z in points])
        loss = self.loss(search.mean, self.texts[party])
        return Update(f"party{party}", state.round, search.mean, loss, tuple(steps), 6, n=32)

    def tuned(self, rule: Aggregator, rounds: int, late: int, use: bool) -> float:
        """The held-out loss after so many rounds.

        Args:
            rule: Merges.
            rounds: How many.
            late: Parties whose updates come a round late: each is asked in every other round.
            use: Whether they are used; dropped otherwise.
        """
        state = rule.initial(np.zeros(len(self.truth)), 1.0)
        under_way: dict[int, tuple[Update, GlobalState]] = {}
        for _ in range(rounds):
            free = [party for party in range(len(self.texts)) if party not in under_way]
            updates = [rebased(update, sent, state) for update, sent in under_way.values()]
            under_way.clear()
            for party in free:
                if party >= late:
                    updates.append(self.searched(party, state))
                elif use:
                    under_way[party] = self.searched(party, state), state
            state = rule.merge(state, updates)
        return self.loss(state.mean, self.held_out)


def main(
    parties: int = 10,
    rounds: int = 10,
    dimension: int = 16,
    seeds: int = 50,
    rule: Annotated[str, typer.Option(help="fedbpt or fedavg.")] = "fedbpt",
) -> None:
    """Held-out loss with parties that are always a round late, mean and standard error over seeds."""
    merging: Aggregator = FedBPT() if rule == "fedbpt" else FedAvg()
    tasks = [Mixes(seed, parties, dimension) for seed in range(seeds)]
    print(f"{parties} parties, {rounds} rounds, d = {dimension}, {seeds} seeds, {rule}")
    print("late   in time          dropped          used             used - dropped")
    in_time = [task.tuned(merging, rounds, 0, use=True) for task in tasks]
    for count in (1, 3, 5):
        dropped, used = (
            [task.tuned(merging, rounds, count, use=use) for task in tasks] for use in (False, True)
        )
        difference = np.subtract(used, dropped)
        columns = (in_time, dropped, used, difference)
        shown = [f"{np.mean(c):.4f} (se {np.std(c, ddof=1) / np.sqrt(seeds):.4f})" for c in columns]
        print(f"{count:4}   {'  '.join(shown)}", flush=True)


if __name__ == "__main__":
    typer.run(main)
