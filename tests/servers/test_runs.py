"""Whole runs against a real vLLM: words and vectors, and a prompt that goes from one server to another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from fedbpt_api import TunedPrompt
from fedbpt_api.scoring.journal import read_journal

pytestmark = pytest.mark.servers
TWEETS = Path(__file__).parents[2] / "examples" / "tweets"
PARTIES = ("airlines", "cars", "football", "phone-maker")
ROUNDED = 1.5  # points that the rounding of another batch or format may change on 600 tweets


def fedbpt(*arguments: object, code: int = 0) -> str:
    """Standard output of the command line in a process of its own."""
    command = [str(Path(sys.executable).with_name("fedbpt")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's config with 150 test tweets a party."""
    folder = tmp_path_factory.mktemp("tweets")
    shutil.copy(TWEETS / "tweets.toml", folder)
    script = [sys.executable, str(TWEETS / "prepare.py"), str(folder / "data"), "--test", "150"]
    subprocess.run(script, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def tests(demo: Path) -> Path:
    """All parties' test tweets in one file."""
    rows = [(demo / "data" / party / "test.jsonl").read_text(encoding="utf-8") for party in PARTIES]
    (demo / "all.jsonl").write_text("".join(rows), encoding="utf-8")
    return demo / "all.jsonl"


def tune(demo: Path, run: Path, *sets: str, config: str = "tweets.toml") -> dict[str, Any]:
    options = [word for item in sets for word in ("--set", item)]
    found: dict[str, Any] = json.loads(fedbpt("tune", demo / config, "--run-dir", run, "--json", *options))
    return found


def on(url: str) -> tuple[str, ...]:
    return ("backend.kind=vllm", f"backend.base_url={url}")


def accuracy(run: Path, tests: Path, *options: str) -> float:
    found = json.loads(fedbpt("eval", run, "--data", tests, "--json", *options))
    assert found["n"] == 600
    return 100 * float(found["accuracy"])


def replayed(run: Path, tmp_path: Path) -> None:
    """In another process, from another folder, without the server: the same to the bit."""
    moved = tmp_path / "elsewhere" / "copied"
    shutil.copytree(run, moved)
    found = json.loads(fedbpt("replay", moved, "--json"))
    assert found["differences"] == [] and found["answers"] > 0


def test_words_are_tuned_and_evaluated(demo: Path, tests: Path, tmp_path: Path, vllm_url: str) -> None:
    run = tmp_path / "run"
    result = tune(demo, run, *on(vllm_url), "budget.scored=1300", "search.rounds=2")
    spent = result["spent"].values()
    assert sum(client["scored"] for client in spent) <= 1300
    rows = {row["method"]: row for row in result["test"]["rows"] if row["client"] == "*"}
    assert rows["tuned"]["accuracy"] > rows["start+bias"]["accuracy"] + 0.10
    own = accuracy(run, tests, "--set", f"base_url={vllm_url}")
    assert own == pytest.approx(100 * rows["tuned"]["accuracy"], abs=ROUNDED)
    assert json.loads((run / "versions.json").read_bytes())["backend way"] == "logprob_token_ids"
    replayed(run, tmp_path)


def test_vectors_are_tuned_evaluated_and_exported(
    demo: Path, tests: Path, tmp_path: Path, vllm_url: str, vllm_weights: Path
) -> None:
    run = tmp_path / "run"
    prompts = 'prompts=["Sentiment analysis of tweets.\\n"]'
    sets = (prompts, "search.space=soft", "search.form=words", "search.minibatch=16", "budget.scored=2200")
    result = tune(demo, run, *on(vllm_url), *sets, "search.rounds=6")
    rows = {row["method"]: row for row in result["test"]["rows"] if row["client"] == "*"}
    assert rows["tuned"]["accuracy"] > rows["start+bias"]["accuracy"] + 0.10
    rounds = [orjson.loads(line) for line in (run / "rounds.jsonl").read_bytes().splitlines()]
    assert len(rounds) >= 3
    assert all(record["distinct"] == 1.0 for record in rounds)  # no step stays in a word's cell
    records = [r for n in range(4) for r in read_journal(run / f"scores-{n}.journal")]
    assert sum(r.usage.scored for r in records) >= sum(c["scored"] for c in result["spent"].values())
    own = accuracy(run, tests, "--set", f"base_url={vllm_url}")
    assert own == pytest.approx(100 * rows["tuned"]["accuracy"], abs=ROUNDED)
    replayed(run, tmp_path)

    prompt = TunedPrompt.load(run)
    if prompt.soft is None:  # the starting prompt was better than every vector
        return
    fedbpt("eval", run, "--data", tests, "--backend", "llamacpp", code=2)  # it takes no vectors
    fedbpt("export", run, tmp_path / "prompt.pt", "--weights", vllm_weights)
    assert (tmp_path / "prompt.pt").stat().st_size > 2 * len(prompt.ids) * 576


def test_a_prompt_tuned_on_llama_cpp_does_as_well_on_vllm(
    demo: Path, tests: Path, tmp_path: Path, vllm_url: str
) -> None:
    """The same weights in Q8_0 and in bfloat16."""
    run = tmp_path / "run"
    lines = (demo / "tweets.toml").read_text(encoding="utf-8").splitlines()
    untested = "\n".join(line for line in lines if not line.startswith("test = "))
    (demo / "untested.toml").write_text(untested, encoding="utf-8")
    tune(demo, run, "budget.scored=900", "search.rounds=1", "search.form=words", config="untested.toml")
    here = accuracy(run, tests)
    there = accuracy(run, tests, "--backend", "vllm", "--set", f"base_url={vllm_url}")
    assert abs(here - there) <= ROUNDED
