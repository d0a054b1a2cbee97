"""The loss of prompts that answer together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.verbalizer.committee import joint_losses


def test_it_is_the_cross_entropy_of_the_geometric_mean() -> None:
    said = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.5, 0.5]]])
    found = joint_losses(np.log(said), np.array([0, 0]), [[0], [1], [0, 1]])
    both = [3 / (3 + 1), 1 / (1 + 2)]  # sqrt(.9 * .5) against sqrt(.1 * .5); sqrt(.2 * .5), sqrt(.8 * .5)
    wanted = [-np.log(0.9) - np.log(0.2), -2 * np.log(0.5), -np.log(both).sum()]
    assert found == pytest.approx(wanted)


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 8), st.integers(2, 4))
def test_members_together_are_no_worse_than_on_the_average_alone(seed: int, p: int, n: int, c: int) -> None:
    """The cross-entropy is convex in the logits (Jensen)."""
    rng = np.random.default_rng(seed)
    rows, labels = 3 * rng.normal(size=(p, n, c)), rng.integers(c, size=n)
    together, *alone = joint_losses(rows, labels, [range(p), *([k] for k in range(p))])
    assert together <= np.mean(alone) + 1e-9


def test_a_common_shift_of_logits_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    rows, labels, sets = rng.normal(size=(3, 5, 3)), rng.integers(3, size=5), [[0], [1, 2]]
    shifts = rng.normal(size=(3, 5, 1))
    np.testing.assert_allclose(joint_losses(rows + shifts, labels, sets), joint_losses(rows, labels, sets))
