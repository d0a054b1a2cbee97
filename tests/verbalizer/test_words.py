"""The word list: at most 500 pairs a client, label words first, no matter who answers first."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.verbalizer import WordSums, decode, encode, label_groups, merge_words, word_sums

shares = st.dictionaries(st.integers(0, 40), st.floats(2**-20, 1.0), max_size=12)


def test_probabilities_are_summed_over_texts() -> None:
    lists = [{7: math.log(0.5), 3: math.log(0.25)}, {3: math.log(0.5), 9: math.log(0.125)}]
    assert word_sums(lists) == ((3, 0.75), (7, 0.5), (9, 0.125))


def test_a_client_sends_its_500_most_probable_words_in_4_kilobytes() -> None:
    pairs = word_sums([{token: -token / 100 for token in range(600)}])
    assert [token for token, _ in pairs] == list(range(500))
    message = encode(WordSums.of(pairs))
    assert len(message) <= 500 * 8 + 100
    again = decode(message)
    assert isinstance(again, WordSums)
    assert again.pairs() == pairs


def test_label_words_come_first_and_then_the_most_probable() -> None:
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
