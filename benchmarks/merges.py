"""Ways to merge the searches of several clients, each played many times (see benchmarks/searches.py).

    python benchmarks/merges.py table.npz

Each play deals 64 texts of the table to eight clients of eight whose shares of the labels differ (Beta(1/2,
1/2)), spends its budget on rounds as a run does, and takes the prompt with the smallest loss of those that
all judged on all 64. Printed are, as there, that loss, and its loss and accuracy on the other 32 texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from optimizers import Plain
from plays import Places, Play, Space, Spent, plain, printed, truth
from table import Table

from fedbpt_api.aggregate import Aggregator, FedAvg, FedBPT, Median, Update
from fedbpt_api.aggregate.state import Floats, GlobalState

CLIENTS, EACH = 8, 8
BUDGET = 7680  # scored examples: 120 prompts on all texts
SPLITS, SEEDS = 40, 1
POPSIZE = 6
IDLE = 10  # rounds that ask for nothing new, after which a play ends


@dataclass(frozen=True)
class Rule:
    """One way to run rounds; what it does not say is FedBPT with 3 generations and one proposal.

    Attributes:
        merge: Makes an aggregator.
        iterations: Generations of a client.
        proposals: Clients' best candidates that all judge.
        means: Clients' means that all judge, those with the smallest losses first.
        active: Clients a round.
        momentum: Share of the server's last step that is added to the next (Hsu et al. 2019).
        probe: Whether means are averaged by their losses on one text of each client, the better half alone.
    """

    merge: Callable[[], Aggregator] = FedBPT
    iterations: int = 3
    proposals: int = 1
    means: int = 0
    active: int = CLIENTS
    momentum: float = 0.0
    probe: bool = False


RULES: dict[str, Rule] = {
    "FedBPT": Rule(),
    "1 local generation": Rule(iterations=1),
    "2 local generations": Rule(iterations=2),
    "8 local generations": Rule(iterations=8),
    "averaged by n_k (FedAvg)": Rule(merge=FedAvg),
    "the median": Rule(merge=Median),
    "averaged, the half with the smaller losses on a common probe": Rule(merge=FedAvg, probe=True),
    "averaged, with momentum 0.5": Rule(merge=FedAvg, momentum=0.5),
    "one client a round (FedOne)": Rule(active=1),
    "three clients a round": Rule(active=3),
    "no proposals": Rule(proposals=0),
    "three proposals": Rule(proposals=3),
    "all judge the three best means too": Rule(proposals=0, means=3),
}


def dealt(table: Table, split: int) -> tuple[Places, list[Places]]:
    """Texts [64] of a play and each client's, which has a mix of labels of its own."""
    rng = np.random.default_rng((5, split))
    own = np.sort(rng.permutation(len(table.labels))[: CLIENTS * EACH])
    left = [list(rng.permutation(own[table.labels[own] == label])) for label in (0, 1)]
    parts = []
    for _ in range(CLIENTS):
        share, mine = rng.beta(0.5, 0.5), list[int]()
        while len(mine) < EACH:
            label = int(rng.random() < share)
            mine.append(left[label if left[label] else 1 - label].pop())
        parts.append(np.sort(mine))
    return own, parts


def federate(play: Play, parts: Sequence[Places], rule: Rule, key: tuple[int, ...]) -> None:
    """Rounds until the budget is spent."""
    play.rows((0, 0), play.own)
    space, rng = Space.of(play.table), np.random.default_rng((*key, 1))
    aggregator, speed = rule.merge(), np.zeros(space.dimension)
    state = aggregator.initial(np.zeros(space.dimension), 1.0)
    idle = 0
    for number in range(1000):
        before = play.spent
        active = rng.permutation(CLIENTS)[: rule.active]
        try:
            found = [_searched(play, parts[k], space, state, rule, (*key, number, k)) for k in sorted(active)]
            updates = [update for update, _ in found]
            if rule.probe:
                probe = np.array([part[number % EACH] for part in parts])
                losses = [plain(play, space.decode(update.mean), probe) for update in updates]
                kept = np.argsort(losses, kind="stable")[: (len(updates) + 1) // 2]
                merged = aggregator.merge(state, [updates[i] for i in kept])
            else:
                merged = aggregator.merge(state, updates)
            speed = rule.momentum * speed + merged.mean - state.mean
            state = replace(merged, mean=state.mean + speed)
            best = [z for _, z in found[number % len(found) :] + found[: number % len(found)]]
            means = [update.mean for update in sorted(updates, key=lambda update: update.loss)]
            for z in [state.mean, *best[: rule.proposals], *means[: rule.means]]:
                play.rows(space.decode(z), play.own)
        except Spent:
            return
        idle = idle + 1 if play.spent == before else 0
        if idle == IDLE:
            return


def _searched(
    play: Play, part: Places, space: Space, state: GlobalState, rule: Rule, key: tuple[int, ...]
) -> tuple[Update, Floats]:
    """A client's round, as federation/local_search.py."""
    local, steps = Plain(space.dimension, state.sigma, POPSIZE, tuple(int(k) for k in key)), list[float]()
    best, least = np.array(state.mean), np.inf
    for _ in range(rule.iterations):
        points = local.ask()
        losses = [plain(play, space.decode(state.mean + z), part) for z in points]
        if min(losses) < least:
            best, least = state.mean + points[int(np.argmin(losses))], min(losses)
        steps.append(local.sigma)
        local.tell(points, losses)
    mean = state.mean + local.state.mean
    loss = plain(play, space.decode(mean), part)
    return Update(f"{key[-1]}", state.round, mean, loss, tuple(steps), POPSIZE, EACH), best


def played(table: Table, rule: Rule) -> Floats:
    """What each play found, shape [plays, 3], as in searches.py."""
    found = []
    for split in range(SPLITS):
        own, parts = dealt(table, split)
        for seed in range(SEEDS):
            play = Play(table, own, BUDGET)
            federate(play, parts, rule, (split, seed))
            found.append(min(truth(play, prompt) for prompt in play.whole()))
    return np.array(found)


def main(file: Annotated[Path, typer.Argument(help="What table.py wrote.")]) -> None:
    table = Table.load(file)
    printed((name, played(table, rule)) for name, rule in RULES.items())


if __name__ == "__main__":
    typer.run(main)
