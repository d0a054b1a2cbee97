"""Words outside a server's list: what the fit and the labels make of bounds, and where they do not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbpt_api.scoring.backend import Bools, Floats
from fedbpt_api.verbalizer import ClientFit, Verbalizer, fit, fit_over_clients
from fedbpt_api.verbalizer.regression import Ints
from fedbpt_api.verbalizer.verbalizer import MARGIN

GROUPS = ((0,), (1,), (2,))
WORDS = tuple(range(500, 540))
SEEN = 90


def listed(k: int, n: int = 150, seed: int = 0) -> tuple[Floats, Bools, Ints]:
    """Texts whose k most probable of 40 words a server lists, and whose label words are always among them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n).astype(np.intp)
    labels[:3] = range(3)
    rows = rng.normal(size=(n, len(WORDS))) - 5
    rows[:, :3] += 3.0
    rows[:, 3:] += 0.8 * rng.normal(size=(3, len(WORDS) - 3))[labels]
    ends = np.sort(rows, axis=1)[:, -k][:, None]
    exact = rows >= ends
    exact[:, :3] = True
    return np.where(exact, rows, ends), exact, labels


ROWS, EXACT, LABELS = listed(12)


def by_hand(rows: Floats, exact: Bools) -> Floats:
    """Bounds half a nat below the smallest value of their row."""
    lowest = [min(row[marks]) for row, marks in zip(rows, exact, strict=True)]
    return np.where(exact, rows, np.array(lowest)[:, None] - 0.5)


def pooled(rows: Floats, exact: Bools | None) -> Verbalizer:
    return fit(rows[:SEEN], LABELS[:SEEN], WORDS, GROUPS, exact=_first(exact))[0]


def _first(exact: Bools | None) -> Bools | None:
    return None if exact is None else exact[:SEEN]


def test_the_weights_see_bounds_half_a_nat_below_the_list() -> None:
    """With exact label words it is the fit, and the reading, of rows that have been lowered by hand."""
    told = pooled(ROWS, EXACT)
    assert (told.kind, told.margin, MARGIN) == ("weighted", 0.5, 0.5)
    lowered = by_hand(ROWS, EXACT)
    plain = pooled(lowered, None)
    assert plain.margin is None
    assert told.probabilities(ROWS, EXACT) == pytest.approx(plain.probabilities(lowered), abs=1e-9)
    taken = pooled(ROWS, None).probabilities(ROWS)
    assert np.abs(told.probabilities(ROWS, EXACT) - taken).max() > 0.01


@pytest.mark.parametrize("cuts", [[], [1, 2, 9, 40], list(range(1, SEEN))], ids=["one", "uneven", "each"])
async def test_over_clients_it_is_the_pooled_fit(cuts: list[int]) -> None:
    parts = np.split(np.random.default_rng(1).permutation(SEEN), cuts)
    clients = [ClientFit(str(k), ROWS[i], LABELS[i], GROUPS, exact=EXACT[i]) for k, i in enumerate(parts)]
    verbalizer, report = await fit_over_clients(clients, WORDS, GROUPS)
    assert (report.kind, verbalizer.margin) == ("weighted", MARGIN)
    expected = pooled(ROWS, EXACT).probabilities(ROWS, EXACT)
    assert np.abs(verbalizer.probabilities(ROWS, EXACT) - expected).max() < 1e-6


async def test_clients_on_exact_servers_and_on_lists_fit_together() -> None:
    whole, half = np.ones_like(EXACT[:45]), slice(45, SEEN)
    rows, exact = np.concatenate([ROWS[:45], ROWS[half]]), np.concatenate([whole, EXACT[half]])
    clients = [
        ClientFit("exact", ROWS[:45], LABELS[:45], GROUPS),
        ClientFit("list", ROWS[half], LABELS[half], GROUPS, exact=EXACT[half]),
    ]
    verbalizer, _ = await fit_over_clients(clients, WORDS, GROUPS)
    alone, _ = fit(rows, LABELS[:SEEN], WORDS, GROUPS, exact=exact)
    assert verbalizer.margin == alone.margin == MARGIN
    assert np.abs(verbalizer.probabilities(rows, exact) - alone.probabilities(rows, exact)).max() < 1e-6


