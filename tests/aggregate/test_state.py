"""Global states and updates: plain data, and what an update must hold to be merged."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from fedbpt_api.aggregate import FedBPT, GlobalState, Update, UpdateError, check_updates

STATE = GlobalState.first([0.0, 1.0], 0.5)
GOOD = Update("acme", 0, np.array([1.0, 2.0]), 0.7, (0.5, 0.4), 6, n=32, scored=800)


def test_states_and_updates_survive_json_and_compare_by_value() -> None:
    updates = [replace(GOOD, client=name, mean=GOOD.mean + i, loss=float(i)) for i, name in enumerate("abcd")]
    state = FedBPT().merge(STATE, updates)
    again = GlobalState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert again == state
    assert hash(again) == hash(state)
    assert state != STATE
    update = Update.from_dict(json.loads(json.dumps(GOOD.to_dict())))
    assert update == GOOD
    assert {update, GOOD} == {GOOD}
    assert update != replace(GOOD, loss=0.8)


def test_arrays_are_copied_and_read_only() -> None:
    mean = np.array([1.0, 2.0])
    state = GlobalState.first(mean, 1.0)
    mean[0] = 9.0
    assert state.mean[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        state.mean[0] = 9.0
    with pytest.raises(ValueError, match="read-only"):
        GOOD.mean[0] = 9.0


def test_impossible_states_are_refused() -> None:
    for mean, sigma in (([], 1.0), ([math.nan], 1.0), ([[0.0]], 1.0), ([0.0], 0.0), ([0.0], math.inf)):
        with pytest.raises(ValueError, match="must be"):
            GlobalState.first(mean, sigma)
    with pytest.raises(ValueError, match=r"covariance has shape \(3, 3\), but d is 2"):
        replace(STATE, covariance=np.eye(3))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (replace(GOOD, round=3), "answers round 3, but this is round 0"),
        (replace(GOOD, mean=np.zeros(3)), "a mean of 3 coordinates, but 2 are searched"),
        (replace(GOOD, mean=np.array([math.nan, 0.0])), "a mean that is not finite"),
        (replace(GOOD, mean=np.array([0.0, -math.inf])), "a mean that is not finite"),
        (replace(GOOD, loss=math.nan), "the loss nan"),
        (replace(GOOD, loss=math.inf), "the loss inf"),
        (replace(GOOD, step_sizes=()), "no step size"),
        (replace(GOOD, step_sizes=(0.5, 0.0)), "above 0"),
        (replace(GOOD, step_sizes=(math.nan,)), "above 0"),
        (replace(GOOD, population=1), "a population of 1"),
        (replace(GOOD, n=0), "0 training texts"),
        (replace(GOOD, scored=-1), "-1 scored examples"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_by_name(bad: Update, says: str) -> None:
    with pytest.raises(UpdateError, match=says) as caught:
        check_updates(STATE, [replace(GOOD, client="other"), bad])
    assert caught.value.client == "acme"
    assert "'acme'" in str(caught.value)


def test_a_client_may_answer_once() -> None:
    with pytest.raises(UpdateError, match="client 'acme' came twice"):
        check_updates(STATE, [GOOD, replace(GOOD, client="other"), replace(GOOD, loss=0.1)])
