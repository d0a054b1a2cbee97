"""Applying a verbalizer: numbers worked out by hand, and what must not change them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.verbalizer import Verbalizer

WORDS = (11, 12, 13, 14, 15)
GROUPS = ((0, 2), (1,))
SHARES = np.array([[0.1, 0.2, 0.3, 0.15, 0.25], [0.05, 0.6, 0.15, 0.1, 0.1]])
WEIGHTED = Verbalizer(
    words=WORDS,
    groups=GROUPS,
    scale=2.0,
    bias=np.array([0.5, -0.5]),
    weights=np.array([[0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, -2.0]]),
    mean=np.log([1.0, 1.0, 1.0, 0.1, 0.5]),
    spread=np.array([1.0, 1.0, 1.0, 0.5, 4.0]),
    kind="weighted",
)


def test_the_probabilities_of_a_labels_words_are_summed() -> None:
    plain = Verbalizer.from_words(WORDS, GROUPS)
    expected = [[0.4 / 0.6, 0.2 / 0.6], [0.2 / 0.8, 0.6 / 0.8]]
    assert plain.probabilities(np.log(SHARES)) == pytest.approx(np.array(expected), rel=1e-14)
    assert plain.losses(np.log(SHARES), np.array([0, 0])) == pytest.approx([math.log(1.5), math.log(4.0)])


def test_a_bias_multiplies_the_odds() -> None:
    biased = Verbalizer.from_bias(WORDS, GROUPS, 1.0, np.array([0.0, math.log(3.0)]))
    assert biased.kind == "bias"
    odds = biased.probabilities(np.log(SHARES))
    assert odds[:, 1] / odds[:, 0] == pytest.approx([3 * 0.2 / 0.4, 3 * 0.6 / 0.2])


def test_weights_multiply_standardised_logarithms() -> None:
    first = 2 * math.log(0.4 / 0.6) + 0.5 + math.log(0.15 / 0.1) / 0.5
    second = 2 * math.log(0.2 / 0.6) - 0.5 - 2 * math.log(0.25 / 0.5) / 4
    assert WEIGHTED.logits(np.log(SHARES))[0] == pytest.approx([first, second], rel=1e-13)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=2))
def test_servers_that_give_absolute_and_relative_figures_agree(shifts: list[float]) -> None:
    moved = np.log(SHARES) + np.array(shifts)[:, None]
    assert WEIGHTED.logits(moved) == pytest.approx(WEIGHTED.logits(np.log(SHARES)), abs=1e-12)


def test_a_word_of_probability_zero_gives_numbers() -> None:
    with np.errstate(divide="ignore"):
        rows = np.log([[0.0, 0.5, 0.0, 0.0, 0.5]])
    probabilities = WEIGHTED.probabilities(rows)
    assert np.isfinite(probabilities).all()
    assert probabilities.sum() == pytest.approx(1.0)
    assert probabilities[0, 1] > 0.99


def test_no_texts_give_no_rows() -> None:
    assert WEIGHTED.probabilities(np.zeros((0, 5))).shape == (0, 2)


@pytest.mark.parametrize(
    "verbalizer",
    [
        WEIGHTED,
        Verbalizer.from_words(WORDS, GROUPS),
        Verbalizer.from_bias(WORDS, GROUPS, 0.1, np.array([1 / 3, -1 / 3])),
    ],
    ids=["weighted", "words", "bias"],
)
def test_a_verbalizer_survives_a_json_file(verbalizer: Verbalizer) -> None:
    data = orjson.loads(orjson.dumps(verbalizer.to_dict()))
    again = Verbalizer.from_dict(data)
    assert again == verbalizer
    assert hash(again) == hash(verbalizer)
    assert (again.logits(np.log(SHARES)) == verbalizer.logits(np.log(SHARES))).all()


def test_verbalizers_differ_by_any_number() -> None:
    assert replace(WEIGHTED, scale=2.5) != WEIGHTED
    assert replace(WEIGHTED, bias=np.array([0.5, -0.25])) != WEIGHTED


def test_nobody_changes_a_verbalizer_behind_its_back() -> None:
    bias = np.array([0.5, -0.5])
    verbalizer = Verbalizer.from_bias(WORDS, GROUPS, 1.0, bias)
    bias[0] = 9.0
    assert verbalizer.bias.tolist() == [0.5, -0.5]
    with pytest.raises(ValueError, match="read-only"):
        verbalizer.bias[0] = 9.0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"groups": ((0,), (0,))}, "columns of its own"),
        ({"groups": ((0,), ())}, "columns of its own"),
        ({"groups": ((0,), (5,))}, r"within 0\.\.4"),
        ({"bias": np.zeros(3)}, "bias must be finite numbers"),
        ({"weights": np.zeros((2, 4))}, "weights must be finite numbers"),
        ({"mean": np.full(5, np.nan)}, "mean must be finite numbers"),
        ({"spread": np.zeros(5)}, "spread positive"),
        ({"scale": math.inf}, "scale must be finite"),
        ({"kind": "magic"}, "unknown kind 'magic'"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        replace(WEIGHTED, **change)


def test_rows_of_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[n, 5\], got \[2, 4\]"):
        WEIGHTED.logits(SHARES[:, :4])
