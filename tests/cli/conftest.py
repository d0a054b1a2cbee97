"""Where commands run in tests: an empty folder with a config for the toy in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedbpt_api.task import Task
from toy import Toys, make_task
from toy_runs import fedbpt, write_config


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder, with lines of any length and no colours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def task() -> Task:
    return make_task(2, train=6, dev=4, test=5)


@pytest.fixture
def config(toys: Toys, tmp_path: Path, task: Task) -> Path:
    return write_config(tmp_path, task)


@pytest.fixture
def finished(config: Path, tmp_path: Path) -> Path:
    """The folder of a finished run."""
    assert fedbpt("tune", config, "--run-dir", "done").exit_code == 0
    return tmp_path / "done"
