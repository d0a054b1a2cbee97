"""The Scorer: nothing is paid for twice, nothing that was sent is lost, no budget is passed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import Floats, Prompt, Scores, Usage
from fedbpt_api.scoring.budget import Budget, BudgetSpent, Limits
from fedbpt_api.scoring.encode import EncodedText, Encoder
from fedbpt_api.scoring.journal import Journal, read_journal
from fedbpt_api.scoring.scorer import Scorer, Stopped
from toy import IDS, LABEL_WORDS, PROMPT, TEMPLATE, ToyBackend, make_examples

WORDS = (IDS[" negative"], IDS[" positive"], IDS[" neutral"])
CHUNK = 32  # the most a request holds: after so many texts a scorer can stop


def encode(n: int, seed: int = 0) -> list[EncodedText]:
    encoder = Encoder(ToyBackend(), TEMPLATE, LABEL_WORDS)
    return list(asyncio.run(encoder.texts(make_examples(n, seed))))


TEXTS = encode(100)
IDS_OF_PROMPT = asyncio.run(ToyBackend().tokenize(PROMPT))


def tokens(texts: list[EncodedText], prompt: tuple[int, ...] = IDS_OF_PROMPT) -> int:
    return sum(len(prompt) + len(t.before) + len(t.after) for t in texts)


def scorer(backend: ToyBackend, budget: Budget | None = None) -> Scorer:
    made = Scorer(backend, budget or Budget())
    made.use_words(WORDS)
    return made


async def arrived(backend: ToyBackend) -> None:
    await backend.arrived.wait()
    backend.arrived.clear()


async def turns(n: int = 10) -> None:
    """Let everything run that can."""
    for _ in range(n):
        await asyncio.sleep(0)


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel, and let the cancellation reach what the task is waiting for."""
    task.cancel()
    await turns()


# What is scored ---------------------------------------------------------------------------------


async def test_rows_are_the_backend_s_answers_in_the_order_of_the_texts() -> None:
    asked = scorer(ToyBackend())
    texts = [TEXTS[i] for i in (5, 70, 5, 3, 99, 70)]
    rows = await asked.score(IDS_OF_PROMPT, texts)
    expected = await ToyBackend().score([t.with_prompt(IDS_OF_PROMPT) for t in texts], WORDS)
    np.testing.assert_allclose(rows, expected.logprobs, atol=1e-6)
    np.testing.assert_array_equal(rows, await asked.score(IDS_OF_PROMPT, texts))


async def test_no_texts_need_no_request() -> None:
    backend = ToyBackend()
    assert (await scorer(backend).score(IDS_OF_PROMPT, [])).shape == (0, 3)
    assert backend.requests == 0


async def test_a_prompt_is_sent_to_its_end_before_the_next_one_begins() -> None:
    """So a server with a place for each prompt's first tokens need not evaluate them again and again."""
    backend = ToyBackend()
    asked = scorer(backend)
    sent: list[tuple[int, ...]] = []
    score = backend.score

    async def noted(prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        sent.append(prompts[0].ids[: prompts[0].shared])
        return await score(prompts, words)

    backend.score = noted  # type: ignore[method-assign]
    prompts = [IDS_OF_PROMPT[:n] for n in (2, 3, 4)]
    await asyncio.gather(*(asked.score(prompt, TEXTS) for prompt in prompts))
    assert len(sent) > len(prompts)
    assert [stem for stem, _ in groupby(sent)] == list(dict.fromkeys(sent))


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 9), max_size=8)), max_size=8))
def test_each_pair_is_sent_once_however_often_it_is_asked_for(calls: list[tuple[int, list[int]]]) -> None:
    async def run() -> None:
        backend, budget = ToyBackend(), Budget()
        asked = scorer(backend, budget)
        for prompt, texts in calls:
            await asked.score((300 + prompt,), [TEXTS[i] for i in texts])
        pairs = {(prompt, i) for prompt, texts in calls for i in texts}
        assert set(backend.answered.values()) <= {1}
        assert backend.scored == budget.spent.scored == len(pairs)
        assert budget.duplicates == sum(len(texts) for _, texts in calls) - len(pairs)
        assert budget.spent.prompt_tokens == sum(tokens([TEXTS[i]], (0,)) for _, i in pairs)

    asyncio.run(run())


async def test_a_pair_that_is_on_its_way_is_not_sent_again() -> None:
    backend, budget = ToyBackend(hold=asyncio.Event()), Budget()
    asked = scorer(backend, budget)
    assert backend.hold is not None
    both = [asyncio.create_task(asked.score(IDS_OF_PROMPT, TEXTS[:6])) for _ in range(2)]
    await arrived(backend)
    backend.hold.set()
    first, second = await asyncio.gather(*both)
    np.testing.assert_array_equal(first, second)
    assert (backend.scored, budget.spent.scored, budget.duplicates) == (6, 6, 6)


