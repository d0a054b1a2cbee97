"""Statistics against published examples, hand counts and their defining properties."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedbpt_api.federation.tally import Ints, PairedCounts, confusion_matrix, paired_counts
from fedbpt_api.run.result import TestReport
from fedbpt_api.run.stats import (
    compare,
    macro_f1,
    mcnemar_p,
    paired_interval,
    wilson_interval,
)

CLASSES = 3
counts = st.builds(PairedCounts, *[st.integers(0, 400)] * 4).filter(lambda c: c.n > 0)
label_arrays = hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, CLASSES - 1))


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17, 1998, pp. 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_gives_newcombes_published_limits(
    correct: int, n: int, low: float, high: float
) -> None:
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_interval_holds_the_share_and_mirrors(n: int, share: float) -> None:
    correct = round(share * n)
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    mirrored = wilson_interval(n - correct, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_interval_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="cannot give an interval"):
        wilson_interval(correct, n)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, pp. 2635-2650: 36, 12, 2, 0 by method 10
        (PairedCounts(36, 12, 2, 0), 0.0569, 0.3404),
        # Fagerland, Lydersen and Laake 2017, chapter 8: airway hyper-responsiveness (Bentur et al. 2009)
        (PairedCounts(1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_paired_interval_gives_published_limits(table: PairedCounts, low: float, high: float) -> None:
    assert paired_interval(table) == pytest.approx((low, high), abs=6e-4 if low < 0 else 5e-5)


@given(counts)
def test_paired_interval_holds_the_difference_and_turns_round(table: PairedCounts) -> None:
    low, high = paired_interval(table)
    assert -1 - 1e-12 <= low <= (table.wins - table.losses) / table.n <= high <= 1 + 1e-12
    turned = paired_interval(PairedCounts(table.both, table.losses, table.wins, table.neither))
    assert (-turned[1], -turned[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"),
    [
        (0, 0, 1.0),
        (5, 0, 2 / 32),  # both tails of five heads
        (1, 4, 2 * (1 + 5) / 32),
        (3, 3, 1.0),
        (12, 2, 0.0129394531),  # Armitage and Berry 1994, p. 127
        (1, 7, 0.0703125),  # Bentur et al. 2009 in Fagerland et al. 2017
        (300, 200, 8.94006654225e-06),  # scipy.stats.binomtest(300, 500).pvalue
    ],
)
def test_mcnemar_p_is_the_exact_binomial_one(wins: int, losses: int, p_value: float) -> None:
    assert mcnemar_p(wins, losses) == pytest.approx(p_value, rel=1e-8)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_p_is_a_symmetric_probability(wins: int, losses: int) -> None:
    assert 0 < mcnemar_p(wins, losses) == mcnemar_p(losses, wins) <= 1


@pytest.mark.parametrize("wins", [510, 480, 700])
def test_mcnemar_p_is_the_same_where_whole_numbers_would_take_long(wins: int) -> None:
    """From 1,001 discordant texts on; against the sum itself."""
    n = 1020
    tail = sum(math.comb(n, i) for i in range(min(wins, n - wins) + 1))
    assert mcnemar_p(wins, n - wins) == pytest.approx(min(1.0, float(Fraction(2 * tail, 2**n))), rel=1e-9)
    assert mcnemar_p(4_000_000, 4_000_000) == 1.0


def test_mcnemar_p_of_a_huge_lopsided_split_underflows_quietly() -> None:
    assert mcnemar_p(3000, 0) == 0.0


def test_confusion_and_macro_f1_by_hand() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 0])
    confusion = confusion_matrix(truth, predicted, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    # F1: label 0 2*2/6, label 1 2*2/5, label 2 0; label 3 does not occur and does not count
    assert macro_f1(confusion) == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)


@given(label_arrays)
def test_perfect_predictions_have_macro_f1_one(truth: Ints) -> None:
    assert macro_f1(confusion_matrix(truth, truth, CLASSES)) == 1.0


@pytest.mark.parametrize(("truth", "predicted"), [([0, 3], [0, 0]), ([0, 0], [0, -1])])
def test_confusion_refuses_labels_out_of_range(truth: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        confusion_matrix(np.array(truth), np.array(predicted), CLASSES)


def test_empty_input_is_refused() -> None:
    nothing = np.array([], dtype=np.int64)
    with pytest.raises(ValueError, match="undefined"):
        macro_f1(confusion_matrix(nothing, nothing, CLASSES))
    with pytest.raises(ValueError, match="no test texts"):
        compare(("a", "b"), nothing, {}, np.array([], dtype=np.str_))


def test_paired_counts_by_hand() -> None:
    truth = np.array([0, 0, 1, 1, 1])
    assert paired_counts(truth, np.array([0, 0, 1, 0, 0]), np.array([0, 1, 0, 1, 0])) == PairedCounts(
        both=1, wins=2, losses=1, neither=1
    )


def _small_report() -> TestReport:
    truth = np.array([0, 0, 1, 1, 0, 1])
    clients = np.array(["east", "west", "east", "west", "east", "west"])
    predictions = {
        "start": np.array([1, 1, 1, 1, 1, 1]),
        "start+bias": np.array([1, 0, 1, 1, 1, 1]),  # east 1 of 3, west 3 of 3
        "tuned": np.array([0, 0, 1, 0, 0, 1]),  # east 3 of 3, west 2 of 3
    }
    return compare(("no", "yes"), truth, predictions, clients)


def test_compare_builds_rows_overall_first_then_by_client() -> None:
    rows = _small_report().rows
    assert [(r.client, r.method, r.correct, r.n) for r in rows] == [
        ("*", "start", 3, 6),
        ("*", "start+bias", 4, 6),
        ("*", "tuned", 5, 6),
        ("east", "start", 1, 3),
        ("east", "start+bias", 1, 3),
        ("east", "tuned", 3, 3),
        ("west", "start", 2, 3),
        ("west", "start+bias", 3, 3),
        ("west", "tuned", 2, 3),
    ]
    assert rows[2].confusion == ((3, 0), (1, 2))


def test_compare_names_who_was_made_worse_and_tests_what_was_given() -> None:
    report = _small_report()
    assert report.worse == ("west",)
    (pair,) = report.paired
    assert (pair.against, pair.wins, pair.losses) == ("start+bias", 2, 1)
    assert pair.difference == pytest.approx(1 / 6)
    assert pair.p_value == 1.0


def test_compare_refuses_a_client_called_like_all_of_them() -> None:
    with pytest.raises(ValueError, match="means all of them"):
        compare(("a",), np.array([0]), {"tuned": np.array([0])}, np.array(["*"]))


def test_compare_refuses_predictions_of_another_length() -> None:
    with pytest.raises((ValueError, IndexError)):
        compare(("a", "b"), np.array([0, 1]), {"tuned": np.array([0])}, np.array(["x", "x"]))


@given(st.data(), label_arrays)
def test_clients_add_up_to_all_of_them(data: st.DataObject, truth: Ints) -> None:
    same = hnp.arrays(np.int64, truth.shape, elements=st.integers(0, CLASSES - 1))
    predictions = {name: data.draw(same) for name in ("start+bias", "start+weighted", "tuned")}
    clients = np.array(["a", "b", "c"])[data.draw(same)]
    report = compare(("x", "y", "z"), truth, predictions, clients)
    for method in predictions:
        rows = [row for row in report.rows if row.method == method]
        parts = np.sum([row.confusion for row in rows[1:]], axis=0)
        assert rows[0].client == "*"
        assert parts.tolist() == [list(line) for line in rows[0].confusion]
    overall = {row.method: row for row in report.rows if row.client == "*"}
    for pair in report.paired:
        expected = overall["tuned"].correct - overall[pair.against].correct
        assert pair.wins - pair.losses == expected
