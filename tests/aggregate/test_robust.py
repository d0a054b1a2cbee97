"""Median and trimmed mean: golden numbers, and bounds that hold whatever a minority says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.aggregate import Aggregator, Median, Trimmed, Update, UpdateError
from fedbpt_api.aggregate.state import LARGEST

NUMBERS = st.floats(-LARGEST, LARGEST, width=32)


def update(name: str, mean: list[float], sigma: float, n: int = 10, loss: float = 1.0) -> Update:
    return Update(name, 0, np.array(mean), loss, (1.0, sigma), 6, n=n)


FIVE = [
    update("a", [0.0, 5.0], 0.1),
    update("b", [1.0, 4.0], 0.2),
    update("c", [2.0, 3.0], 0.6),
    update("d", [3.0, 2.0], 0.7),
    update("e", [1e30, -1e30], 9.0, n=10**9, loss=-1e30),
]


@pytest.mark.parametrize(
    ("rule", "mean", "sigma"),
    [
        (Median(), [2.0, 3.0], 0.6),
        (Trimmed(), [2.0, 3.0], 0.5),  # one off at each end of five
        (Trimmed(0.4), [2.0, 3.0], 0.6),
        (Trimmed(0.21), [2.0, 3.0], 0.6),  # rounded up
    ],
)
def test_golden_numbers(rule: Aggregator, mean: list[float], sigma: float) -> None:
    after = rule.merge(rule.initial([0.0, 0.0], 1.0), FIVE)
    np.testing.assert_allclose(after.mean, mean, rtol=1e-12)
    assert after.sigma == pytest.approx(sigma)
    assert after.round == 1
    assert after == rule.merge(rule.initial([0.0, 0.0], 1.0), FIVE[::-1])


def test_two_answers_are_averaged_and_one_is_taken() -> None:
    for rule in (Median(), Trimmed()):
        state = rule.initial([0.0, 0.0], 1.0)
        np.testing.assert_allclose(rule.merge(state, FIVE[:2]).mean, [0.5, 4.5])
        np.testing.assert_allclose(rule.merge(state, FIVE[:1]).mean, [0.0, 5.0])


@given(
    st.lists(st.floats(-10, 10), min_size=4, max_size=12),
    st.lists(st.tuples(NUMBERS, st.floats(1e-30, 1e30)), min_size=1, max_size=3),
)
def test_a_minority_cannot_lead_outside_of_what_the_others_say(
    honest: list[float], lies: list[tuple[float, float]]
) -> None:
    """Less than half for the median; a fifth at each end, rounded up, for the trimmed mean."""
    truth = [update(f"h{k}", [x], 0.5) for k, x in enumerate(honest)]
    told = [update(f"l{k}", [x], sigma) for k, (x, sigma) in enumerate(lies)]
    count = len(truth) + len(told)
    rules: list[Aggregator] = [Median()] if len(told) < count / 2 else []
    if len(told) <= count * 0.2:
        rules.append(Trimmed(0.2))
    for rule in rules:
        after = rule.merge(rule.initial([0.0], 1.0), [*truth, *told])
        assert min(honest) - 1e-9 <= after.mean[0] <= max(honest) + 1e-9
        assert after.sigma == pytest.approx(0.5)


def test_what_cannot_be_merged_is_refused() -> None:
    state = Median().initial([0.0], 1.0)
    with pytest.raises(ValueError, match="no client answered"):
        Median().merge(state, [])
    with pytest.raises(UpdateError, match="not finite"):
        Trimmed().merge(state, [update("x", [float("nan")], 1.0)])
    with pytest.raises(ValueError, match="below 1/2"):
        Trimmed(0.5)
