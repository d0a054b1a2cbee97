"""What more candidates are expected to gain: against draws whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.search.stopping import expected_gain, greatest


@pytest.mark.parametrize(("k", "known"), [(1, 0.0), (2, 0.5642), (10, 1.5388), (100, 2.5076)])
def test_the_expected_greatest_is_that_of_tables(k: int, known: float) -> None:
    assert greatest(k) == pytest.approx(known, abs=0.03)  # Harter 1961; the formula is an approximation


@pytest.mark.parametrize("real", [0.02, 0.06])
def test_it_is_what_the_best_of_more_gains_where_all_is_normal(real: float) -> None:
    """Candidates differ by `real` nats in truth, and look as n = 32 texts say."""
    rng, n, few, many, spread = np.random.default_rng(3), 32, 20, 80, 0.3
    luck = spread / np.sqrt(2 * n)
    gained, told = [], []
    for _ in range(3000):
        truth = rng.normal(0.7, real, many)
        losses = truth + rng.normal(0.0, luck, many)
        gained.append(truth[losses[:few].argmin()] - truth[losses.argmin()])
        told.append(expected_gain(losses[:few], n, many - few, spread))
    assert np.mean(told) == pytest.approx(np.mean(gained), rel=0.15, abs=0.001)


@given(st.lists(st.floats(0.0, 5.0), min_size=2, max_size=50), st.integers(1, 500), st.integers(0, 300))
def test_it_is_never_negative_grows_with_what_is_left_and_shrinks_with_noise(
    values: list[float], n: int, more: int
) -> None:
    losses = np.array(values)
    found = expected_gain(losses, n, more, 0.3)
    assert 0.0 <= found <= expected_gain(losses, n, more + 10, 0.3)
    assert expected_gain(losses, n, more, 0.5) <= found
    assert expected_gain(losses, n, 0, 0.3) == 0.0


def test_what_luck_alone_explains_promises_nothing() -> None:
    assert expected_gain(np.array([0.70, 0.71, 0.69]), 32, 100, 0.3) == 0.0
    assert expected_gain(np.array([0.7, 0.7]), 32, 100, 0.0) == 0.0


@pytest.mark.parametrize(("losses", "n"), [([0.7], 32), ([], 32), ([0.7, 0.8], 0)])
def test_too_little_to_tell_is_refused(losses: list[float], n: int) -> None:
    with pytest.raises(ValueError, match="two losses or more"):
        expected_gain(np.array(losses), n, 10, 0.3)
