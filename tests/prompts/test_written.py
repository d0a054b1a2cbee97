"""Lines that the model writes: where they end, and that tokens are drawn as often as they should be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from fedbpt_api.prompts.written import write_line

TEXTS = {1: " good", 2: " film", 3: "\n", 4: ".", 5: "\ufffd", 6: " bad", 7: "  ", 8: "<|im_end|>"}
TEXTS[9] = " nice!"
Lists = Mapping[int, float]


def written(lists: list[Lists], seed: int = 0) -> tuple[int, ...]:
    """A line where the lists after 0, 1, 2, ... tokens are these, the last one for ever."""

    async def probable(ids: tuple[int, ...]) -> Lists:
        return lists[min(len(ids), len(lists) - 1)]

    async def text_of(ids: tuple[int, ...]) -> str:
        return "".join(TEXTS[token] for token in ids)

    return asyncio.run(write_line(probable, text_of, np.random.default_rng(seed)))


@pytest.mark.parametrize("end", [3, 7, 8])
def test_a_line_ends_before_a_line_break_a_blank_or_a_special_token(end: int) -> None:
    assert written([{1: 0.0}, {2: 0.0}, {1: 0.0}, {end: 0.0}]) == (1, 2, 1)


@pytest.mark.parametrize("end", [4, 9])
def test_a_line_ends_after_a_sentence(end: int) -> None:
    assert written([{1: 0.0}, {2: 0.0}, {end: 0.0}, {1: 0.0}]) == (1, 2, end)


def test_a_line_has_at_most_20_tokens() -> None:
    assert written([{1: 0.0}]) == (1,) * 20


def test_no_line_is_shorter_than_three_tokens_where_the_model_has_another_choice() -> None:
    end_first: Lists = {3: -0.001, 6: -9.0}
    for seed in range(20):
        assert written([end_first, end_first, end_first, {3: 0.0}], seed) == (6, 6, 6)


def test_parts_of_characters_are_never_written() -> None:
    for seed in range(20):
        assert 5 not in written([{5: -0.01, 1: -5.0}], seed)


def test_without_a_token_that_can_be_used_the_line_ends() -> None:
    assert written([{}]) == written([{5: 0.0}]) == written([{3: 0.0}]) == ()


def test_tokens_are_drawn_as_the_softmax_at_temperature_0_8_says() -> None:
    first = {1: np.log(0.6), 2: np.log(0.3), 6: np.log(0.1)}
    counts = Counter(written([first, {1: 0.0}, {4: 0.0}], seed)[0] for seed in range(3000))
    weights = {token: p ** (1 / 0.8) for token, p in ((1, 0.6), (2, 0.3), (6, 0.1))}
    for token, weight in weights.items():
        share = weight / sum(weights.values())
        error = np.sqrt(share * (1 - share) / 3000)
        assert abs(counts[token] / 3000 - share) < 4 * error


def test_the_same_seed_writes_the_same_line_in_whatever_order_a_server_lists_tokens() -> None:
    some = {1: -1.0, 2: -1.1, 6: -1.2, 4: -3.0}
    turned = dict(reversed(some.items()))
    for seed in range(20):
        assert written([some], seed) == written([turned], seed)
