"""Which words a run reads: by name where the budget and the server allow it, by lists otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.opening import open_parties
from fedbpt_api.run.parties import Keep
from fedbpt_api.run.words import choose_words
from fedbpt_api.task import Task
from toy import Toys, make_task
from toy_runs import make_settings

TEXTS = 36  # training texts of all clients


async def chosen(changes: dict[str, object], task: Task | None = None) -> tuple[tuple[int, ...], int]:
    """The words, and what it took to choose them."""
    task = task or make_task()
    settings = make_settings(task, {"verbalizer.kind": "weighted"} | changes)
    parties = await open_parties(settings, task, lambda: False, Keep())
    parties.start()
    try:
        await choose_words(parties, Assessor(parties, settings, lambda event: None))
        assert parties.words[: len(parties.label_tokens)] == parties.label_tokens
        return parties.words, parties.budget.spent.scored
    finally:
        await parties.aclose()


async def test_words_are_named_where_that_takes_a_fifth_of_the_budget_at_most(toys: Toys) -> None:
    (listed, cheap), (named, dear) = [
        await chosen({"budget.scored": limit, "verbalizer.words": 12}) for limit in (5 * 2 * TEXTS - 1, 5000)
    ]
    assert (cheap, dear) == (TEXTS, 2 * TEXTS)
    assert len(listed) == len(named) == 12


async def test_a_limit_of_tokens_counts_by_what_lists_have_taken(toys: Toys) -> None:
    assert (await chosen({"budget": {"tokens": 3000}}))[1] == TEXTS
    assert (await chosen({"budget": {"tokens": 30_000}}))[1] > TEXTS


async def test_no_party_s_own_budget_is_drained(toys: Toys) -> None:
    many, *few = make_task(train=12).clients
    more = make_task(1, train=90, seed=3).clients[0].train
    task = replace(make_task(), clients=(replace(many, train=more), *few))
    own: dict[str, object] = {"clients.0.budget": {"scored": 350}}
    assert (await chosen(own, task))[1] == 90 + 24


@pytest.mark.parametrize("changes", [{"verbalizer.kind": "bias"}, {"verbalizer.words": 2}])
async def test_nothing_is_asked_where_only_label_words_are_read(
    toys: Toys, changes: dict[str, object]
) -> None:
    assert (await chosen(changes))[1] == 0


async def test_a_server_that_answers_by_lists_is_asked_for_lists_alone(toys: Toys) -> None:
    toys["toy"].complete = False
    assert (await chosen({}))[1] == TEXTS