@given(st.integers(0, 2**32), st.floats(0.0, 30.0))
@settings(max_examples=10, deadline=None)
def test_what_bounds_words_got_changes_neither_fit_nor_labels(seed: int, most: float) -> None:
    """Bounds of words that are no label words may be anything below their list's end."""
    rng = np.random.default_rng(seed)
    other = np.where(EXACT, ROWS, by_hand(ROWS, EXACT) + 0.5 - most * rng.random(ROWS.shape))
    one, two = pooled(ROWS, EXACT), pooled(other, EXACT)
    assert one.probabilities(ROWS, EXACT) == pytest.approx(two.probabilities(other, EXACT), abs=1e-6)
    assert one.probabilities(other, EXACT) == pytest.approx(one.probabilities(ROWS, EXACT), abs=1e-12)


def test_label_words_keep_their_bounds_in_the_prior() -> None:
    exact = EXACT.copy()
    exact[::3, 0] = False
    biased = fit(ROWS, LABELS, WORDS, GROUPS, kind="bias", exact=exact)[0]
    assert biased == fit(ROWS, LABELS, WORDS, GROUPS, kind="bias")[0]
    assert biased.margin is None
    told = replace(pooled(ROWS, EXACT), weights=np.zeros((3, len(WORDS))))
    assert (told.logits(ROWS, exact) == told.logits(ROWS)).all()


def test_where_everything_is_exact_no_bit_changes() -> None:
    marks = np.ones_like(EXACT)
    given_marks, without = pooled(ROWS, marks), pooled(ROWS, None)
    assert given_marks == without and "margin" not in without.to_dict()
    told = replace(without, margin=MARGIN)
    for verbalizer in (without, told):
        assert verbalizer.logits(ROWS, marks).tobytes() == without.logits(ROWS).tobytes()
    mixed = marks.copy()
    mixed[0, 5] = False  # a bound in one text is nothing to the others
    assert told.logits(ROWS, mixed)[1:].tobytes() == without.logits(ROWS)[1:].tobytes()


def test_a_text_with_no_word_in_its_list_gets_numbers() -> None:
    told, nothing = pooled(ROWS, EXACT), np.zeros((1, len(WORDS)), dtype=np.bool_)
    shares = told.probabilities(np.full((1, len(WORDS)), -4.0), nothing)
    assert np.isfinite(shares).all() and shares.sum() == pytest.approx(1.0)
    exact = EXACT[:SEEN].copy()
    exact[0] = False
    _, report = fit(ROWS[:SEEN], LABELS[:SEEN], WORDS, GROUPS, exact=exact)
    assert np.isfinite(report.loss)


def test_a_file_says_it_and_older_files_take_bounds_for_values() -> None:
    told = pooled(ROWS, EXACT)
    data: dict[str, Any] = orjson.loads(orjson.dumps(told.to_dict()))
    assert data["margin"] == MARGIN
    again = Verbalizer.from_dict(data)
    assert again == told and hash(again) == hash(told)
    assert (again.logits(ROWS, EXACT) == told.logits(ROWS, EXACT)).all()
    del data["margin"]
    old = Verbalizer.from_dict(data)
    assert old.margin is None and old != told
    assert (old.logits(ROWS, EXACT) == old.logits(ROWS)).all()


@pytest.mark.parametrize("labels", [2, 3, 6])
async def test_a_fit_with_bounds_is_12_exchanges_and_256_kilobytes_at_most(labels: int) -> None:
    rng = np.random.default_rng(labels)
    rows, exact = rng.normal(size=(400, 128)) - 5, rng.random((400, 128)) < 0.4
    truth = rng.integers(labels, size=400).astype(np.intp)
    rows[:, labels:] += 0.3 * rng.normal(size=(labels, 128 - labels))[truth]
    groups = [(j,) for j in range(labels)]
    clients = [ClientFit(str(k), rows[k::4], truth[k::4], groups, exact=exact[k::4]) for k in range(4)]
    _, report = await fit_over_clients(clients, range(128), groups)
    assert report.exchanges <= 12
    for client in clients:
        assert report.bytes_up[client.name] + report.bytes_down[client.name] + 4700 <= 256_000


def test_marks_and_margins_that_do_not_fit_are_refused() -> None:
    told = pooled(ROWS, EXACT)
    with pytest.raises(ValueError, match=r"marks of shape \[150, 40\], got \[150, 39\]"):
        told.logits(ROWS, EXACT[:, :39])
    for margin in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="margin must be at least 0"):
            replace(told, margin=margin)
