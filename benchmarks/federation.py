"""What the federation adds to the parties' own work.

    python benchmarks/federation.py merge                 # a thousand updates of 500 coordinates, each rule
    python benchmarks/federation.py floor --nodes 2       # Flower's own time for a message there and back
    python benchmarks/federation.py late                  # parties that are always late

`floor` runs an app that does nothing with the messages it gets, over TLS and with keys as the demo does; with
`--party` the same messages go through a party's process and are answered there. Their difference is what this
package adds to a message.

`late`: ten parties search for the weights of a classifier, each on 32 texts of its own with a mix of labels
of its own. Some are always a round late. The loss on texts of all mixes is printed where their updates are
used, and where they are dropped.
"""

from __future__ import annotations

import re
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fedbpt_api.aggregate import (
    Aggregator,
    FedAvg,
    FedBPT,
    GlobalState,
    Median,
    Trimmed,
    Update,
    clipped,
    rebased,
)
from fedbpt_api.flower.loopback import Loopback
from fedbpt_api.scoring.backend import Floats

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Could not import matplotlib")
    from cma import CMAEvolutionStrategy

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


class Mixes:
    """A task: two labels, d features that tell them apart, and parties with unlike mixes of both.

    Args:
        seed: Of the draw.
        parties: How many.
        dimension: d.
    """

    def __init__(self, seed: int, parties: int, dimension: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed, self.truth = seed, 2 * rng.normal(size=dimension) / np.sqrt(dimension)
        self.texts = [self._drawn(rng, 32, share) for share in rng.beta(0.5, 0.5, parties)]
        self.held_out = self._drawn(rng, 5000, 0.5)

    def _drawn(self, rng: np.random.Generator, n: int, share: float) -> tuple[Floats, Floats]:
        signs = np.where(rng.random(n) < share, 1.0, -1.0)
        return rng.normal(size=(n, len(self.truth))) + signs[:, None] * self.truth, signs

    def loss(self, z: Floats, texts: tuple[Floats, Floats]) -> float:
        """Mean cross-entropy of the classifier with weights z."""
        features, signs = texts
        return float(np.logaddexp(0, -signs * (features @ z)).mean())

    def searched(self, party: int, state: GlobalState) -> Update:
        """A party's local search: four generations of six, as by default."""
        draws = np.random.default_rng((self.seed, state.round, party))
        options = {
            "popsize": 6,
            "randn": lambda rows, columns: draws.standard_normal((rows, columns)),
            "seed": np.nan,
            "verbose": -9,
        }
        search = CMAEvolutionStrategy(state.mean, state.sigma, options)
        steps = []
        for _ in range(4):
            steps.append(float(search.sigma))
            points = search.ask()
            search.tell(points, [self.loss(z, self.texts[party]) for z in points])
        loss = self.loss(search.mean, self.texts[party])
        return Update(f"party{party}", state.round, search.mean, loss, tuple(steps), 6, n=32)

    def tuned(self, rule: Aggregator, rounds: int, late: int, use: bool) -> float:
        """The held-out loss after so many rounds.

        Args:
            rule: Merges.
            rounds: How many.
            late: Parties whose updates come a round late: each is asked in every other round.
            use: Whether they are used; dropped otherwise.
        """
        state = rule.initial(np.zeros(len(self.truth)), 1.0)
        under_way: dict[int, tuple[Update, GlobalState]] = {}
        for _ in range(rounds):
            free = [party for party in range(len(self.texts)) if party not in under_way]
            updates = [rebased(update, sent, state) for update, sent in under_way.values()]
            under_way.clear()
            for party in free:
                if party >= late:
                    updates.append(self.searched(party, state))
                elif use:
                    under_way[party] = self.searched(party, state), state
            state = rule.merge(state, updates)
        return self.loss(state.mean, self.held_out)


@app.command()
def late(
    parties: int = 10,
    rounds: int = 10,
    dimension: int = 16,
    seeds: int = 50,
    rule: Annotated[str, typer.Option(help="fedbpt or fedavg.")] = "fedbpt",
) -> None:
    """Held-out loss with parties that are always a round late, mean and standard error over seeds."""
    merging: Aggregator = FedBPT() if rule == "fedbpt" else FedAvg()
    tasks = [Mixes(seed, parties, dimension) for seed in range(seeds)]
    print(f"{parties} parties, {rounds} rounds, d = {dimension}, {seeds} seeds, {rule}")
    print("late   in time          dropped          used             used - dropped")
    in_time = [task.tuned(merging, rounds, 0, use=True) for task in tasks]
    for count in (1, 3, 5):
        dropped, used = (
            [task.tuned(merging, rounds, count, use=use) for task in tasks] for use in (False, True)
        )
        difference = np.subtract(used, dropped)
        columns = (in_time, dropped, used, difference)
        shown = [f"{np.mean(c):.4f} (se {np.std(c, ddof=1) / np.sqrt(seeds):.4f})" for c in columns]
        print(f"{count:4}   {'  '.join(shown)}", flush=True)


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


if __name__ == "__main__":
    app()
