"""FedBPT's round where only sums arrive: searches, then weights, then weighed steps (`aggregate.summed`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from fedbpt_api.aggregate import Aggregator, FedAvg, FedBPT, GlobalState, Update, check_updates
from fedbpt_api.aggregate.summed import Weighing, merged, weighing
from fedbpt_api.errors import ConfigError, QuorumError
from fedbpt_api.federation import plain
from fedbpt_api.federation.forgotten import patiently
from fedbpt_api.federation.local_search import Plan, Reference, Searched
from fedbpt_api.federation.masks import LEAST
from fedbpt_api.federation.messages import Broadcast, decode_state, encode_state
from fedbpt_api.federation.remote import RemoteParty
from fedbpt_api.federation.runtime import Round
from fedbpt_api.federation.together import SIZE
from fedbpt_api.prompts.space import PromptSpace
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer.discriminant import triangle


class SummedParty(RemoteParty):
    """Parties behind a `Together`: all of a question fits into the budget, or nothing is scored for it."""

    most_pairs = SIZE
    whole = True

    async def search_together(
        self, broadcast: Broadcast, space: PromptSpace, plan: Plan, reference: Reference
    ) -> dict[str, Searched]:
        """The searches of all parties, by name; a search's `update.mean` is where it began."""
        async with self._in_time():
            answer = await patiently(lambda: self._search(broadcast, (space, plan, reference)))
        return {
            str(name): _searched(str(name), told, broadcast) for name, told in _members(answer.fields).items()
        }

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Nobody can be left out of a sum.

        Raises:
            QuorumError: One has not answered within the deadline.
        """
        try:
            async with asyncio.timeout(self.deadline):
                yield
        except TimeoutError:
            raise QuorumError(
                f"not all parties have answered within {self.deadline:g} s",
                "see what they say, then start again: sums need all of them",
            ) from None

    async def weigh(
        self,
        told: Weighing,
        state: GlobalState,
        search: Callable[[], Awaitable[object]],
    ) -> Floats:
        """The sum of what parties weigh; `search` has them search again, where one forgot."""
        upper = triangle(state.dimension)
        body = b"" if state.covariance is None or not told.second else state.covariance[upper].tobytes()
        fields = {
            "round": state.round,
            "weights": told.weights,
            "sigma": told.sigma,
            "second": told.second,
        }

        async def again() -> None:
            await search()  # scored before, so it costs nothing

        async with self._in_time():
            answer = await patiently(lambda: self.channel.once("weighed", fields, body=body), again)
        row = np.frombuffer(answer.body, dtype="<f8")
        return plain.to_floats(row if row.size == told.length(state.dimension) else None)


async def summed_round(
    party: SummedParty,
    state: GlobalState,
    aggregator: Aggregator,
    space: PromptSpace,
    plan: Plan,
    reference: Reference,
) -> Round:
    """One round: broadcast, local searches, weights, sums, merge.

    Raises:
        ConfigError: The aggregator needs each client's mean.
        BudgetSpent: The run's budget, or a party's own, ended.
        QuorumError: Not all have answered in time.
    """
    if not isinstance(aggregator, FedBPT | FedAvg):
        raise ConfigError(f"federation.aggregator: {aggregator.name} needs each party's mean", "use 'fedbpt'")
    rule = aggregator if isinstance(aggregator, FedBPT) else None
    down = encode_state(state)
    broadcast = decode_state(down)

    async def search() -> dict[str, Searched]:
        return await party.search_together(broadcast, space, plan, reference)

    searched = await search()
    moved = [found.update for found in searched.values() if found.moved]
    after, up = state, 0
    if len(moved) >= LEAST:  # of fewer, parties tell no sum
        answers = check_updates(state, moved)
        told = weighing(rule, state, answers)
        after = merged(rule, state, answers, told, await party.weigh(told, state, search))
        up = 8 * told.length(state.dimension)
    elif moved:
        after = replace(state, round=state.round + 1)
    return Round(state=after, searched=searched, missing={}, bytes_up=up, bytes_down=len(down))


@plain.reading
def _members(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(fields["members"])


@plain.reading
def _searched(name: str, told: Mapping[str, Any], broadcast: Broadcast) -> Searched:
    """What a party told of its search."""
    update = Update(
        client=name,
        round=plain.whole(told["round"]),
        mean=broadcast.mean,
        loss=plain.finite(told["loss"]),
        step_sizes=tuple(plain.finite(size) for size in told["step_sizes"]),
        population=plain.whole(told["population"]),
        n=plain.whole(told["n"]),
        scored=plain.whole(told["scored"]),
    )
    if told["client"] != name or not all(type(told[key]) is bool for key in ("spent", "moved")):
        raise ValueError(f"{told['client']} for {name}, or no end of a search")
    return Searched(update, plain.finite(told["distinct"]), told["spent"], told["moved"])
