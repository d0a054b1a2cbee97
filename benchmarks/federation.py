"""What the federation adds to the parties' own work.

    python benchmarks/federation.py merge                 # a thousand updates of 500 coordinates, each rule
    python benchmarks/federation.py floor --nodes 2       # Flower's own time for a message there and back
    FEDBPT_DATA=... python benchmarks/federation.py clients    # a run of a thousand clients in one process

`floor` runs an app that does nothing with the messages it gets, over TLS and with keys as the demo does; with
`--party` the same messages go through a party's process and are answered there. Their difference is what this
package adds to a message.
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

from fedbpt_api.aggregate import Aggregator, FedAvg, FedBPT, Median, Trimmed, Update
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
EMPTY = """
from flwr.app import Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def answer(message, context):
    return Message(message.content, reply_to=message)
"""
CARRIES = "from fedbpt_api.flower.client import client_app\n\napp = client_app()\n"
SERVER = """
import time

from flwr.serverapp import ServerApp

from fedbpt_api.federation.envelope import Envelope, seal
from fedbpt_api.flower.bundle import pack
from fedbpt_api.flower.server import FlowerGrid

app = ServerApp()


@app.main()
def main(grid, context):
    ours, wanted = FlowerGrid(grid), context.run_config["nodes"]
    while len(ours.nodes()) < wanted:
        time.sleep(0.2)
    data = pack([seal(Envelope("hello", {}, bytes(2000)))])
    for _ in range(context.run_config["messages"]):
        begun = time.monotonic()
        left = dict(ours.push({node: data for node in ours.nodes()}))
        while left:
            for name in ours.pull(list(left)):
                del left[name]
            time.sleep(0.1)
        print(f"MESSAGE {time.monotonic() - begun:.3f}", flush=True)
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
    """Milliseconds of a merge."""
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
            rule.merge(state, updates)
            times.append(1000 * (time.perf_counter() - begun))
        print(f"{rule.name:8} {np.median(times):7.1f} ms (slowest {max(times):.1f})")


@app.command()
def floor(
    nodes: Annotated[int, typer.Option(help="SuperNodes.")] = 2,
    messages: Annotated[int, typer.Option(help="One after the other, to all nodes at once.")] = 6,
    party: Annotated[bool, typer.Option(help="Whether a party's process answers.")] = False,
) -> None:
    """Seconds of a message there and back, until the last node has answered."""
    with tempfile.TemporaryDirectory(prefix="floor-") as name:
        folder = Path(name)
        code = folder / "app" / "floor"
        code.mkdir(parents=True)
        (folder / "app" / "pyproject.toml").write_text(PYPROJECT)
        for file, text in (("__init__", ""), ("server", SERVER), ("client", CARRIES if party else EMPTY)):
            (code / f"{file}.py").write_text(text)
        (folder / "texts.jsonl").write_text('{"text": "a", "label": "b"}\n')
        lines: list[str] = []
        with Loopback(folder / "link") as net:
            net.link()
            for number in range(nodes):
                key = net.register(f"node{number}")
                if party:
                    config = folder / f"node{number}.toml"
                    config.write_text(
                        f'name = "node{number}"\nfolder = "kept{number}"\ntrain = "texts.jsonl"\n'
                    )
                    net.party(f"node{number}", config, key)
                else:
                    net.node(f"node{number}", key, {"party": "none"})
            net.run(folder / "app", lines.append, {"nodes": nodes, "messages": messages})
    found = [float(m[1]) for line in lines if (m := re.match(r"MESSAGE (\S+)", line))]
    if len(found) < messages:
        raise SystemExit("\n".join(lines))
    shown = ", ".join(f"{seconds:.1f}" for seconds in found)
    print(f"{nodes} nodes{', parties' if party else ''}: median {np.median(found):.2f} s ({shown})")


@app.command()
def clients(
    count: Annotated[int, typer.Option(help="Clients.")] = 1000,
    train: Annotated[int, typer.Option(help="Training texts a client.")] = 4,
    held_out: Annotated[int, typer.Option(help="Development texts a client, and test texts.")] = 2,
    prompts: Annotated[int, typer.Option(help="The budget, in prompts that all clients judge.")] = 100,
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
    rounds = [record.seconds for record in result.rounds if record.clients and record.round]
    return (
        f"{values['method']}: {values['count']} clients, {result.stopped}, peak {used.ru_maxrss / 1024:.0f} MiB; "
        f"{seconds:.0f} s in all: its own CPU {used.ru_utime + used.ru_stime:.0f} s, the server's {served:.0f} s; "
        f"{len(rounds)} rounds of {np.mean(rounds):.1f} s, "
        f"{result.rounds[-1].scored} scored"
    )


if __name__ == "__main__":
    app()
