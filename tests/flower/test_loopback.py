"""Real Flower on loopback: TLS, node keys, separate processes; the run of one process, to the bit."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fedbpt_api import load_settings, tune_sync
from fedbpt_api.flower.demo import run_demo
from fedbpt_api.flower.loopback import Loopback, keys
from toy import make_task
from toy_runs import numbers, texts_of, write_config

pytestmark = [pytest.mark.flower, pytest.mark.model]

SMALL: dict[str, object] = {
    "backend.kind": "llamacpp",
    "prompts": ["Is the text negative or positive?\n", ""],
    "budget.scored": 300,
    "search.form": "words",
    "search.rounds": 1,
    "search.popsize": 3,
    "search.choice": "committee",
    "search.ensemble": 2,
    "federation.timeout": 300,
}


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and int(entry.parent.name) != os.getpid():
            found.append(line)
    return found


def test_separate_processes_come_to_what_one_process_does(tmp_path: Path) -> None:
    task = make_task(clients=2, train=8, dev=4, test=4)
    config = write_config(tmp_path, task, SMALL)
    settings = load_settings(config)
    here = tune_sync(settings, run_dir=tmp_path / "here")
    lines: list[str] = []
    there = run_demo(settings, tmp_path / "there", lines.append)
    assert there.prompt == here.prompt
    assert there.test == here.test
    assert repr(numbers(there)) == repr(numbers(here))
    assert (tmp_path / "there" / "run" / "prompt.json").read_bytes() == (
        tmp_path / "here" / "prompt.json"
    ).read_bytes()
    assert processes_of(tmp_path / "there") == []
    # What Flower keeps and prints, and what the coordinator keeps: no text, no label with its text, no file.
    private = [text.encode() for text in texts_of(task.clients)]
    link = tmp_path / "there" / "link"
    for path in [*link.rglob("*"), *(tmp_path / "there" / "run").rglob("*")]:
        if path.is_file() and path.suffix != ".key":
            data = path.read_bytes()
            assert not any(text in data for text in private), path
            assert str(tmp_path / "client0").encode() not in data, path


def test_a_node_whose_key_is_not_listed_is_not_let_in(tmp_path: Path) -> None:
    with Loopback(tmp_path / "link") as net:
        net.link()
        private, _ = keys(net.folder, "stranger")
        net.node("stranger", private, {"party": str(tmp_path / "none.sock")})
        refused = "The SuperNode could not establish a connection to the SuperLink"  # a listed one can, below
        end = time.monotonic() + 60
        while refused not in net.log("stranger") and time.monotonic() < end:
            time.sleep(0.2)
        assert refused in net.log("stranger"), net.log("stranger")
        assert "SuperNode ID" not in net.log("stranger")
        listed = net.register("friend")
        net.node("friend", listed, {"party": str(tmp_path / "none.sock")})
        while "SuperNode ID" not in net.log("friend") and time.monotonic() < end + 60:
            time.sleep(0.2)
        assert "SuperNode ID" in net.log("friend"), net.log("friend")
    assert processes_of(tmp_path) == []
