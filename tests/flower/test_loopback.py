"""Real Flower on loopback: TLS, node keys, separate processes; the run of one process, to the bit.

And a wire capture: what passes between SuperNodes and SuperLink is kept, on the wire and inside TLS, and so
is what the coordinator sends and receives. None of it holds a text, a label of one, or a key.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import pytest

from backends.fake_vllm import FakeVllm
from fedbpt_api import Settings, load_settings, tune_sync
from fedbpt_api.aggregate.state import GlobalState
from fedbpt_api.federation import runtime
from fedbpt_api.federation.envelope import opened
from fedbpt_api.federation.messages import encode_state
from fedbpt_api.flower import demo
from fedbpt_api.flower.bundle import unpack
from fedbpt_api.flower.certificates import keys
from fedbpt_api.flower.init import write_app
from fedbpt_api.flower.link import write_connection
from fedbpt_api.flower.loopback import Loopback, LoopbackError
from fedbpt_api.run.schema import BackendSettings
from fedbpt_api.task import Task
from tap import Tap, contents, in_thread, unzipped
from toy import ToyBackend, make_task
from toy_runs import numbers, texts_of, write_config

pytestmark = pytest.mark.flower

PROMPT = "Is the text negative or positive?"
VARIABLE, KEY, HEADER = "FEDBPT_TEST_KEY", "sk-planted-4f1d0c", "team-secret-9b27"
SMALL: dict[str, object] = {
    "prompts": [f"{PROMPT}\n", ""],
    "budget.scored": 400,
    "search.form": "words",
    "search.rounds": 2,
    "search.popsize": 3,
    "search.choice": "committee",
    "search.ensemble": 2,
    "federation.timeout": 300,
}
KEEPING = """
import uuid
from pathlib import Path

from fedbpt_api.flower import server

KEPT = Path({kept!r})


def keep(way, data):
    (KEPT / f"{{way}}-{{uuid.uuid4().hex}}").write_bytes(data)


class Keeping(server.FlowerGrid):
    def push(self, bundles):
        for data in bundles.values():
            keep("down", data)
        return super().push(bundles)

    def pull(self, messages):
        found = super().pull(messages)
        for data in found.values():
            keep("up", data or b"")
        return found


server.FlowerGrid = Keeping
app = server.server_app(Path(__file__).with_name("task.toml"))
"""


@dataclass
class Tapped(Loopback):
    """A federation whose SuperNodes reach the SuperLink through taps: on the wire, and inside TLS."""

    taps: list[Tap] = field(default_factory=list)
    _through: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)

    def link(self) -> None:
        super().link()
        self._through = self.port
        for files in (self.folder, None):
            self.taps.append(Tap(self._through, files))
            self._through = self._stack.enter_context(in_thread(self.taps[-1].listen()))

    def party(self, name: str, config: Path, private: Path, address: str = "") -> None:
        super().party(name, config, private, address or f"127.0.0.1:{self._through}")

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        super().stop(name, how)
        if not self.processes:
            self._stack.close()


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


def left_over(folder: Path, seconds: float = 30) -> list[str]:
    """Processes that are still there after a while: Flower's own end by themselves, when they see the end."""
    end = time.monotonic() + seconds
    while (found := processes_of(folder)) and time.monotonic() < end:
        time.sleep(0.2)
    return found


async def private_bytes(task: Task) -> dict[bytes, str]:
    """What nobody else may see of a task, in every form that it might travel in, and what it is."""
    found: dict[bytes, str] = {KEY.encode(): "a key", HEADER.encode(): "a header"}
    for label in map(orjson.dumps, task.label_words.labels):
        found |= dict.fromkeys((b'"label":' + label, b'"label": ' + label), "the label of a row")
    toy = ToyBackend()
    for text in texts_of(task.clients):
        words = text.split()
        for begin in range(len(words) - 3):
            run = " ".join(words[begin : begin + 4])
            if run not in PROMPT:
                ids = await toy.tokenize(f" {run}")
                found[run.encode()] = f"words of {text!r}"
                found |= dict.fromkeys(as_numbers(ids), f"token ids of {run!r}")
    for client in task.clients:
        labels = [task.label_words.labels.index(str(row.label)) for row in client.train]
        assert 1 < sum(labels) < len(labels) - 1
        found |= dict.fromkeys(as_numbers(labels), f"the labels of {client.name}")
        names = orjson.dumps([row.label for row in client.train])[1:-1]
        found |= {names: f"the labels of {client.name}"}
    return found


def as_numbers(values: list[int] | tuple[int, ...]) -> Iterator[bytes]:
    """A list of numbers as JSON, with blanks and without, and as arrays of several types."""
    yield orjson.dumps(values)[1:-1]
    yield ", ".join(map(str, values)).encode()
    for kind in ("<i2", "<i4", "<i8", "<f4", "<f8"):
        yield np.array(values).astype(kind).tobytes()


