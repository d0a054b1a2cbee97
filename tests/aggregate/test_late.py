"""Late updates: FedBuff's discount, calculated by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.aggregate import FedAvg, GlobalState, Update, UpdateError, discount, rebased

SENT = GlobalState(round=2, mean=np.array([1.0, 2.0]), sigma=1.0, sigma0=1.0)
UPDATE = Update("a", 2, np.array([5.0, 0.0]), 0.7, (1.0, 0.8), 6, n=10, scored=40)


def later(rounds: int) -> GlobalState:
    return replace(SENT, round=2 + rounds, mean=np.array([10.0, 20.0]), sigma=0.5)


@pytest.mark.parametrize(("age", "share"), [(0, 1.0), (3, 0.5), (8, 1 / 3), (99, 0.1)])
def test_the_discount_is_one_over_the_root_of_one_and_the_age(age: int, share: float) -> None:
    assert discount(age) == pytest.approx(share, rel=1e-15)


def test_a_late_update_moves_the_present_mean_by_its_discounted_displacement() -> None:
    moved = rebased(UPDATE, SENT, later(3))
    np.testing.assert_allclose(moved.mean, [10.0 + 0.5 * 4.0, 20.0 - 0.5 * 2.0], rtol=1e-15)
    assert moved == replace(UPDATE, round=5, mean=moved.mean)  # the rest is what the client said
    after = FedAvg().merge(later(3), [moved])
    np.testing.assert_allclose(after.mean, [12.0, 19.0], rtol=1e-15)


@given(st.integers(0, 50), st.integers(0, 50))
def test_the_older_the_less(one: int, other: int) -> None:
    moves = [np.abs(rebased(UPDATE, SENT, later(age)).mean - later(age).mean).max() for age in (one, other)]
    assert (moves[0] > moves[1]) == (one < other)
    assert all(move <= 4.0 for move in moves)


def test_an_update_of_another_round_or_shape_is_refused() -> None:
    for wrong in (replace(UPDATE, round=1), replace(UPDATE, mean=np.zeros(3))):
        with pytest.raises(UpdateError, match="client 'a'"):
            rebased(wrong, SENT, later(1))
    with pytest.raises(ValueError, match="-1 rounds old"):
        rebased(UPDATE, SENT, replace(later(0), round=1))


def test_what_is_out_of_bounds_only_after_the_move_is_refused_too() -> None:
    far = replace(UPDATE, mean=np.array([3.4e38, 0.0]))
    with pytest.raises(UpdateError, match="not finite"):
        rebased(far, SENT, replace(later(0), mean=np.array([3.4e38, 0.0])))
