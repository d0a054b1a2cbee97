"""What one hostile party of ten can do to a run: each lie beside the run without that party.

    FEDBPT_DATA=... python benchmarks/liars.py run DIR --url http://127.0.0.1:8001
    python benchmarks/liars.py pool pool.npz      # from the scores of benchmarks/pool.py, without a server

Ten parties share texts of SST-2's pool (`splits.iid` of main.toml); settings are the defaults. One party lies
in all its answers, in each of six ways (`fedbpt_api.bench.liars`). `run`: whole runs; answers are kept in
DIR/cache and shared by them, and count against each run's budget as if they were asked for. What a run came
to is kept in DIR, and not run again. `pool`: the prompts are those whose scores on the splits' texts are
there, so nothing is written or searched; the test texts are the rows of the development file. Both print a
Markdown table.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import orjson
import typer

from fedbpt_api.bench.grid import Cell, prepared
from fedbpt_api.bench.suite import Suite, load_suite
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.responder import Responder
from fedbpt_api.methods.searching import Stop
from fedbpt_api.prompts.space import Asked, Ids
from fedbpt_api.run.assess import START, Assessor
from fedbpt_api.run.config import Settings, build_settings
from fedbpt_api.run.draws import MADE_UP
from fedbpt_api.run.events import Event, Warned
from fedbpt_api.run.meter import Meter
from fedbpt_api.run.parties import Keep, Parties
from fedbpt_api.run.suspects import leave_out_suspects
from fedbpt_api.run.tune import Tuner
from fedbpt_api.run.words import choose_words
from fedbpt_api.scoring.backend import BackendInfo, Bools, Floats, Prompt, Scores, TokenTable, Usage
from fedbpt_api.scoring.encode import EncodedText
from fedbpt_api.task import ClientData, Example, LabelWords, Task, Template
from lies import LIES, lying, reached_through

HERE = Path(__file__).parent
LIAR = "client05"
WITHOUT, HONEST, OFF = "without it", "honest", "honest, nothing clipped or cross-scored"
SWAPPED, LOUD = "swapped labels", "swapped labels, four times as sure"
RUNS = (WITHOUT, HONEST, OFF, *LIES, SWAPPED, LOUD)
app = typer.Typer(add_completion=False)


@app.command()
def run(
    out: Annotated[Path, typer.Argument(help="Where results and answers are kept.")],
    url: Annotated[str, typer.Option(help="A vLLM.")] = "http://127.0.0.1:8001",
    budget: Annotated[int, typer.Option(help="Scored examples a run.")] = 4000,
    rows: Annotated[int, typer.Option(help="Test texts.")] = 300,
    seed: Annotated[int, typer.Option(help="Of split and search.")] = 13,
    split: Annotated[str, typer.Option(help="A split of main.toml.")] = "iid",
    only: Annotated[str, typer.Option(help="Runs of which the name has this in it.")] = "",
) -> None:
    if not os.environ.get("FEDBPT_DATA"):
        sys.exit("set FEDBPT_DATA to the folder that holds sst2")
    os.environ["FEDBPT_CACHE"] = str(out.resolve() / "cache")
    base = load_suite(HERE / "main.toml")
    tasks = {"sst2": base.tasks["sst2"].model_copy(update={"rows": rows})}
    suite = base.model_copy(update={"tasks": tasks, "set": {"backend.kind": "vllm", "backend.base_url": url}})
    cell = Cell("sst2", split, "ensemble", budget, seed)
    found: dict[str, dict[str, Any]] = {}
    for name in RUNS:
        path = out / f"{name.replace(' ', '-').replace(',', '')}-{split}-{seed}-{budget}.json"
        if not path.exists() and only in name:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(orjson.dumps(asyncio.run(_whole(suite, cell, name)), option=orjson.OPT_INDENT_2))
        if path.exists():
            found[name] = orjson.loads(path.read_bytes())
    print(table(found))


async def _whole(suite: Suite, cell: Cell, name: str) -> dict[str, Any]:
    """A whole run."""
    settings, task = prepared(suite, cell)
    return await _outcome(Tuner, settings, task, Keep(), name)


async def _outcome(
    tuner: type[Tuner], settings: Settings, task: Task, keep: Keep, name: str
) -> dict[str, Any]:
    """What a run came to: its accuracy and its warnings."""
    if name == WITHOUT:
        task = replace(task, clients=tuple(c for c in task.clients if c.name != LIAR))
        settings = settings.model_copy(
            update={"clients": tuple(c for c in settings.clients if c.name != LIAR)}
        )
    if name == OFF:
        off = settings.federation.model_copy(update={"clip": 0.0, "cross_scoring": False})
        settings = settings.model_copy(update={"federation": off})
    if name in (SWAPPED, LOUD):
        task = replace(task, clients=tuple(_swapped(c) if c.name == LIAR else c for c in task.clients))
    told: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Warned):
            told.append(event.message)

    between = lying(name, LIAR) if name in LIES else _loud if name == LOUD else _honest
    result = await tuner(settings, task, None, listen, keep, reached_through(between)).run()
    assert result.test is not None
    (row,) = (row for row in result.test.rows if row.client == "*" and row.method == "tuned")
    return {
        "accuracy": row.accuracy,
        "n": row.n,
        "prompt": result.prompt,
        "scored": sum(int(counts["scored"]) for counts in result.spent.values()),
        "stored": sum(int(counts["stored"]) for counts in result.spent.values()),
        "told": told,
    }


def _honest(client: Client) -> Exchange:
    return Responder(client).answer


def _loud(client: Client) -> Exchange:
    """The liar's model is four times as sure of everything; what it says of its texts goes together."""
    ask = client.scorer.scores

    async def scores(
        prompt: Asked, texts: Sequence[EncodedText], repeat: int = 0, words: Ids = ()
    ) -> tuple[Floats, Bools]:
        rows, exact = await ask(prompt, texts, repeat, words)
        return 4 * rows, exact

    if client.name == LIAR:
        client.scorer.scores = scores  # type: ignore[method-assign]
    return Responder(client).answer


