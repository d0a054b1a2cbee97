"""Merges from sums equal those from the clients' means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.aggregate import FedAvg, FedBPT, GlobalState, Update
from fedbpt_api.aggregate.summed import merged, weighed, weighing


def updates(rng: np.random.Generator, state: GlobalState, count: int, spread: float) -> list[Update]:
    return [
        Update(
            client=f"c{k}",
            round=state.round,
            mean=state.mean + rng.normal(0, spread, state.dimension),
            loss=float(rng.integers(0, 4)),  # some are equal
            step_sizes=tuple(rng.uniform(0.3, 1.5, 3)),
            population=int(rng.integers(2, 9)),
            n=int(rng.integers(1, 50)),
        )
        for k in range(count)
    ]


@given(
    st.integers(1, 12),
    st.integers(1, 8),
    st.sampled_from([0.1, 1.0, 30.0]),  # the last are clipped
    st.sampled_from(["paper", "reference", None]),
    st.integers(0, 2**32 - 1),
)
def test_the_merge_from_sums_is_the_merge(
    d: int, count: int, spread: float, rule: str | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    plain = FedAvg() if rule is None else FedBPT("paper" if rule == "paper" else "reference")
    named = None if isinstance(plain, FedAvg) else plain
    state = summed = plain.initial(rng.normal(size=d), 1.0)
    for _ in range(4):
        answers = updates(rng, state, count, spread)
        told = weighing(named, summed, answers)
        rows = [weighed(a.mean, summed, told, a.client, len(answers)) for a in answers]
        assert {len(row) for row in rows} == {told.length(d)}
        summed = merged(named, summed, answers, told, np.sum(rows, axis=0))
        state = plain.merge(state, answers)
        ours, theirs = summed.to_dict(), state.to_dict()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if value is None:
                assert ours[name] is None
            else:
                np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_client_without_a_weight_adds_nothing() -> None:
    state = FedBPT().initial(np.zeros(3), 1.0)
    answers = updates(np.random.default_rng(0), state, 4, 1.0)
    told = weighing(FedBPT(), state, answers)
    assert not weighed(np.ones(3), state, told, "somebody else", 4).any()
    assert sum(told.weights.values()) == pytest.approx(1)
