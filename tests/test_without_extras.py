"""The package without any of its extras: a whole run, and clear words where one is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson

HIDING = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {"flwr", "starlette", "uvicorn", "fastapi", "dp_accounting", "xllamacpp", "gguf", "vllm"}
found = PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in HIDDEN else found(name, path, target)


PathFinder.find_spec = staticmethod(find_spec)
"""
RUN = """
import asyncio, json
import fedbpt_api
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring import registry
from toy import Toys, make_task
from toy_runs import make_settings

registry.entry_points = Toys().entry_points
task = make_task()
result = asyncio.run(Tuner(make_settings(task), task).run())
sums = asyncio.run(fedbpt_api.tune(make_settings(task, {"privacy.mode": "sums"}), task=task))
print(json.dumps({"tested": [len(one.test.rows) for one in (result, sums)], "modules": sorted(sys.modules)}))
"""
CLI = """
from fedbpt_api.cli import app
app()
"""


def python(code: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A new interpreter in which no extra is installed."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", HIDING + code, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )


def test_a_run_needs_no_extra(tmp_path: Path) -> None:
    done = python(RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = orjson.loads(done.stdout.splitlines()[-1])
    assert all(found["tested"])
    assert not {"flwr", "starlette", "uvicorn", "dp_accounting", "xllamacpp"} & set(found["modules"])


def test_what_needs_flower_says_how_to_get_it(tmp_path: Path) -> None:
    for words in (["init", "app"], ["link", "d", "--certificate", "c", "--key", "k"], ["demo", "x.toml"]):
        done = python(CLI, "flower", *words, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "Flower is not installed" in done.stderr and 'pip install "fedbpt-api[flower]"' in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
