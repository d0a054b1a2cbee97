"""Fixtures for all tests: the toy backend as an installed kind of backend, and a task for it."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the program does; before numpy is imported

import pytest
from hypothesis import HealthCheck, settings

from fedbpt_api.scoring import registry
from fedbpt_api.task import Task
from toy import ToyBackend, Toys, make_task

# How long an example takes says something about the machine, not about the code.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Toys:
    """Toy backends by name; ``open_backend("toy", name="b")`` gives ``toys["b"]``."""
    found = Toys()
    monkeypatch.setattr(registry, "entry_points", found.entry_points)
    return found


@pytest.fixture
def toy_backend(toys: Toys) -> ToyBackend:
    """The toy that ``open_backend("toy")`` gives in this test."""
    return toys["toy"]


@pytest.fixture
def toy_task() -> Task:
    """Three clients with 12 training, 8 development and 10 test texts each."""
    return make_task()
