"""A party's own file: what it insists on, and the runs with noise that its folder remembers."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from fedbpt_api.errors import ConfigError
from fedbpt_api.run.node import NodePrivacySettings, enter
from fedbpt_api.run.schema import PrivacySettings

GAUSSIAN = PrivacySettings(mode="gaussian", epsilon=4.0, delta=1e-5, unit="text")


@pytest.mark.parametrize(
    ("own", "task", "problem"),
    [
        ({}, {}, ""),
        ({"delta": 1e-5, "epsilon": 4.0, "unit": "text"}, {}, ""),
        ({"unit": "text"}, {"unit": "party"}, ""),  # which protects more
        ({"delta": 1e-6}, {}, "privacy.delta: this party allows 1e-06, and the task promises 1e-05"),
        ({"epsilon": 3.0}, {}, "privacy.epsilon: this party allows 3, and the task promises 4"),
        ({"unit": "party"}, {}, "privacy.unit: this party wants 'party' protected"),
        ({"delta": 0.1}, {"mode": "none"}, "the task promises none"),
        ({"unit": "text"}, {"mode": "sums"}, "protects nothing with noise"),
    ],
)
def test_what_a_party_insists_on(own: dict[str, object], task: dict[str, object], problem: str) -> None:
    told = NodePrivacySettings.model_validate(own).problem(GAUSSIAN.model_copy(update=task))
    assert problem in told and bool(problem) == bool(told)


def test_runs_with_noise_are_counted_once_each_and_end(tmp_path: Path) -> None:
    place = tmp_path / "noisy-runs.json"
    enter(place, "one", None)  # counted before anybody limits them
    enter(place, "two", 2)
    enter(place, "one", 2)
    with pytest.raises(ConfigError, match="taken part in 2 runs with noise and allows 2"):
        enter(place, "three", 2)
    enter(place, "two", 1)  # a run that has begun goes on
    enter(place, "three", 3)


def test_a_limit_is_a_number_of_runs() -> None:
    with pytest.raises(ValidationError):
        NodePrivacySettings.model_validate({"runs": 0})