def judged_in(run: Path) -> list[dict[str, object]]:
    """All prompts that a run judged, merged means among them, with their losses."""
    lines = map(orjson.loads, (run / "prompts.jsonl").read_bytes().splitlines())
    return [{key: value for key, value in line.items() if key != "scored"} for line in lines]


def assert_silent(data: bytes, private: dict[bytes, str], where: object) -> None:
    """Nothing private is in there."""
    assert not [what for secret, what in private.items() if secret in data], where


def test_separate_processes_come_to_what_one_process_does_and_nobody_hears_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    task = make_task(clients=2, train=12, dev=4, test=4)
    link, kept, lines = tmp_path / "there" / "link", tmp_path / "kept", list[str]()
    kept.mkdir()
    net = Tapped(link)

    def keeping(app: Path, settings: Settings, run: Path) -> None:
        write_app(app, settings, run)
        (app / app.name / "server.py").write_text(KEEPING.format(kept=str(kept)))

    monkeypatch.setattr(demo, "Loopback", lambda folder: net)
    monkeypatch.setattr(demo, "write_app", keeping)
    with in_thread(FakeVllm(key=KEY).serve()) as url:
        backend = {"kind": "vllm", "base_url": url, "api_key_env": VARIABLE}
        changes = {f"backend.{key}": value for key, value in backend.items()}
        settings = load_settings(write_config(tmp_path, task, SMALL | changes))
        own = BackendSettings.model_validate(backend | {"headers": {"X-Team": HEADER}})
        first = settings.clients[0].model_copy(update={"backend": own})
        settings = settings.model_copy(update={"clients": (first, *settings.clients[1:])})
        states = list[bytes]()

        def encoded(state: GlobalState) -> bytes:
            states.append(encode_state(state))
            return states[-1]

        with monkeypatch.context() as listening:
            listening.setattr(runtime, "encode_state", encoded)
            here = tune_sync(settings, run_dir=tmp_path / "here")
        there = demo.run_demo(settings, tmp_path / "there", lines.append)
    assert there.prompt == here.prompt
    assert there.test == here.test
    assert repr(numbers(there)) == repr(numbers(here))
    assert (tmp_path / "there" / "run" / "prompt.json").read_bytes() == (
        tmp_path / "here" / "prompt.json"
    ).read_bytes()
    assert left_over(tmp_path / "there") == []
    assert judged_in(tmp_path / "there" / "run") == judged_in(tmp_path / "here")
    told = [opened(one) for path in kept.glob("down-*") for one in unpack(path.read_bytes())]
    assert (
        len(states) == 2 and len(set(states)) == 2
    )  # where the rounds began: mean and step size, to the bit
    assert {one.body for one in told if one.kind == "search"} == set(states)

    private, public = asyncio.run(private_bytes(task)), PROMPT.encode()
    assert HEADER in (tmp_path / "there" / "client0" / "node.toml").read_text()
    # What Flower keeps and prints, and what the coordinator keeps: nothing private, no file.
    for path in [*link.rglob("*"), *(tmp_path / "there" / "run").rglob("*")]:
        if path.is_file() and path.suffix != ".key":
            assert_silent(path.read_bytes(), private, path)
            assert str(tmp_path / "client0").encode() not in path.read_bytes(), path
    # What the coordinator sends and receives, before it is Flower's.
    up, down = (b"\n".join(path.read_bytes() for path in kept.glob(f"{way}-*")) for way in ("up", "down"))
    assert_silent(up, private, "answers")
    assert_silent(down, private, "questions")
    assert public in down and b'"facts"' in up and len(up) > 10_000
    assert not [label for label in task.label_words.labels if label.encode() in up]
    # What passes between SuperNodes and SuperLink: on the wire, inside TLS, and in the app that travels.
    inside, wire = net.taps
    assert len(wire.bytes) > 100_000 and public not in wire.bytes
    assert_silent(wire.bytes, private, "the wire")
    carried = contents(inside)
    assert [data for data in carried if public in data] and [data for data in carried if b'"facts"' in data]
    for data in [inside.bytes, *carried]:
        assert_silent(data, private, "inside TLS")
    files = [file for data in carried for file in unzipped(data)]
    assert [file for file in files if public in file and b"parties =" in file]
    for file in files:
        assert_silent(file, private, "the app")


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
        # Where nodes are let in nobody gives commands; on the SuperLink's own machine that works, as above.
        outside = Loopback(tmp_path / "outside", port=net.port)
        outside.folder.mkdir()
        write_connection(outside.folder / "flwr", net.address, net.authority)
        _, public = keys(outside.folder, "intruder")
        for words in (["supernode", "register", str(public)], ["supernode", "list"], ["list"]):
            with pytest.raises(LoopbackError, match=f"flwr {' '.join(words[:2])}"):
                outside.flwr(*words)
            net.flwr(*words)
    assert left_over(tmp_path) == []
