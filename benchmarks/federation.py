"""What the federation adds to the parties' own work.

    python benchmarks/federation.py merge                 # a thousand updates of 500 coordinates, each rule
    python benchmarks/federation.py floor                 # Flower's own time for a message, and with parties
    FEDBPT_DATA=... python benchmarks/federation.py clients    # a run of a thousand clients in one process

`floor` sends two kinds of messages in turn, over TLS and with keys as the demo does: those that an app
answers with a few bytes, and those that go through a party's process and are answered there, sent by the
coordinator's own `Post`. Their difference is what this package adds to a message. `clients` runs `fedbpt
tune` in a process of its own against the tests' server, which answers at once.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fedbpt_api.aggregate import Aggregator, FedAvg, FedBPT, Median, Trimmed, Update, clipped
from fedbpt_api.data import read_examples, write_examples
from fedbpt_api.flower.loopback import Loopback
from fedbpt_api.run.folder import read_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from backends.fake_vllm import FakeVllm

app = typer.Typer(add_completion=False)

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "floor"
version = "1.0.0"
license = "Apache-2.0"
description = "Messages there and back."
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["floor"]
[tool.flwr.app]
publisher = "fedbpt"
[tool.flwr.app.components]
serverapp = "floor.server:app"
clientapp = "floor.client:app"
[tool.flwr.app.config]
nodes = 2
messages = 6
"""
CLIENT = """
import os

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def answer(message, context):
    if b"hello" not in message.content["fedbpt"]["bundle"]:
        # New each time, as an answer is: Flower does not send again what the other side has.
        return Message(RecordDict({"fedbpt": ConfigRecord({"bundle": os.urandom(100)})}), reply_to=message)
    from fedbpt_api.flower.client import client_app

    return client_app()(message, context)
"""
SERVER = """
import asyncio
import os
import time

from flwr.serverapp import ServerApp

from fedbpt_api.federation.envelope import Envelope, seal
from fedbpt_api.flower.post import Post
from fedbpt_api.flower.server import FlowerGrid

app = ServerApp()


async def empty(ours, nodes):
    left = dict(ours.push({node: os.urandom(2000) for node in nodes}))
    while left:
        for name in ours.pull(list(left)):
            del left[name]
        await asyncio.sleep(0.1)


async def measure(ours, wanted, messages):
    while len(nodes := ours.nodes()) < wanted:
        await asyncio.sleep(0.2)
    async with Post(ours) as post:

        async def party():
            asked = {node: seal(Envelope("hello", {}, os.urandom(2000))) for node in nodes}
            await asyncio.gather(*(post.ask(node, envelope) for node, envelope in asked.items()))

        await empty(ours, nodes)  # the first ones find nothing in any cache
        for number in range(messages):
            for kind in ("empty", "party") if number % 2 else ("party", "empty"):
                begun = time.monotonic()
                await (party() if kind == "party" else empty(ours, nodes))
                print(f"MESSAGE {kind} {time.monotonic() - begun:.3f}", flush=True)


@app.main()
def main(grid, context):
    config = context.run_config
    asyncio.run(measure(FlowerGrid(grid), config["nodes"], config["messages"]))
"""
FEDBPT = "from fedbpt_api.cli import app; app()"
TUNED = """
method = "{method}"
prompts = ["Is the mood good or bad?\\n", ""]
template = "Text: {{text}}\\nMood:"

[labels]
negative = " negative"
positive = " positive"

[data]
train = "train.jsonl"
dev = "dev.jsonl"
test = "test.jsonl"
clients = {count}

[budget]
scored = {scored}

[backend]
kind = "vllm"
base_url = "{url}"
"""


@app.command()
def merge(clients: int = 1000, dimension: int = 500, repeats: int = 20) -> None:
    """Milliseconds of a merge, clipping included."""
    rng = np.random.default_rng(0)
    updates = [
        Update(f"client{k}", 0, rng.normal(size=dimension), float(rng.random()), (1.0, 0.9), 6, n=32)
        for k in range(clients)
    ]
    rules: list[Aggregator] = [FedBPT(), FedAvg(), Median(), Trimmed()]
    for rule in rules:
        state, times = rule.initial(np.zeros(dimension), 1.0), []
        state = replace(rule.merge(state, updates), round=0)  # a covariance that has been learnt takes longer
        for _ in range(repeats):
            begun = time.perf_counter()
            rule.merge(state, clipped(state, updates))
            times.append(1000 * (time.perf_counter() - begun))
        print(f"{rule.name:8} {np.median(times):7.1f} ms (slowest {max(times):.1f})")


