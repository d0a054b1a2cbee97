"""FedAvg-BBT: averages with the clients' numbers of texts as weights."""

from __future__ import annotations

import numpy as np
import pytest

from fedbpt_api.aggregate import Aggregator, FedAvg, Update, UpdateError


def test_means_and_last_step_sizes_are_averaged() -> None:
    rule: Aggregator = FedAvg()
    assert rule.name == "fedavg"
    state = rule.initial([0.0, 0.0], 1.0)
    updates = [
        Update("b", 0, np.array([4.0, 0.0]), 9.0, (1.0, 0.8), 6, n=30),
        Update("a", 0, np.array([0.0, 8.0]), 1.0, (1.0, 0.4), 6, n=10),
    ]
    after = rule.merge(state, updates)
    np.testing.assert_allclose(after.mean, [3.0, 2.0], rtol=1e-15)
    assert after.sigma == pytest.approx(0.7, rel=1e-15)
    assert after.round == 1
    assert after == rule.merge(state, updates[::-1])
    alone = rule.merge(state, updates[:1])
    np.testing.assert_array_equal(alone.mean, [4.0, 0.0])
    assert alone.sigma == 0.8


def test_bad_updates_and_empty_rounds_are_refused() -> None:
    state = FedAvg().initial([0.0], 1.0)
    with pytest.raises(ValueError, match="no client answered round 0"):
        FedAvg().merge(state, [])
    with pytest.raises(UpdateError, match="client 'x' has the loss nan"):
        FedAvg().merge(state, [Update("x", 0, np.zeros(1), float("nan"), (1.0,), 5, n=1)])
