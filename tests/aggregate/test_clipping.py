"""Clipping before the merge: who does not stand out stays to the bit, who does is cut to the bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.aggregate import Aggregator, FedAvg, FedBPT, GlobalState, Median, Trimmed, Update, clipped
from fedbpt_api.aggregate.clipping import MOST_TEXTS, MULTIPLE, shrinkage, without_outliers
from fedbpt_api.scoring.backend import Floats

RULES: tuple[Aggregator, ...] = (FedBPT(), FedAvg(), Median(), Trimmed())


def updates(rng: np.random.Generator, centre: Floats, norms: Floats) -> list[Update]:
    """Steps of these lengths in random directions."""
    found = []
    for place, norm in enumerate(norms):
        step = rng.normal(size=len(centre))
        mean = centre + norm * step / np.linalg.norm(step)
        sizes = (float(rng.uniform(0.8, 1.2)), float(rng.uniform(0.8, 1.2)))
        n = int(rng.integers(10, 60))
        found.append(Update(f"client{place}", 0, mean, float(rng.random()), sizes, 6, n=n))
    return found


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 40))
def test_clients_of_comparable_norm_stay_to_the_bit(seed: int, count: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    state = GlobalState.first(rng.normal(size=d), 1.0)
    honest = updates(rng, state.mean, rng.uniform(0.5, 1.4, count))
    kept = clipped(state, honest)
    assert all(one is other for one, other in zip(kept, honest, strict=True))
    for rule in RULES:
        assert rule.merge(state, kept) == rule.merge(state, honest)


@given(st.integers(0, 2**32), st.integers(3, 12), st.floats(4, 1e30))
def test_a_liar_moves_as_far_as_the_bound_and_no_further(seed: int, count: int, times: float) -> None:
    rng = np.random.default_rng(seed)
    state = GlobalState.first(rng.normal(size=20), 1.0)
    norms = np.append(rng.uniform(0.9, 1.0, count - 1), times)
    sent = updates(rng, state.mean, norms)
    kept = clipped(state, sent)
    step = kept[-1].mean - state.mean
    assert np.linalg.norm(step) == pytest.approx(MULTIPLE * float(np.median(norms)), rel=1e-6)
    assert step @ (sent[-1].mean - state.mean) == pytest.approx(np.linalg.norm(step) * times, rel=1e-6)
    assert kept[:-1] == tuple(sent[:-1])


def test_step_sizes_and_numbers_of_texts_have_bounds_too() -> None:
    rng = np.random.default_rng(0)
    state = GlobalState.first(np.zeros(8), 1.0)
    *honest, last = updates(rng, state.mean, np.ones(7))
    liar = Update("liar", 0, last.mean, 0.0, (1.0, 1e30), 6, n=10**9)
    kept = clipped(state, [*honest, liar])[-1]
    last_sizes = [update.step_sizes[-1] for update in (*honest, liar)]
    assert kept.step_sizes == (1.0, MULTIPLE * float(np.median(last_sizes)))
    assert kept.n == int(MOST_TEXTS * np.median([*(update.n for update in honest), liar.n]))


def test_nobody_is_cut_where_most_did_not_move() -> None:
    rng = np.random.default_rng(0)
    state = GlobalState.first(np.ones(8), 1.0)
    still = updates(rng, state.mean, np.array([0.0, 0.0, 0.0, 2.0]))
    assert clipped(state, still) == tuple(still)
    assert (shrinkage([0.0, 0.0, 5.0]) == 1).all()


@given(st.integers(0, 2**32), st.integers(0, 12), st.floats(0.0, 1e6))
def test_a_sum_is_as_if_the_odd_client_were_an_extreme_one(seed: int, count: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(5, 20, count)
    rows = rng.uniform(0.9, 1.1, (count, 6)) * counts[:, None]
    if count:
        rows[0] += far * counts[0]
    added = without_outliers(rows, counts)
    if count < 4:
        assert (added == 0).all()
        return
    each = rows / counts[:, None]
    away = np.linalg.norm(each - np.median(each, axis=0), axis=1)
    odd = each[0] + added / counts[0]
    moved = [k for k in range(1, count) if away[k] > MULTIPLE * np.median(away)]
    if not moved:
        assert np.linalg.norm(odd - np.median(each, axis=0)) <= MULTIPLE * np.median(away) * (1 + 1e-6)


def test_nothing_is_added_where_no_client_stands_out() -> None:
    rng = np.random.default_rng(0)
    counts = np.full(10, 8)
    rows = rng.normal(size=(10, 40)) * counts[:, None]
    assert (without_outliers(rows, counts, 5.0) == 0.0).all()