async def test_other_words_are_other_pairs_and_the_first_ones_stay_paid() -> None:
    backend = ToyBackend()
    asked = scorer(backend)
    first = await asked.score(IDS_OF_PROMPT, TEXTS[:4])
    asked.use_words(WORDS[:2])
    assert (await asked.score(IDS_OF_PROMPT, TEXTS[:4])).shape == (4, 2)
    asked.use_words(WORDS)
    np.testing.assert_array_equal(await asked.score(IDS_OF_PROMPT, TEXTS[:4]), first)
    assert backend.scored == 8


# Budgets ----------------------------------------------------------------------------------------


async def test_what_does_not_fit_is_not_sent_and_costs_nothing() -> None:
    backend, budget = ToyBackend(), Budget(Limits(scored=10))
    asked = scorer(backend, budget)
    await asked.score(IDS_OF_PROMPT, TEXTS[:6])
    with pytest.raises(BudgetSpent):
        await asked.score(IDS_OF_PROMPT, TEXTS[:11])
    assert (backend.scored, budget.left()) == (6, 4)
    await asked.score(IDS_OF_PROMPT, TEXTS[:10])  # six of them are paid for already
    assert (backend.scored, budget.left()) == (10, 0)


async def test_tokens_are_limited_too() -> None:
    backend, budget = ToyBackend(), Budget(Limits(tokens=tokens(TEXTS[:7])))
    asked = scorer(backend, budget)
    with pytest.raises(BudgetSpent):
        await asked.score(IDS_OF_PROMPT, TEXTS[:8])
    await asked.score(IDS_OF_PROMPT, TEXTS[:7])
    assert budget.spent.prompt_tokens == tokens(TEXTS[:7])


@settings(max_examples=60)
@given(
    st.integers(0, 260),
    st.lists(st.none() | st.integers(0, 120), min_size=3, max_size=3),
    st.lists(st.lists(st.integers(1, 100), max_size=4), min_size=3, max_size=3),
    st.lists(st.integers(0, 6), max_size=40),
    st.frozensets(st.integers(1, 12), max_size=2),
)
def test_scorers_at_work_at_the_same_time_never_pass_a_budget_together(
    limit: int,
    own: list[int | None],
    calls: list[list[int]],
    turns: list[int],
    fail_on: frozenset[int],
) -> None:
    """Each client asks for its texts prompt after prompt; the backend answers in any order, or fails."""

    async def client(number: int, asked: Scorer) -> None:
        for prompt, n in enumerate(calls[number]):
            try:
                await asked.score((300 + prompt,), TEXTS[:n])
            except (BudgetSpent, BackendError):
                continue

    async def run() -> None:
        backend, budget = ToyBackend(turns=turns, fail_on=fail_on), Budget(Limits(scored=limit))
        clients = [scorer(backend, Budget(Limits(scored=bound), budget)) for bound in own]
        await asyncio.gather(*(client(i, asked) for i, asked in enumerate(clients)))
        assert budget.spent.scored == backend.scored <= limit
        assert budget.spent.scored == sum(c.budget.spent.scored for c in clients)
        assert budget.left() == limit - budget.spent.scored  # nothing stays set aside
        for asked, bound in zip(clients, own, strict=True):
            assert bound is None or asked.budget.spent.scored <= bound

    asyncio.run(run())


# Interruptions ----------------------------------------------------------------------------------


async def test_what_was_sent_when_the_task_is_cancelled_is_kept_and_the_rest_released() -> None:
    backend, budget = ToyBackend(hold=asyncio.Event()), Budget(Limits(scored=60))
    asked = scorer(backend, budget)
    assert backend.hold is not None
    task = asyncio.create_task(asked.score(IDS_OF_PROMPT, TEXTS[:50]))
    await arrived(backend)
    await cancel(task)
    assert budget.spent.scored + CHUNK <= 60 - (budget.left() or 0)  # on its way, so it stays set aside
    backend.hold.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert backend.requests == 1
    assert (budget.spent.scored, budget.left()) == (CHUNK, 60 - CHUNK)
    await asked.score(IDS_OF_PROMPT, TEXTS[:CHUNK])
    assert backend.requests == 1
    await asked.score(IDS_OF_PROMPT, TEXTS[:50])
    assert backend.scored == 50


async def test_being_cancelled_twice_does_not_release_what_is_still_on_its_way() -> None:
    """As when a round's timeout is followed by the user's Ctrl-C."""
    backend, run = ToyBackend(hold=asyncio.Event()), Budget(Limits(scored=40))
    asked, other = scorer(backend, Budget(parent=run)), scorer(backend, Budget(parent=run))
    assert backend.hold is not None
    task = asyncio.create_task(asked.score(IDS_OF_PROMPT, TEXTS[:CHUNK]))
    await arrived(backend)
    await cancel(task)
    await cancel(task)
    assert run.left() == 40 - CHUNK  # sent, so it will have to be paid
    backend.hold.set()
    await asyncio.wait([task])
    await turns()
    assert (run.spent.scored, run.left()) == (CHUNK, 40 - CHUNK)
    with pytest.raises(BudgetSpent):
        await other.score(IDS_OF_PROMPT, TEXTS[:20])
    assert run.spent.scored <= 40


