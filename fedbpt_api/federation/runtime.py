"""The in-process federation: clients are async tasks; a round waits for them, within a deadline.

A client that fails or is late is left out of the round and named. The round goes on while a quorum
answers. Updates are sorted by client before they are used, so the order of arrival does not matter.

A search that is late may go on: its client is not asked to search again meanwhile, and its update joins the
merge of the round in which it is there (`latecomers`, `aggregate.late`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

import numpy as np

from fedbpt_api.aggregate import Aggregator, GlobalState, Update, UpdateError, check_updates, clipped, rebased
from fedbpt_api.errors import FedbptError, QuorumError, QuotaError, RunFolderError
from fedbpt_api.federation.latecomers import Latecomers
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
        late: Whether a late search goes on and joins a later round, or is dropped.
    """

    participation: float = 1.0
    quorum: float = 0.5
    timeout: float | None = None
    clip: float = 0.0
    late: Literal["use", "drop"] = "drop"


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
    """One merged round.

    Attributes:
        state: After it.
        searched: What clients found, those that joined late included.
        missing: Why other clients' updates are missing.
        bytes_up, bytes_down: The longest messages.
        stale: By how many rounds late ones joined.
        refused: Those of the missing ones who sent what cannot be.
    """

    state: GlobalState
    searched: dict[str, Searched]
    missing: dict[str, str]
    bytes_up: int
    bytes_down: int
    stale: dict[str, int] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()

    @property
    def spent(self) -> bool:
        """Whether the run's budget ended in this round."""
        return any(s.spent for s in self.searched.values())


async def ask_all(
    clients: Sequence[P],
    question: Callable[[P], Awaitable[R]],
    timeout: float | None = None,
    late: Callable[[P, asyncio.Task[R]], None] | None = None,
) -> Answers[R]:
    """Put one question to all clients at the same time; failures, delays and spent budgets are answers too.

    Args:
        clients: Who is asked.
        question: What.
        timeout: Seconds after which an answer is late; None waits.
        late: Takes over what is late; without it that is cancelled.

    Raises:
        BudgetSpent, Stopped: When the run's budget or the user ends the question (after all have ended).
        QuotaError, RunFolderError: When no more can be paid for, or kept on disk.
    """

    async def one(client: P) -> R:
        if late is None:
            async with asyncio.timeout(timeout):
                return await question(client)
        task = asyncio.ensure_future(question(client))
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(task)
        except TimeoutError:
            if task.done():  # just now, or its own server's time is over
                return task.result()
            late(client, task)
            raise
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise

    results = await asyncio.gather(*(one(c) for c in clients), return_exceptions=True)
    answers: Answers[R] = Answers()
    for client, result in zip(clients, results, strict=True):
        _enter(answers, client.name, result, timeout)
    return answers


def _enter(answers: Answers[R], name: str, result: R | BaseException, timeout: float | None) -> None:
    """Enter an answer, or why there is none.

    Raises:
        BudgetSpent, Stopped, QuotaError, RunFolderError, CancelledError: What ends the run is no answer.
    """
    if isinstance(result, BudgetSpent) and result.own:
        answers.missing[name] = str(result)
        answers.spent.add(name)
    elif isinstance(result, BudgetSpent | Stopped | QuotaError | RunFolderError | asyncio.CancelledError):
        raise result
    elif isinstance(result, TimeoutError):
        answers.missing[name] = f"no answer within {timeout:g} s"
    elif isinstance(result, FedbptError):
        answers.missing[name] = result.message
        answers.hints[name] = result.hint
        if isinstance(result, MessageError):
            answers.refused.add(name)
    elif isinstance(result, BaseException):
        raise result
    else:
        answers.got[name] = result


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


Late = Latecomers[tuple[Searched, bytes]]
"""Late searches, each with its update as it travels."""


async def search_round(
    clients: Sequence[Party],
    state: GlobalState,
    aggregator: Aggregator,
    space: PromptSpace,
    plan: Plan,
    reference: Reference,
    rules: Rules,
    late: Late | None = None,
) -> Round:
    """One FedBPT round: broadcast, local searches side by side, merge.

    Messages are encoded and decoded in process too, so the server works with what would arrive.

    Args:
        clients: Who is asked; not those that are busy with a late search.
        state: Where the searches begin.
        aggregator: Merges.
        space: What is searched.
        plan: How.
        reference: What candidates are compared with.
        rules: For how long, and how many must answer.
        late: Searches of earlier rounds that go on, where `rules` let them.

    Raises:
        BudgetSpent: The run's budget, or too many clients' own, ended.
        QuorumError: Too few clients answered.
    """
    late = late if late is not None else Latecomers()
    down = encode_state(state)

    async def search(client: Party) -> tuple[Searched, bytes]:
        searched = await client.search(decode_state(down), space, plan, reference)
        return searched, encode_update(searched.update)

    def goes_on(client: Party, task: asyncio.Task[tuple[Searched, bytes]]) -> None:
        late.add(client.name, state, task)

    for name, failed in late.freed(state.round).items():
        _enter(Answers(), name, failed, rules.timeout)  # what does not end the run is asked for again
    free = [client for client in clients if client.name not in late.busy]
    answers: Answers[tuple[Searched, bytes]] = Answers()
    if free:
        with shared_out([c.budget for c in free], [c.search_cost(plan) for c in free]):
            known = late.known(state.round)
            for client in free:
                if client.name in known:
                    goes_on(client, asyncio.ensure_future(search(client)))
            asked = [client for client in free if client.name not in known]
            answers = await ask_all(asked, search, rules.timeout, goes_on if rules.late == "use" else None)
    sent: dict[str, GlobalState] = {}
    for name, one in (await late.arrived(state.round, rules.timeout, alone=not free)).items():
        sent[name] = one.sent
        _enter(answers, name, one.found, rules.timeout)
    for name, since in late.busy.items():
        answers.missing[name] = (
            f"still at the search of round {since + 1}"  # as a run's report counts them
            if since < state.round
            else f"no answer within {rules.timeout:g} s"
        )
    updates: dict[str, Update] = {}
    accepted: Answers[Searched] = Answers(
        missing=dict(answers.missing),
        spent=answers.spent,
        hints=answers.hints,
        refused=answers.refused,
    )
    for name, (searched, up) in sorted(answers.got.items()):
        update = decode_update(up)
        try:
            if name in sent:
                update = rebased(update, sent[name], state)
            check_updates(state, [update])
        except UpdateError as error:
            accepted.missing[name] = error.message
            accepted.refused.add(name)
            continue
        accepted.got[name] = replace(searched, update=update)  # with the numbers that arrived
        if searched.moved:  # a search that learnt nothing has nothing to say
            updates[name] = update
    need_quorum(accepted, len(clients), rules.quorum)
    late.note(state.round, sent)  # a round that ended the run is tried again, whoever was late
    if rules.clip and updates:
        updates = {update.client: update for update in clipped(state, list(updates.values()), rules.clip)}
    merged = aggregator.merge(state, updates.values()) if updates else state
    return Round(
        state=merged,
        searched=accepted.got,
        missing=accepted.missing,
        bytes_up=max((len(up) for _, up in answers.got.values()), default=0),
        bytes_down=len(down),
        stale={name: state.round - sent[name].round for name in accepted.got if name in sent},
        refused=frozenset(accepted.refused),
    )
