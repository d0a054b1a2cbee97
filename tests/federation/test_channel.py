"""Questions to a party behind a network: what they are granted, what is told again, and what ends no run."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import numpy as np
import pytest

from fedbpt_api.errors import FedbptError, QuotaError
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.local_search import Reference
from fedbpt_api.federation.messages import Broadcast, MessageError
from fedbpt_api.federation.remote import RemoteParty
from fedbpt_api.federation.responder import Responder
from fedbpt_api.federation.runtime import ask_all
from fedbpt_api.scoring.budget import Budget, BudgetSpent, Limits
from fedbpt_api.verbalizer import FitError, Verbalizer, fit_over_clients
from toy_clients import GROUPS, PLAN, WORDS, WordSpace, make_client, start_ids


async def test_a_party_whose_quota_is_used_up_is_left_out_like_one_that_failed() -> None:
    honest = await RemoteParty.reach(Responder(await make_client()).answer, Budget())
    responder = Responder(await make_client("client1"))

    async def exchange(data: bytes) -> bytes:
        answer = opened(await responder.answer(data))
        if answer.kind == "facts":
            return seal(answer)
        told = {"message": "the account is empty", "hint": ""}
        return seal(Envelope("quota", {**answer.fields, "answer": told}))

    poor, words = await RemoteParty.reach(exchange, Budget()), Verbalizer.from_words(WORDS, GROUPS)
    prompt, poor.channel.apart = await start_ids(), True
    answers = await ask_all([honest, poor], lambda party: party.evaluate(prompt, words))
    assert list(answers.got) == ["client0"] and answers.missing == {"client1": "the account is empty"}
    poor.channel.apart = False  # a party of this process: all share what is used up
    with pytest.raises(QuotaError, match="the account is empty"):
        await ask_all([honest, poor], lambda party: party.evaluate(prompt, words))


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("stopped", {}, "client1 was stopped"),
        ("spent", {"cap": "scored", "own": False}, "client1 says that the run's budget is spent"),
        ("forgotten", {}, "client1 was started again"),
    ],
)
async def test_no_party_ends_the_run_of_the_others(kind: str, answer: dict[str, Any], reason: str) -> None:
    run = Budget(Limits(scored=1000))
    honest = await RemoteParty.reach(Responder(await make_client()).answer, run)
    responder = Responder(await make_client("client1"))

    async def exchange(data: bytes) -> bytes:
        found = opened(await responder.answer(data))
        if found.kind == "facts":
            return seal(found)
        return seal(Envelope(kind, {**found.fields, "answer": answer}))

    other = await RemoteParty.reach(exchange, run)
    other.channel.apart, words, prompt = True, Verbalizer.from_words(WORDS, GROUPS), await start_ids()
    answers = await ask_all([honest, other], lambda party: party.evaluate(prompt, words))
    assert list(answers.got) == ["client0"] and not answers.spent
    assert answers.missing["client1"].startswith(reason)


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"scored": 0}, "a party does not say what it is"),
        ({"tokens": [2**31]}, "does not hold what it must"),
        ({"name": "n" * 2_000_000}, "too large"),
    ],
)
async def test_who_does_not_say_what_it_can_be_takes_no_part(told: dict[str, Any], problem: str) -> None:
    responder = Responder(await make_client())

    async def exchange(data: bytes) -> bytes:
        answer = opened(await responder.answer(data))
        inner = {**answer.fields["answer"], **told}
        return seal(Envelope(answer.kind, {**answer.fields, "answer": inner}))

    with pytest.raises(FedbptError, match=problem):
        await RemoteParty.reach(exchange, Budget())


@pytest.mark.parametrize(
    "pairs", [[[2**31, 1.0]], [[300, 1.0], [300, 1.0]], [[300, 1.7e308]], [[300, -1.0]], [[-1, 1.0]]]
)
async def test_words_that_cannot_be_are_refused(pairs: list[list[float]]) -> None:
    responder = Responder(await make_client())

    async def exchange(data: bytes) -> bytes:
        answer = opened(await responder.answer(data))
        if answer.kind != "word sums":
            return seal(answer)
        return seal(Envelope(answer.kind, {**answer.fields, "answer": {"pairs": pairs}}))

    party = await RemoteParty.reach(exchange, Budget(Limits(scored=1000)))
    with pytest.raises(MessageError, match="to_pairs"):
        await party.word_sums(await start_ids())


async def test_a_party_that_is_another_process_each_time_is_refused_in_the_end() -> None:
    responder, lives = Responder(await make_client()), itertools.count()

    async def exchange(data: bytes) -> bytes:
        answer = opened(await responder.answer(data))
        spent = {**answer.fields["spent"], "life": str(next(lives))}
        return seal(Envelope(answer.kind, {**answer.fields, "spent": spent}, answer.body))

    party, words = await RemoteParty.reach(exchange, Budget()), Verbalizer.from_words(WORDS, GROUPS)
    with pytest.raises(MessageError, match="started again more than 1,000 times"):
        for _ in range(1002):
            await party.evaluate(await start_ids(), words)


async def test_a_fit_s_message_that_meets_a_party_s_own_budget_is_its_own_failure() -> None:
    responder = Responder(await make_client())

    async def exchange(data: bytes) -> bytes:
        answer = opened(await responder.answer(data))
        if answer.kind != "fit message":
            return seal(answer)
        return seal(Envelope("spent", {**answer.fields, "answer": {"cap": "scored", "own": True}}))

    party = await RemoteParty.reach(exchange, Budget(Limits(scored=1000)))
    fit = await party.fit(await start_ids(), GROUPS)
    with pytest.raises(FitError, match="client0: its own budget is spent") as failed:
        await fit_over_clients([fit], WORDS, GROUPS)
    assert failed.value.client == "client0"


async def test_no_party_says_that_the_run_s_budget_ended_its_search() -> None:
    """It would end the run for all; it may where it was granted less than its search may take."""
    rounds = (WordSpace(), PLAN, Reference(await start_ids(), Verbalizer.from_words(WORDS, GROUPS)))
    for most in (1000, 30):
        responder = Responder(await make_client())

        async def exchange(data: bytes, responder: Responder = responder) -> bytes:
            found = opened(await responder.answer(data))
            inner = found.fields.get("answer", {})
            inner = inner | {"spent": True} if found.kind == "update" else inner
            return seal(Envelope(found.kind, {**found.fields, "answer": inner}, found.body))

        party = await RemoteParty.reach(exchange, Budget(Limits(scored=most)))
        responder._round = party.channel.rounds = rounds
        party.channel.apart = True
        if most == 30:
            assert (await party.search(Broadcast(0, np.zeros(2), 1.0), *rounds)).spent
        else:
            with pytest.raises(FedbptError, match="was granted all that it needs"):
                await party.search(Broadcast(0, np.zeros(2), 1.0), *rounds)


async def test_a_task_that_was_lost_on_its_way_is_told_again() -> None:
    responder, told = Responder(await make_client()), list[bytes]()

    async def exchange(data: bytes) -> bytes:
        told.append(data)
        if len(told) == 1:
            await asyncio.Event().wait()
        return await responder.answer(data)

    party = await RemoteParty.reach(exchange, Budget(), deadline=1)
    assert party.name == "client0" and told == [told[0]] * 2


async def test_what_a_party_may_be_spending_yet_is_granted_to_nobody_else() -> None:
    """It did not answer in time, and is at it still; it is done with that when it answers something else."""
    run, slow = Budget(Limits(scored=20)), asyncio.Event()
    clients = [await make_client(), await make_client("client1")]
    for client in clients:
        client.budget.parent = Budget()
    first, second = map(Responder, clients)

    async def late(data: bytes) -> bytes:
        if opened(data).kind == "fit":
            await slow.wait()
        return await first.answer(data)

    parties = [await RemoteParty.reach(late, run, deadline=1)]
    parties.append(await RemoteParty.reach(second.answer, run))
    with pytest.raises(TimeoutError):
        await parties[0].fit(await start_ids(), GROUPS)  # 12 texts
    assert run.left() == 8
    words = Verbalizer.from_words(WORDS, GROUPS)
    await parties[1].evaluate(await start_ids(), words)  # 8 texts
    with pytest.raises(BudgetSpent):
        await parties[1].evaluate((*await start_ids(), 2), words)
    with pytest.raises(BudgetSpent):
        await parties[0].word_sums(await start_ids())
    assert run.left() == 12


async def test_a_party_that_has_become_another_is_refused_for_good() -> None:
    responder, lives = Responder(await make_client()), 0

    async def exchange(data: bytes) -> bytes:
        nonlocal lives
        answer = opened(await responder.answer(data))
        fields = dict(answer.fields)
        if answer.kind == "facts":
            lives += 1
            fields["answer"] = {**fields["answer"], "fingerprint": str(lives > 1)}
        elif lives == 1:
            return seal(Envelope("forgotten", {"answer": {}}))
        return seal(Envelope(answer.kind, fields, answer.body))

    party = await RemoteParty.reach(exchange, Budget())
    for _ in range(3):
        with pytest.raises(MessageError, match="come back with other texts, or another model"):
            await party.word_sums(await start_ids())
    assert lives == 4


async def test_a_party_that_was_not_told_its_words_is_told_them_again() -> None:
    responder, lost = Responder(await make_client()), ["words"]

    async def exchange(data: bytes) -> bytes:
        if opened(data).kind in lost:
            lost.clear()
            raise FedbptError("lost")
        return await responder.answer(data)

    party = await RemoteParty.reach(exchange, Budget())
    party.use_words((*WORDS, 9))
    with pytest.raises(FedbptError, match="lost"):
        await party.word_sums(await start_ids())
    await party.word_sums(await start_ids())
    assert responder._client.scorer.words == (*WORDS, 9)


async def test_what_is_granted_is_never_exceeded() -> None:
    client = await make_client()
    client.budget.parent = Budget()
    run = Budget(Limits(scored=11))
    party = await RemoteParty.reach(Responder(client).answer, run)
    with pytest.raises(BudgetSpent) as end:
        await party.fit(await start_ids(), GROUPS)  # 12 texts
    assert not end.value.own and run.spent.scored == 0
    await party.evaluate(await start_ids(), Verbalizer.from_words(WORDS, GROUPS))
    assert run.spent.scored == party.budget.spent.scored == 8 and run.left() == 3
