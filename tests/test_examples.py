"""The examples run as they stand, on the real embedded model."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from fedbpt_api.data import read_examples, write_examples
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.config import load_settings, load_task
from fedbpt_api.task import validate

EXAMPLES = Path(__file__).parents[1] / "examples"
PARTIES = ("airlines", "cars", "phone-maker", "football")

pytestmark = pytest.mark.model


def run(script: str, *arguments: object, stdin: str = "", folder: Path) -> subprocess.CompletedProcess[str]:
    """An example as a process of its own, in an empty folder."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=folder, check=False)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the library example leaves and prints."""
    folder = tmp_path_factory.mktemp("library")
    done = run("library.py", "tuned", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "tuned", done.stdout


def test_the_library_example_tunes_a_prompt_and_says_so(library: tuple[Path, str]) -> None:
    folder, said = library
    rounds = re.findall(r"^round (\d+): development accuracy [01]\.\d\d$", said, re.MULTILINE)
    assert rounds[:1] == ["0"] and len(rounds) > 1
    prompt = TunedPrompt.load(folder)
    assert f"tuned prompt: {prompt.shown!r}" in said
    assert prompt.model["kind"] == "llamacpp"
    result = orjson.loads((folder / "result.json").read_bytes())
    assert result["stopped"] == "budget"
    assert sum(counts["scored"] for counts in result["spent"].values()) <= 300


def test_the_application_classifies_with_that_prompt(library: tuple[Path, str]) -> None:
    texts = ["I love it, thank you so much!", "It broke at once. Terrible."]
    done = run("classify_app.py", library[0], stdin="\n\n".join(texts) + "\n", folder=library[0])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.endswith(text) for line, text in zip(lines, texts, strict=True)] == [True, True]
    assert all(re.match(r" +(good|bad) +\d+%  ", line) for line in lines)


def test_the_application_says_how_it_is_used() -> None:
    done = run("classify_app.py", folder=EXAMPLES)
    assert done.returncode == 1
    assert "usage: python examples/classify_app.py RUN_FOLDER" in done.stderr


def test_the_demo_s_data_and_config_fit_together(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "tweets" / "tweets.toml", tmp_path)
    done = run("tweets/prepare.py", tmp_path / "data", "--test", 150, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    task = load_task(load_settings(tmp_path / "tweets.toml"))
    assert [client.name for client in task.clients] == list(PARTIES)
    for client in task.clients:
        assert [len(rows) for _, rows in client.parts()] == [32, 32, 150]
    assert validate(task) == []
    texts = [row.text for client in task.clients for _, rows in client.parts() for row in rows]
    assert len(set(texts)) == len(texts) == 4 * 214

    for path in (tmp_path / "data").rglob("*.jsonl"):
        write_examples(path, read_examples(path)[:3])
    task = load_task(load_settings(tmp_path / "tweets.toml", {"search.rounds": 1}))
    assert [len(rows) for client in task.clients for _, rows in client.parts()] == [3] * 12