def _swapped(client: ClientData) -> ClientData:
    """The same texts, of two labels, each with the other one: an accident as it happens."""
    other: dict[str | None, str] = {"negative": "positive", "positive": "negative"}
    train, dev = (
        tuple(replace(row, label=other[row.label]) for row in rows) for rows in (client.train, client.dev)
    )
    return replace(client, train=train, dev=dev)


@app.command()
def pool(
    scores: Annotated[Path, typer.Argument(help="What `benchmarks/pool.py score sst2` wrote.")],
    seeds: Annotated[str, typer.Option(help="Of the draw of texts and prompts.")] = "1,2,3",
    prompts: Annotated[int, typer.Option(help="Prompts that are judged, the user's two among them.")] = 20,
    only: Annotated[str, typer.Option(help="Runs of which the name has this in it.")] = "",
) -> None:
    data = dict(np.load(scores))
    for seed in map(int, seeds.split(",")):
        found = {}
        for name in (name for name in RUNS if only in name):
            settings, task, backend = _recorded(data, seed, prompts)

            async def opener(kind: str, backend: Recorded = backend, **options: object) -> Recorded:
                return backend

            found[name] = asyncio.run(_outcome(Judging, settings, task, Keep(opener=opener), name))
        print(f"seed {seed}\n\n{table(found)}\n", flush=True)


def _recorded(data: dict[str, Any], seed: int, prompts: int) -> tuple[Settings, Task, Recorded]:
    """Ten parties with 8 training and 8 development texts each; 300 test texts."""
    rng = np.random.default_rng(seed)
    few = rng.permutation(np.flatnonzero(data["parts"] > 0))[:160].reshape(10, 2, 8)
    drawn = rng.permutation(np.arange(2, len(data["sizes"])))[: prompts - 2]
    words = {"negative": " negative", "positive": " positive"}

    def examples(rows: npt.NDArray[np.intp]) -> tuple[Example, ...]:
        return tuple(Example(f"T{row}", tuple(words)[data["labels"][row]]) for row in rows)

    test = examples(np.flatnonzero(data["parts"] == 0))
    clients = tuple(
        ClientData(f"client{k + 1:02d}", examples(train), examples(dev), test if k == 0 else ())
        for k, (train, dev) in enumerate(few)
    )
    settings = build_settings(
        {
            "seed": seed,
            "prompts": [f"P{place}\n" for place in (0, 1)],
            "template": "{text}\n",
            "labels": words,
            "clients": [{"name": client.name, "train": "(in memory)"} for client in clients],
            "budget": {"scored": 1_000_000},
            "test": {"compare": "none"},
        },
        files=False,
    )
    task = Task(Template.parse(settings.template), LabelWords.from_mapping(settings.labels), clients)
    return settings, task, Recorded(data["logprobs"], data["words"].tolist(), drawn.tolist())