@app.command()
def floor(
    nodes: Annotated[int, typer.Option(help="SuperNodes.")] = 10,
    messages: Annotated[int, typer.Option(help="Of each kind, in turn, each to all nodes at once.")] = 12,
) -> None:
    """Seconds of a message there and back, until the last node has answered, with parties and without."""
    with tempfile.TemporaryDirectory(prefix="floor-") as name:
        folder = Path(name)
        code = folder / "app" / "floor"
        code.mkdir(parents=True)
        (folder / "app" / "pyproject.toml").write_text(PYPROJECT)
        for file, text in (("__init__", ""), ("server", SERVER), ("client", CLIENT)):
            (code / f"{file}.py").write_text(text)
        (folder / "texts.jsonl").write_text('{"text": "a", "label": "b"}\n')
        lines: list[str] = []
        with Loopback(folder / "link") as net:
            net.link()
            for number in range(nodes):
                config = folder / f"node{number}.toml"
                config.write_text(f'name = "node{number}"\nfolder = "kept{number}"\ntrain = "texts.jsonl"\n')
                net.party(f"node{number}", config, net.register(f"node{number}"))
            net.run(folder / "app", lines.append, {"nodes": nodes, "messages": messages})
    found = [m.groups() for line in lines if (m := re.search(r"MESSAGE (\w+) (\S+)", line))]
    pairs = len(found) // 2
    if pairs < 2:
        raise SystemExit("\n".join(lines))
    if pairs < messages:
        print(f"Flower ended the run after {pairs} of {messages} messages of each kind")
    seconds = {
        kind: np.array([float(s) for k, s in found[: 2 * pairs] if k == kind]) for kind in ("empty", "party")
    }
    for kind, values in seconds.items():
        print(
            f"{nodes} nodes, {kind}: mean {values.mean():.2f} s, sd {values.std(ddof=1):.2f}, n {len(values)}"
        )
    more = seconds["party"] - seconds["empty"]
    error = more.std(ddof=1) / np.sqrt(len(more))
    share, wide = (100 * value / seconds["empty"].mean() for value in (more.mean(), error))
    print(f"a party adds {more.mean():+.2f} s (standard error {error:.2f}): {share:+.1f} % ({wide:.1f})")


@app.command()
def clients(
    count: Annotated[int, typer.Option(help="Clients.")] = 1000,
    train: Annotated[int, typer.Option(help="Training texts a client.")] = 4,
    held_out: Annotated[int, typer.Option(help="Development texts a client, and test texts.")] = 2,
    prompts: Annotated[int, typer.Option(help="The budget, in prompts that all clients judge.")] = 50,
    method: Annotated[list[str] | None, typer.Option(help="Recipes; more than once.")] = None,
) -> None:
    """Peak memory and time of `fedbpt tune` with many clients, against a server that answers at once."""
    data = os.environ.get("FEDBPT_DATA")
    if not data:
        sys.exit("set FEDBPT_DATA to the folder that holds sst2")
    rows = list(read_examples(Path(data) / "sst2" / "train.jsonl"))
    if len(rows) < count * (train + 2 * held_out):
        sys.exit(f"{len(rows)} texts are too few for {count} clients")
    for recipe in method or ["ensemble", "fedbpt"]:
        with tempfile.TemporaryDirectory(prefix="clients-") as name:
            folder, at = Path(name), 0
            for part, each in (("train", train), ("dev", held_out), ("test", held_out)):
                write_examples(folder / f"{part}.jsonl", rows[at : at + count * each])
                at += count * each
            values = {"count": count, "method": recipe, "scored": prompts * count * (train + held_out)}
            print(asyncio.run(_measured(folder, values)), flush=True)


async def _measured(folder: Path, values: Mapping[str, object]) -> str:
    """Tune in a process of its own; what it took."""
    async with FakeVllm().serve() as url:
        (folder / "task.toml").write_text(TUNED.format(url=url, **values))
        command = [sys.executable, "-c", FEDBPT, "tune", "task.toml", "--run-dir", "run"]
        served, begun = time.process_time(), time.monotonic()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, used = await asyncio.to_thread(os.wait4, process.pid, 0)
        seconds, served = time.monotonic() - begun, time.process_time() - served
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit((folder / "log").read_text()[-3000:])
    result = read_result(folder / "run")
    rounds = [record.seconds for record in result.rounds if record.bytes_up]
    scored = sum(counts["scored"] for counts in result.spent.values())
    return "\n".join((
        f"{values['method']}, {values['count']} clients: ended by {result.stopped}; "
        f"peak {used.ru_maxrss / 1024:.0f} MiB",
        f"  {seconds:.0f} s in all, {scored:,.0f} scored examples; "
        f"its own CPU {used.ru_utime + used.ru_stime:.0f} s, the server's {served:.0f} s",
        f"  rounds of {', '.join(f'{taken:.0f}' for taken in rounds)} s",
    ))  # fmt: skip


if __name__ == "__main__":
    app()
