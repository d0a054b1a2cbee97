"""The word list: at most 500 pairs a client, label words first, no matter who answers first."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.verbalizer import (
    WordSums,
    decode,
    deviations,
    encode,
    label_groups,
    merge_words,
    questions,
    word_sums,
)
from fedbpt_api.verbalizer.words import bounded

shares = st.dictionaries(st.integers(0, 40), st.floats(2**-20, 1.0), max_size=12)


def test_squared_deviations_of_log_probabilities_are_summed_over_texts() -> None:
    half, quarter, eighth = (math.log(p) for p in (0.5, 0.25, 0.125))
    lists = [{7: half, 3: quarter}, {3: half, 9: eighth}]
    # text 1: 7, 3 and, unlisted, 9 at the least probable, a quarter; text 2: 7 at an eighth, 3, 9
    by_hand = {7: (half - eighth) ** 2 / 2, 3: (half - quarter) ** 2 / 2, 9: (quarter - eighth) ** 2 / 2}
    pairs = word_sums(lists)
    assert [token for token, _ in pairs] == [7, 3, 9]
    assert dict(pairs) == pytest.approx(by_hand, abs=2e-6)


def test_words_that_are_as_probable_after_every_text_come_last() -> None:
    lists = [{1: -0.5, 2: -3.0 - i % 2, 3: -2.0} for i in range(6)]
    assert [token for token, _ in word_sums(lists)] == [2, 1, 3]
    assert dict(word_sums(lists))[1] < 1e-5


def test_from_one_text_the_most_probable_words_are_named() -> None:
    assert [token for token, _ in word_sums([{1: -4.0, 2: -1.0, 3: -2.0, 4: -9.0}])] == [2, 3, 1, 4]


def test_a_client_whose_lists_are_empty_names_no_words() -> None:
    assert word_sums([{}, {}]) == word_sums([]) == ()


def test_a_client_sends_its_500_most_probable_words_in_4_kilobytes() -> None:
    pairs = word_sums([{token: -token / 100 for token in range(600)}])
    assert [token for token, _ in pairs] == list(range(500))
    message = encode(WordSums.of(pairs))
    assert len(message) <= 500 * 8 + 100
    again = decode(message)
    assert isinstance(again, WordSums)
    assert again.pairs() == pairs


@given(st.integers(0, 2**32 - 1), st.floats(-5, 5))
def test_deviations_are_those_of_lists_that_are_whole(seed: int, shift: float) -> None:
    rows = np.random.default_rng(seed).normal(-9.0, 1.0, size=(12, 5))
    listed = dict(word_sums([dict(enumerate(row)) for row in rows]))
    assert deviations(rows + shift) == pytest.approx([listed[token] for token in range(5)], rel=1e-4)


@pytest.mark.parametrize(("named", "expected"), [(0, 0), (1, 1), (7, 1), (8, 2), (248, 36)])
def test_questions_hold_the_words_beside_others(named: int, expected: int) -> None:
    assert questions(named, beside=2, most=9) == expected


def test_label_words_come_first_and_then_the_largest_sums() -> None:
    sums = [((5, 0.5), (1, 0.4), (8, 0.25)), ((8, 0.5), (2, 0.6), (5, 0.125))]
    assert merge_words(sums, [2, 30], 5) == (2, 30, 8, 5, 1)
    assert merge_words(sums, [2, 30], 3) == (2, 30, 8)
    assert merge_words([], [2, 30]) == (2, 30)


@given(st.lists(shares, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter(clients: list[dict[int, float]], random: Random) -> None:
    sums = [word_sums([{t: math.log(p) for t, p in client.items()}]) for client in clients]
    mixed = list(sums)
    random.shuffle(mixed)
    words = merge_words(sums, [100, 101], 10)
    assert merge_words(mixed, [100, 101], 10) == words
    assert len(words) == len(set(words)) == min(10, 2 + len({t for client in clients for t in client}))


def test_too_many_or_repeated_label_words_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 2 different"):
        merge_words([], [1, 2, 3], 2)
    with pytest.raises(ValueError, match="at most 9 different"):
        merge_words([], [1, 1], 9)


def test_groups_are_columns_in_the_order_of_the_labels() -> None:
    assert label_groups([[" bad", " awful"], [" good"]]) == ((0, 1), (2,))


def test_no_client_makes_a_word_vary_more_than_four_times_as_much_as_another_has_it() -> None:
    honest = dict.fromkeys("abc", ((7, 10.0), (8, 6.0), (9, 1.0)))
    texts = dict.fromkeys("abcd", 10) | {"d": 20}
    liar = ((50, 1e9), (8, 1e9), (9, 7.0), (7, 19.0))
    kept = bounded(honest | {"d": liar}, texts)
    assert {name: kept[name] for name in "abc"} == honest
    # A text 0.6 nats squared is the others' for 8, and 0.1 what their lists end with; of 20 texts, times 4.
    assert [token for token, _ in kept["d"]] == [50, 8, 9, 7]
    assert [value for _, value in kept["d"]] == pytest.approx([8.0, 48.0, 7.0, 19.0])
    three = {name: pairs for name, pairs in (honest | {"d": liar}).items() if name != "a"}
    assert bounded(three, texts) == three


@given(st.lists(shares, min_size=4, max_size=8), st.integers(1, 50))
def test_clients_that_say_the_same_stay_as_they_are(clients: list[dict[int, float]], n: int) -> None:
    pairs = word_sums([{t: math.log(p) for t, p in client.items()} for client in clients])
    sums = {str(number): pairs for number in range(5)}
    assert bounded(sums, dict.fromkeys(sums, n)) == sums