class Judging(Tuner):
    """A default run whose prompts are there: it judges them as starting prompts are judged."""

    async def _tune(self, parties: Parties, assessor: Assessor) -> Stop:
        parties.start()
        clock, backend = Meter(parties), parties.backend
        await choose_words(parties, assessor)
        given = [(await backend.tokenize(text), None, START) for text in self.settings.prompts]
        await assessor.assess_all(given)
        await leave_out_suspects(assessor, assessor.best())
        (recorded,) = (opened for opened in parties.backends if isinstance(opened, Recorded))
        drawn = [(await backend.tokenize(f"P{place}\n"), None, MADE_UP) for place in recorded.drawn]
        await assessor.assess_all(drawn)
        self._add_round(self._record(clock, assessor.best(), None, 0.0))
        return "rounds"


class Recorded:
    """Scores that were asked for before: P0 is the first prompt, T0 the first text, each a token.

    Args:
        logprobs: Of words, shape [prompts, texts, words].
        words: Their token ids, the label words first.
        drawn: Prompts that are judged beside the user's two.
    """

    notice = ""

    def __init__(self, logprobs: Floats, words: list[int], drawn: list[int]) -> None:
        self._logprobs, self._words, self.drawn = logprobs, words, drawn
        self._column = {token: column for column, token in enumerate(words)}

    @property
    def info(self) -> BackendInfo:
        return BackendInfo("recorded", "recorded", "recorded", 1024, details={"way": "recorded"})

    async def tokenize(self, text: str) -> tuple[int, ...]:
        if text in (" negative", " positive"):
            return (self._words[text == " positive"],)
        found = []
        for kind, number, other in re.findall(r"([PT])(\d+)|(.|\n)", text):
            found.append(ord(other) if other else _FIRST[kind] + int(number))
        return tuple(found)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def _row(self, prompt: Prompt) -> Floats:
        place, text = (
            next(token - first for token in prompt.ids if first <= token < first + 10_000)
            for first in (_FIRST["P"], _FIRST["T"])
        )
        return np.asarray(self._logprobs[place, text], dtype=np.float64)

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        columns = [self._column[word] for word in words]
        rows = np.array([self._row(prompt)[columns] for prompt in prompts])
        return Scores(rows, np.ones(rows.shape, dtype=np.bool_), np.exp(rows).sum(axis=1), Usage(len(rows)))

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        rows = [dict(zip(self._words, self._row(prompt).tolist(), strict=True)) for prompt in prompts]
        return rows, Usage(len(rows))

    async def token_table(self) -> TokenTable | None:
        return None

    async def aclose(self) -> None:
        """Nothing is open."""


_FIRST = {"P": 1_000_000, "T": 2_000_000}  # token ids above the model's own


def table(found: dict[str, dict[str, Any]]) -> str:
    """Accuracies, differences from the run without the liar in points, and who was named."""
    lines = ["| the tenth party | pooled test accuracy | difference | named |", "|---|---|---|---|"]
    base = found.get(WITHOUT)
    for name, run in found.items():
        difference = "" if base is None else f"{100 * (run['accuracy'] - base['accuracy']):+.1f}"
        named = [line for line in run["told"] if "left out" in line]
        said = "; ".join(line.split(":")[0] for line in named) or "nobody"
        lines.append(f"| {name} | {100 * run['accuracy']:.1f} | {difference} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app()
