"""Which words are asked for: the label words and the words most probable on the training texts.

A client sends at most 500 (token, summed probability) pairs over its texts; the aggregator adds them up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

MAX_PAIRS = 500
"""Pairs a client sends at most."""

Pairs = tuple[tuple[int, float], ...]


def word_sums(lists: Sequence[Mapping[int, float]]) -> Pairs:
    """A client's message for the word list.

    Args:
        lists: For each text the most probable next tokens, {token id: log-probability}.

    Returns:
        At most 500 (token, summed probability), largest first, rounded to float32 as they travel.
    """
    found: defaultdict[int, list[float]] = defaultdict(list)
    for words in lists:
        for token, logprob in words.items():
            found[int(token)].append(math.exp(logprob))
    sums = [(token, float(np.float32(math.fsum(values)))) for token, values in found.items()]
    return tuple(sorted(sums, key=_most_probable)[:MAX_PAIRS])


def merge_words(sums: Iterable[Pairs], label_words: Sequence[int], count: int = 128) -> tuple[int, ...]:
    """The word list: label words in their order, then the most probable others.

    Args:
        sums: What the clients sent; the order of clients does not matter.
        label_words: Token ids of all label words.
        count: Words in all; fewer where the clients named fewer.

    Raises:
        ValueError: More label words than `count`, or a label word twice.
    """
    if len(set(label_words)) != len(label_words) or len(label_words) > count:
        raise ValueError(f"expected at most {count} different label words, got {list(label_words)}")
    found: defaultdict[int, list[float]] = defaultdict(list)
    for pairs in sums:
        for token, value in pairs:
            found[token].append(value)
    others = [(t, math.fsum(values)) for t, values in found.items() if t not in set(label_words)]
    ranked = [token for token, _ in sorted(others, key=_most_probable)]
    return (*label_words, *ranked[: count - len(label_words)])


def label_groups(label_words: Sequence[Sequence[object]]) -> tuple[tuple[int, ...], ...]:
    """Columns of each label's words in a list that begins with all label words, label by label."""
    groups: list[tuple[int, ...]] = []
    begin = 0
    for words in label_words:
        groups.append(tuple(range(begin, begin + len(words))))
        begin += len(words)
    return tuple(groups)


def _most_probable(pair: tuple[int, float]) -> tuple[float, int]:
    return -pair[1], pair[0]
