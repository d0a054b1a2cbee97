"""A federation on one machine that cannot be: it is refused before a process is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedbpt_api.errors import ConfigError
from fedbpt_api.flower.demo import run_demo
from toy import make_task
from toy_runs import make_settings


def test_what_parties_would_not_answer_is_refused_at_once(tmp_path: Path) -> None:
    settings = make_settings(make_task(), {"search.minibatch": 6})
    with pytest.raises(ConfigError, match="6 is too small for parties behind a network"):
        run_demo(settings, tmp_path / "there", print)
    assert not (tmp_path / "there").exists()
