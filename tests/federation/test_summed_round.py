"""A round of sums: what is not asked for, and what becomes of the round then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from fedbpt_api.aggregate import FedBPT, GlobalState, Update
from fedbpt_api.aggregate.summed import Weighing
from fedbpt_api.federation.account import Account
from fedbpt_api.federation.channel import Channel
from fedbpt_api.federation.facts import Facts
from fedbpt_api.federation.local_search import Plan, Reference, Searched
from fedbpt_api.federation.messages import Broadcast
from fedbpt_api.federation.summed_round import SummedParty, summed_round
from fedbpt_api.prompts.space import PromptSpace
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.verbalizer import Verbalizer
from toy import ToyBackend
from toy_clients import GROUPS, PLAN, WORDS, WordSpace

D = 2


@dataclass
class Searching(SummedParty):
    """Three parties, of whose searches so many came to something."""

    moved: int = 3
    weighed: list[Weighing] = field(default_factory=list)

    async def search_together(
        self, broadcast: Broadcast, space: PromptSpace, plan: Plan, reference: Reference
    ) -> dict[str, Searched]:
        found = {}
        for k, name in enumerate("abc"):
            update = Update(name, broadcast.round, broadcast.mean, 1.0 + k, (1.0,), plan.population, 9, 4)
            found[name] = Searched(update, 1.0, False, k < self.moved)
        return found

    async def weigh(
        self, told: Weighing, state: GlobalState, search: Callable[[], Awaitable[object]]
    ) -> Floats:
        self.weighed.append(told)
        return np.zeros(told.length(D))


@pytest.mark.parametrize(("moved", "asked", "after"), [(3, 1, 1), (2, 0, 1), (1, 0, 1), (0, 0, 0)])
async def test_steps_of_fewer_than_three_parties_are_not_asked_for(
    moved: int, asked: int, after: int
) -> None:
    """Parties would refuse; the next round draws anew, unless nothing was found at all."""
    facts = Facts("together", 27, 0, 0, (14, 13), (1, 2), 9, ToyBackend().info, None)

    async def nobody(data: bytes) -> bytes:
        raise AssertionError("nothing is asked")

    party = Searching(Channel(facts, nobody, Account("together", Budget()), b""), moved=moved)
    state = GlobalState.first(np.full(D, 0.5), 1.0)
    reference = Reference((1,), Verbalizer.from_words(WORDS, GROUPS))
    done = await summed_round(party, state, FedBPT("paper"), WordSpace(), PLAN, reference)
    assert len(party.weighed) == asked and done.state.round == after
    np.testing.assert_allclose(done.state.mean, state.mean)
    assert (done.state.sigma == state.sigma) or asked
