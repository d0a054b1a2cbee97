"""The terminal view: complete, within the width, and no markup from prompts or names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tables import plain_text


def test_plain_text_fits_and_has_no_control_codes(result: RunResult) -> None:
    shown = plain_text(result)
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert "\x1b" not in shown


def test_it_has_every_row_of_the_test(result: RunResult) -> None:
    shown = plain_text(result)
    assert result.test is not None
    for row in result.test.rows:
        assert f"{100 * row.ci_low:.1f} to {100 * row.ci_high:.1f}%" in shown
    for pair in result.test.paired:
        assert f"{pair.wins:,}" in shown
    assert "Less accurate than the starting prompt with a label bias for: cars." in shown


def test_the_prompt_is_shown_as_it_is(result: RunResult) -> None:
    shown = plain_text(result)
    assert "Complaint desk\u00b7\u00b7angry <grateful> [bold]either\u21b5" in shown


@pytest.mark.parametrize("prompt", ["", "\x1b[31mred"])
def test_odd_prompts_do_no_harm(result: RunResult, prompt: str) -> None:
    shown = plain_text(replace(result, prompt=prompt))
    assert "\x1b" not in shown
    assert ("nothing is put before the text" in shown) == (prompt == "")


def test_names_are_not_read_as_markup() -> None:
    run = RunResult(None, "p", "p", "budget", (), {"[red]a[/red]": {"scored": 1}}, None)
    assert "[red]a[/red]" in plain_text(run)


def test_a_run_cut_short_has_a_view(result: RunResult) -> None:
    bare = replace(result, test=None, rounds=(), spent={}, folder=None, stopped="cancelled")
    shown = plain_text(bare)
    assert "Not tested yet" in shown
    assert "cancelled" in shown
