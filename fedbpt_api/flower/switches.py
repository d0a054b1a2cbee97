"""Flower's switches: nothing is reported, looked up or installed during a run, unless you say so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    # Flower looks for work once a second; more often costs a local request each time.
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
"""Environment variables; one that is set already stays as it is."""


def quiet(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment in which Flower is quiet: `environment`, or this process's own, and `QUIET`."""
    return {**QUIET, **(os.environ if environment is None else environment)}
