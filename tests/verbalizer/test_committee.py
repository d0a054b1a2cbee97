"""The distance of a set of prompts from the committee of all and from the labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.verbalizer.committee import distances, shares


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 8), st.integers(2, 4))
def test_nobody_is_nearer_to_a_committee_than_itself(seed: int, p: int, n: int, c: int) -> None:
    rng = np.random.default_rng(seed)
    rows, labels = rng.normal(size=(p, n, c)), rng.integers(c, size=n)
    alike = np.full(p, 1 / p)
    everyone, *others = distances(rows, labels, [range(p), *([k] for k in range(p))], 0.0, alike)
    assert all(everyone <= other + 1e-9 for other in others)


def test_with_labels_alone_it_is_the_cross_entropy() -> None:
    rows = np.log(np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.5, 0.5]]]))
    found = distances(rows, np.array([0, 0]), [[0], [1]], 1.0, np.array([0.3, 0.7]))
    assert found == pytest.approx([-np.log(0.9) - np.log(0.2), -2 * np.log(0.5)])


def test_trust_mixes_the_two_and_a_common_shift_of_logits_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    rows, labels, sets = rng.normal(size=(3, 5, 3)), rng.integers(3, size=5), [[0], [1, 2]]
    counting = shares(rng.random(3), 3)
    ends = [distances(rows, labels, sets, trust, counting) for trust in (0.0, 1.0)]
    mixed = distances(rows + 7.0, labels, sets, 0.25, counting)
    np.testing.assert_allclose(mixed, 0.75 * ends[0] + 0.25 * ends[1])


def test_a_prompt_that_has_all_of_the_committee_is_the_nearest_to_it() -> None:
    rng = np.random.default_rng(4)
    rows, labels = rng.normal(size=(3, 5, 3)), rng.integers(3, size=5)
    found = distances(rows, labels, [[0], [1], [2], [0, 1, 2]], 0.0, np.array([0.0, 1.0, 0.0]))
    assert found.argmin() == 1


def test_a_prompt_that_tells_twice_as_much_counts_four_times_and_one_that_tells_nothing_not_at_all() -> None:
    found = shares(np.log(3) - np.array([0.4, 0.2, 0.0, -5.0]), 3)
    np.testing.assert_allclose(found, [0.8, 0.2, 0.0, 0.0])
    np.testing.assert_allclose(shares(np.full(4, 9.0), 3), 0.25)  # where none tells anything
    np.testing.assert_allclose(shares(np.array([0.1, 0.5]), 3, 0.0), 0.5)
