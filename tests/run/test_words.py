"""Which words a run reads: by name where the budget and the server allow it, by lists otherwise."""

from __future__ import annotations

import pytest

from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.opening import open_parties
from fedbpt_api.run.parties import Keep
from fedbpt_api.run.words import choose_words
from toy import Toys, make_task
from toy_runs import make_settings

TEXTS = 36  # training texts of all clients


async def chosen(changes: dict[str, object]) -> tuple[tuple[int, ...], int]:
    """The words, and what it took to choose them."""
    task = make_task()
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
    assert len(listed) == len(named) == 12 and set(listed) != set(named)


@pytest.mark.parametrize("changes", [{"verbalizer.kind": "bias"}, {"verbalizer.words": 2}])
async def test_nothing_is_asked_where_only_label_words_are_read(
    toys: Toys, changes: dict[str, object]
) -> None:
    assert (await chosen(changes))[1] == 0


async def test_a_server_that_answers_by_lists_is_asked_for_lists_alone(toys: Toys) -> None:
    toys["toy"].complete = False
    assert (await chosen({}))[1] == TEXTS
