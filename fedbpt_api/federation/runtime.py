"""The in-process federation: clients are async tasks; a round waits for them, within a deadline.

A client that fails or is late is left out of the round and named. The round goes on while a quorum
answers. Updates are sorted by client before they are used, so the order of arrival does not matter.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np

from fedbpt_api.aggregate import Aggregator, GlobalState, Update, UpdateError, check_updates, clipped
from fedbpt_api.errors import FedbptError, QuorumError, QuotaError, RunFolderError
from fedbpt_api.federation.local_search import Plan, Reference, Searched
from fedbpt_api.federation.messages import (
    MessageError,
    decode_state,
    decode_update,
    encode_state,
    encode_update,
)
from fedbpt_api.federation.party import Party
from fedbpt_api.prompts.space import PromptSpace
from fedbpt_api.scoring.budget import BudgetSpent, shared_out
from fedbpt_api.scoring.scorer import Stopped

R = TypeVar("R")
P = TypeVar("P", bound=Party)
_PURPOSE_SAMPLE = 7
_ADVICE = "see what the clients say, then start again; lower federation.quorum to go on with fewer"


@dataclass(frozen=True, slots=True)
class Rules:
    """Who takes part in a round and how long it may take.

    Attributes:
        participation: Share of the clients that are asked.
        quorum: Share of the asked clients that must answer.
        timeout: Seconds after which a client is left out; None waits.
        clip: Multiple of the median step at which steps are clipped before the merge; 0 is off.
    """

    participation: float = 1.0
    quorum: float = 0.5
    timeout: float | None = None
    clip: float = 0.0


@dataclass(frozen=True, slots=True)
class Answers(Generic[R]):
    """What came back.

    Attributes:
        got: Answers by client name.
        missing: Why the others are missing.
        spent: Those of them whose own budget is spent.
        refused: Those of them who answered what cannot be.
        hints: What each of them may do about it.
    """

    got: dict[str, R] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    spent: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    hints: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """One merged round."""

    state: GlobalState
    searched: dict[str, Searched]
    missing: dict[str, str]
    bytes_up: int
    bytes_down: int

    @property
    def spent(self) -> bool:
        """Whether the run's budget ended in this round."""
        return any(s.spent for s in self.searched.values())


async def ask_all(
    clients: Sequence[P], question: Callable[[P], Awaitable[R]], timeout: float | None = None
) -> Answers[R]:
    """Put one question to all clients at the same time; failures, delays and spent budgets are answers too.

    Raises:
        BudgetSpent, Stopped: When the run's budget or the user ends the question (after all have ended).
        QuotaError, RunFolderError: When no more can be paid for, or kept on disk.
    """

    async def one(client: P) -> R:
        async with asyncio.timeout(timeout):
            return await question(client)

    results = await asyncio.gather(*(one(c) for c in clients), return_exceptions=True)
    answers: Answers[R] = Answers()
    for client, result in zip(clients, results, strict=True):
        if isinstance(result, BudgetSpent) and result.own:
            answers.missing[client.name] = str(result)
            answers.spent.add(client.name)
        elif isinstance(result, BudgetSpent | Stopped | QuotaError | RunFolderError | asyncio.CancelledError):
            raise result
        elif isinstance(result, TimeoutError):
            answers.missing[client.name] = f"no answer within {timeout:g} s"
        elif isinstance(result, FedbptError):
            answers.missing[client.name] = result.message
            answers.hints[client.name] = result.hint
            if isinstance(result, MessageError):
                answers.refused.add(client.name)
        elif isinstance(result, BaseException):
            raise result
        else:
            answers.got[client.name] = result
    return answers


def need_quorum(answers: Answers[R], asked: int, quorum: float) -> None:
    """Go on only where `quorum` of the asked clients answered.

    Raises:
        BudgetSpent: Too few answered only because clients' own budgets are spent: a planned end.
        QuorumError: Too few answered.
    """
    needed = max(1, math.ceil(quorum * asked - 1e-9))
    if len(answers.got) >= needed:
        return
    if len(answers.got) + len(answers.spent) >= needed:
        raise BudgetSpent(f"clients {', '.join(sorted(answers.spent))}")
    told = {hint for hint in answers.hints.values() if hint}
    why = "; ".join(f"{name}: {reason}" for name, reason in sorted(answers.missing.items()))
    raise QuorumError(
        f"only {len(answers.got)} of {asked} clients answered ({why})",
        told.pop() if len(told) == 1 else _ADVICE,
    )


def sample(clients: Sequence[P], participation: float, seed: int, round_number: int) -> list[P]:
    """The clients that are asked in a round, drawn anew each round."""
    count = max(1, round(participation * len(clients)))
    if count == len(clients):
        return list(clients)
    rng = np.random.default_rng((seed, round_number, _PURPOSE_SAMPLE))
    chosen = rng.choice(len(clients), count, replace=False)
    return [clients[i] for i in sorted(chosen)]


async def search_round(
    clients: Sequence[Party],
    state: GlobalState,
    aggregator: Aggregator,
    space: PromptSpace,
    plan: Plan,
    reference: Reference,
    rules: Rules,
) -> Round:
    """One FedBPT round: broadcast, local searches side by side, merge.

    Messages are encoded and decoded in process too, so the server works with what would arrive.

    Raises:
        BudgetSpent: The run's budget, or too many clients' own, ended.
        QuorumError: Too few clients answered.
    """
    down = encode_state(state)

    async def search(client: Party) -> tuple[Searched, bytes]:
        searched = await client.search(decode_state(down), space, plan, reference)
        return searched, encode_update(searched.update)

    budgets = [client.budget for client in clients]
    with shared_out(budgets, [client.search_cost(plan) for client in clients]):
        answers = await ask_all(clients, search, rules.timeout)
    updates: dict[str, Update] = {}
    accepted: Answers[Searched] = Answers(
        missing=dict(answers.missing), spent=answers.spent, hints=answers.hints
    )
    for name, (searched, up) in sorted(answers.got.items()):
        update = decode_update(up)
        try:
            check_updates(state, [update])
        except UpdateError as error:
            accepted.missing[name] = error.message
            continue
        accepted.got[name] = replace(searched, update=update)  # with the numbers that arrived
        if searched.moved:  # a search that learnt nothing has nothing to say
            updates[name] = update
    need_quorum(accepted, len(clients), rules.quorum)
    if rules.clip and updates:
        updates = {update.client: update for update in clipped(state, list(updates.values()), rules.clip)}
    merged = aggregator.merge(state, updates.values()) if updates else state
    return Round(
        state=merged,
        searched=accepted.got,
        missing=accepted.missing,
        bytes_up=max((len(up) for _, up in answers.got.values()), default=0),
        bytes_down=len(down),
    )
