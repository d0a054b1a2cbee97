"""The program: what it sets before anything else, and that it runs as a module too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SEEN = """
import os, sys
import fedbpt_api.__main__ as program
early = "numpy" in sys.modules
sys.argv[1:] = ["--version"]
try:
    program.main()
except SystemExit:
    pass
print(early, os.environ["OPENBLAS_NUM_THREADS"])
"""


@pytest.mark.parametrize(("own", "seen"), [(None, "1"), ("3", "3")])
def test_linear_algebra_has_one_thread_unless_the_user_says_otherwise(own: str | None, seen: str) -> None:
    kept = {key: value for key, value in os.environ.items() if key != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SEEN],
        capture_output=True, text=True, check=True,
        env=kept if own is None else {**kept, "OPENBLAS_NUM_THREADS": own},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"False {seen}"  # numpy reads it when it is imported


def test_it_is_a_module_that_can_be_run() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fedbpt_api", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: fedbpt " in done.stdout
