"""Flower's programs and switches: nothing is reported or installed during a run, unless you say so."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fedbpt_api.errors import FedbptError

QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    # Flower looks for work once a second; more often costs a local request each time.
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
"""Environment variables; one that is set already stays as it is."""


def quiet(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, or another, in which Flower is quiet and finds its programs."""
    own = os.environ if environment is None else environment
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", "")])
    return {**QUIET, **own, "PATH": path}


def program_of(name: str) -> str:
    """Where a command of this environment is.

    Raises:
        FedbptError: Flower is not installed here.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FedbptError(f"there is no {name} here", 'pip install "fedbpt-api[flower]"')
    return found