async def test_a_user_s_stop_takes_effect_between_requests_and_keeps_what_was_scored() -> None:
    backend, budget = ToyBackend(), Budget(Limits(scored=100))
    asked = Scorer(backend, budget, stopping=lambda: backend.requests == 2)
    asked.use_words(WORDS)
    with pytest.raises(Stopped):
        await asked.score(IDS_OF_PROMPT, TEXTS)
    assert (budget.spent.scored, budget.left()) == (2 * CHUNK, 100 - 2 * CHUNK)
    with pytest.raises(Stopped):
        await asked.score(IDS_OF_PROMPT, TEXTS)
    assert backend.requests == 2
    assert (await asked.score(IDS_OF_PROMPT, TEXTS[: 2 * CHUNK])).shape == (2 * CHUNK, 3)


async def test_a_failure_in_the_middle_keeps_what_came_before_and_releases_the_rest() -> None:
    backend, budget = ToyBackend(fail_on=frozenset({2})), Budget(Limits(scored=100))
    asked = scorer(backend, budget)
    with pytest.raises(BackendError, match="request 2"):
        await asked.score(IDS_OF_PROMPT, TEXTS)
    assert (budget.spent.scored, budget.left()) == (CHUNK, 100 - CHUNK)
    assert (await asked.score(IDS_OF_PROMPT, TEXTS)).shape == (100, 3)
    assert set(backend.answered.values()) == {1}
    assert budget.left() == 0


async def test_a_failure_after_cancellation_releases_everything_and_is_not_heard_of_again() -> None:
    backend = ToyBackend(hold=asyncio.Event(), fail_on=frozenset({1}))
    budget = Budget(Limits(scored=100))
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    assert backend.hold is not None
    task = asyncio.create_task(scorer(backend, budget).score(IDS_OF_PROMPT, TEXTS))
    await arrived(backend)
    await cancel(task)
    backend.hold.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    del task
    assert budget.left() == 100
    assert budget.spent == Usage()
    assert not complaints


# Word lists -------------------------------------------------------------------------------------


def top(asked: Scorer, n: int) -> Coroutine[Any, Any, list[dict[int, float]]]:
    return asked.top_words(IDS_OF_PROMPT, TEXTS[:n], 5)


async def test_a_word_list_costs_one_scored_example_a_text() -> None:
    backend, budget = ToyBackend(), Budget(Limits(scored=50))
    lists = await top(scorer(backend, budget), 40)
    assert [len(words) for words in lists] == [5] * 40
    assert (budget.spent.scored, budget.left()) == (40, 10)
    assert budget.spent.prompt_tokens == tokens(TEXTS[:40])
    best: Floats = np.array([max(words.values()) for words in lists])
    assert (best < 0).all()
    with pytest.raises(BudgetSpent):
        await top(scorer(backend, budget), 11)


async def test_a_word_list_that_fails_midway_counts_what_was_answered() -> None:
    budget = Budget(Limits(scored=100))
    with pytest.raises(BackendError):
        await top(scorer(ToyBackend(fail_from=2), budget), 100)
    assert (budget.spent.scored, budget.left()) == (CHUNK, 100 - CHUNK)


async def test_a_word_list_that_is_cancelled_counts_what_was_on_its_way() -> None:
    backend, budget = ToyBackend(hold=asyncio.Event()), Budget(Limits(scored=100))
    assert backend.hold is not None
    task = asyncio.create_task(top(scorer(backend, budget), 100))
    await arrived(backend)
    await cancel(task)
    backend.hold.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert backend.requests == 1
    assert (budget.spent.scored, budget.left()) == (CHUNK, 100 - CHUNK)


async def test_what_was_sent_when_the_user_stops_is_received_before_the_run_ends(tmp_path: Path) -> None:
    backend, stopping = ToyBackend(hold=asyncio.Event()), False
    budget = Budget()
    asked = Scorer(backend, budget, lambda: stopping, Journal(tmp_path / "x", b"s"))
    asked.use_words(WORDS)
    task = asyncio.create_task(asked.score(IDS_OF_PROMPT, TEXTS))  # more than one request
    await arrived(backend)
    stopping = True
    await turns()
    assert backend.hold is not None
    backend.hold.set()
    with pytest.raises(Stopped):
        await task
    assert asked.journal is not None
    asked.journal.close()
    kept = sum(len(record.keys) for record in read_journal(tmp_path / "x"))
    assert kept == backend.scored == budget.spent.scored > 0
    await asked.aclose()
