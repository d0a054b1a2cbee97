"""Which words are asked for: the label words, and the words whose log-probability tells texts apart.

A client looks at the words that are probable after its texts and sends at most 500 (token, sum) pairs: the
sum over its texts of the squared distance of the word's log-probability from the client's own mean. The
aggregator adds them up. (The most probable words, by contrast, are much the same after every text: from 128
of them the demo's tweets are read 2 points worse.) No label takes part.

A list ends before the words that only a few texts call forth ("Microsoft", "baseball"), and those tell most:
so the words that vary most by the lists are asked for by name, and the sums are of what these answers say.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedbpt_api.scoring.backend import Floats

MAX_PAIRS = 500
"""Pairs a client sends at most."""

_TIE = 1e-6  # of the summed probability, so that it decides where nothing varies
_PROBABLE = 1000  # words that are looked at: a rare word's log-probability varies, but tells little

_FEWEST = 4  # clients among which one that is odd can be told
_ODD = 4.0  # times another client's

Pairs = tuple[tuple[int, float], ...]


def word_sums(lists: Sequence[Mapping[int, float]]) -> Pairs:
    """A client's message for the word list.

    Args:
        lists: For each text the most probable next tokens, {token id: log-probability}. A token that a list
            lacks is taken to be as probable as the least probable one in it.

    Returns:
        (token, sum of squared deviations in nats squared) of the 500 tokens with the largest sums among the
        1000 with the largest summed probability; largest first, rounded to float32 as they travel.
    """
    kept = [words for words in lists if words]
    mass: defaultdict[int, float] = defaultdict(float)
    for words in kept:
        for token, logprob in words.items():
            mass[int(token)] += math.exp(logprob)
    probable = sorted(mass.items(), key=_largest)[:_PROBABLE]
    if not probable:
        return ()
    tokens = [token for token, _ in probable]
    floors = [min(words.values()) for words in kept]
    rows = np.array(
        [[w.get(token, floor) for token in tokens] for w, floor in zip(kept, floors, strict=True)]
    )
    sums = deviations(rows) + _TIE * np.array([mass[token] for token in tokens])
    return ranked(tokens, sums.tolist())[:MAX_PAIRS]


def deviations(rows: Floats) -> Floats:
    """How much each word's log-probability varies over texts: the sum of its squared distances from its mean.

    Args:
        rows: Log-probabilities of W words after n texts, shape [n, W].

    Returns:
        Nats squared, shape [W].
    """
    return np.asarray(((rows - rows.mean(axis=0)) ** 2).sum(axis=0))


def questions(named: int, beside: int, most: int) -> int:
    """How many questions it takes to ask for words by name, `beside` others in each, `most` in all."""
    return math.ceil(named / (most - beside))


def ranked(tokens: Sequence[int], sums: Sequence[float]) -> Pairs:
    """(token, sum) pairs, the largest sum first, rounded to float32 as they travel."""
    pairs = [(token, float(np.float32(value))) for token, value in zip(tokens, sums, strict=True)]
    return tuple(sorted(pairs, key=_largest))


def merge_words(sums: Iterable[Pairs], label_words: Sequence[int], count: int = 128) -> tuple[int, ...]:
    """The word list: label words in their order, then the others with the largest sums.

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
    ranked = [token for token, _ in sorted(others, key=_largest)]
    return (*label_words, *ranked[: count - len(label_words)])


def bounded(sums: Mapping[str, Pairs], texts: Mapping[str, int]) -> dict[str, Pairs]:
    """What clients sent, where no client makes a word vary much more than every other one does.

    A sum is cut at 4 times, a text, the largest that another client has for the word; where no other names
    it, at 4 times the largest of what their lists end with. With fewer than 4 clients all stays as it is.

    Args:
        sums: By client.
        texts: Their texts.
    """
    each = {name: max(texts[name], 1) for name in sums}
    tables = {name: {t: value / each[name] for t, value in pairs} for name, pairs in sums.items()}
    if len(tables) < _FEWEST:
        return dict(sums)
    ends = {name: min(table.values(), default=0.0) for name, table in tables.items()}
    found: dict[str, Pairs] = {}
    for name, pairs in sums.items():
        others = [table for other, table in tables.items() if other != name]
        end = max(value for other, value in ends.items() if other != name)
        bounds = [
            _ODD * each[name] * max((t.get(token, 0.0) for t in others), default=0.0) for token, _ in pairs
        ]
        least = _ODD * each[name] * end
        found[name] = tuple(
            (token, min(value, max(bound, least)))
            for (token, value), bound in zip(pairs, bounds, strict=True)
        )
    return found


def label_groups(label_words: Sequence[Sequence[object]]) -> tuple[tuple[int, ...], ...]:
    """Columns of each label's words in a list that begins with all label words, label by label."""
    groups: list[tuple[int, ...]] = []
    begin = 0
    for words in label_words:
        groups.append(tuple(range(begin, begin + len(words))))
        begin += len(words)
    return tuple(groups)


def _largest(pair: tuple[int, float]) -> tuple[float, int]:
    return -pair[1], pair[0]
