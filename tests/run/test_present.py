"""The verdict and the wording of numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.run import present
from fedbpt_api.run.result import Paired, RunResult, TestReport

BETTER = Paired("start+bias", 0.162, 0.133, 0.192, 640, 315, 1e-9)
UNCLEAR = Paired("start+weighted", 0.004, -0.012, 0.02, 150, 142, 0.68)
WORSE = Paired("start+weighted", -0.05, -0.07, -0.03, 10, 60, 0.0004)


@pytest.mark.parametrize(
    ("paired", "outcome", "title"),
    [
        ((BETTER, replace(BETTER, against="start+weighted")), "better", "The tuned prompt is better"),
        ((WORSE,), "worse", "The tuned prompt is worse"),
        ((UNCLEAR,), "unclear", "No significant difference"),
        (
            (BETTER, UNCLEAR),
            "unclear",
            "Better than the starting prompt + bias; "
            "no significant difference from the starting prompt + weighted",
        ),
        (
            (BETTER, WORSE),
            "worse",
            "Better than the starting prompt + bias; worse than the starting prompt + weighted",
        ),
        ((), "untested", "Not tested yet"),
    ],
)
def test_verdict(report: TestReport, paired: tuple[Paired, ...], outcome: str, title: str) -> None:
    found = present.verdict(replace(report, paired=paired))
    assert (found.outcome, found.title) == (outcome, title)


def test_verdict_gives_the_numbers_in_one_sentence(report: TestReport) -> None:
    sentence = present.verdict(replace(report, paired=(BETTER, UNCLEAR))).sentence
    assert sentence == (
        "On 2,000 test texts the tuned prompt is better than the starting prompt with a label bias "
        "(+16.2 points, 95% interval +13.3 to +19.2, p < 0.001) and not significantly different from the "
        "starting prompt with a weighted verbalizer "
        "(+0.4 points, 95% interval \u22121.2 to +2.0, p = 0.680)."
    )


def test_an_interval_and_a_test_that_disagree_are_no_evidence() -> None:
    assert present.outcome(replace(BETTER, p_value=0.06)) == "unclear"
    assert present.outcome(replace(BETTER, ci_low=-0.001)) == "unclear"


def test_caution_where_the_majority_label_does_as_well(report: TestReport) -> None:
    assert present.caution(report) == ""
    rows = tuple(
        replace(r, accuracy=0.7) if r.method == "majority" and r.client == "*" else r for r in report.rows
    )
    assert "70.0% against" in present.caution(replace(report, rows=rows))
    assert present.caution(None) == ""


@pytest.mark.parametrize(
    ("difference", "expected"),
    [(0.1234, "+12.3"), (-0.05, "\u22125.0"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0004, "0.0")],
)
def test_points(difference: float, expected: str) -> None:
    assert present.points(difference) == expected


def test_spend_adds_up_and_leaves_the_preparation_out_of_the_bytes(result: RunResult) -> None:
    rows = present.spend_rows(result)
    assert [row.client for row in rows] == ["airlines", "football", "phones", "cars", "*"]
    assert rows[-1].scored == sum(r.scored for r in result.rounds)
    assert rows[0].bytes_up == 1236
    assert rows[-1].bytes_up == 4 * 1236


def test_what_was_not_recorded_is_not_shown_as_zero() -> None:
    run = RunResult(None, "", "", "budget", (), {"a": {"scored": 3}, "b": {"scored": 4}}, None)
    first, _, total = present.spend_rows(run)
    assert (first.duplicates, first.bytes_up) == (None, None)
    assert (total.scored, total.duplicates) == (7, None)
    assert present.number(first.duplicates) == present.MISSING


def test_scored_so_far_is_a_running_total(result: RunResult) -> None:
    assert present.scored_so_far(result.rounds)[:3] == (768, 768 + 2480, 768 + 2 * 2480)


def test_show_whitespace() -> None:
    assert (
        present.show_whitespace(" a b  c\td \n\x1b[0m ")
        == "\u00b7a b\u00b7\u00b7c\u21e5d\u00b7\u21b5\n\\x1b[0m\u00b7"
    )


@given(st.text(alphabet=st.sampled_from(" \n\tab\r\x00"), max_size=30))
def test_whitespace_pieces_concatenate_to_the_text(text: str) -> None:
    assert "".join(piece for _, piece in present.whitespace_pieces(text)) == text
