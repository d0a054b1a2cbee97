"""The task of a struck federation, and what a run of it has left. Part of `chaos.py`."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import tomli_w

from chaos_net import ROOT
from fedbpt_api.data import write_examples
from fedbpt_api.flower.init import write_app
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.config import build_settings
from fedbpt_api.run.folder import read_result
from fedbpt_api.run.result import RunResult
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.journal import read_journal
from fedbpt_api.scoring.record_file import read_records
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.task import ClientData, Example, Task
from fedbpt_api.verbalizer.committee import alone
from toy import LABEL_WORDS, PROMPT, TEMPLATE, ToyBackend, make_task
from toy_runs import make_values

PARTIES: Final = 3
DEADLINE: Final = 100.0
"""Seconds that a party has for an answer: several times of what Flower takes for a message."""

OURS: Final = f"package {ROOT / 'fedbpt_api' / '__init__.py'}"
"""What the stub writes first, where it serves this package and no other."""

UNDER_WAY: Final = 40
"""Pairs of the request that a party's process may have under way when it is killed."""

_NOISE: Final = 7  # one label in so many is wrong, so that the loss has a floor as on real texts


@dataclass
class Row:
    """What a run came to.

    Attributes:
        name: Its name.
        strikes: What was done to it.
        seconds: It took.
        bound: It had.
        starts: How often the coordinator was started.
        answered: Pairs that the stub gave.
        kept: Pairs in journals.
        twice: Pairs given more than once.
        lost: Pairs given and in no journal.
        start_loss: Development loss of the starting prompt, as the run tells it.
        loss: Of the result, over all parties' texts.
        missing: Rounds in which a party was left out.
        late: Updates that joined a later round.
        envelopes: Questions that a party answered at most.
        problems: What was not as it should be.
    """

    name: str
    strikes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    bound: float = 0.0
    starts: int = 0
    answered: int = 0
    kept: int = 0
    twice: int = 0
    lost: int = 0
    start_loss: float = 0.0
    loss: float = 0.0
    missing: int = 0
    late: int = 0
    envelopes: int = 0
    problems: list[str] = field(default_factory=list)


def noisy_task() -> Task:
    """The toy's task with wrong labels among the right ones."""
    task = make_task(PARTIES, train=32, dev=40, test=10)
    other = {"positive": "negative", "negative": "positive"}

    def noisy(rows: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(
            Example(row.text, other[str(row.label)]) if number % _NOISE == 3 else row
            for number, row in enumerate(rows)
        )

    clients = tuple(ClientData(c.name, noisy(c.train), noisy(c.dev), noisy(c.test)) for c in task.clients)
    return Task(TEMPLATE, LABEL_WORDS, clients)


def write_federation(folder: Path, task: Task) -> dict[str, Path]:
    """The app, and each party's files and settings; where the latter are."""
    changes: dict[str, object] = {
        "prompts": [PROMPT],
        "backend": {"kind": "stub"},
        "budget.scored": 40_000,
        "federation.timeout": DEADLINE,
        # As much as fits into few messages, so that a round or two without a party leave the result as it is.
        "search.rounds": 3,
        "search.popsize": 8,
        "search.iterations": 4,
        "search.proposals": 3,
        "test.compare": "none",
        "verbalizer.kind": "bias",
    }
    settings = build_settings(make_values(task, changes), files=False)
    write_app(folder / "app", settings, folder / "run")
    configs = {}
    for client in task.clients:
        place = folder / client.name
        node: dict[str, object] = {"name": client.name, "folder": "kept"}
        node["backend"] = {"kind": "stub", "log": str(place / "stub.log"), "wait": 0.1}
        for part, rows in client.parts():
            write_examples(place / f"{part}.jsonl", rows)
            node[part] = f"{part}.jsonl"
        configs[client.name] = place / "node.toml"
        configs[client.name].write_text(tomli_w.dumps(node))
    return configs


# What it came to --------------------------------------------------------------------------------


def judge(row: Row, folder: Path, task: Task) -> None:
    """Enter what a run has left, and what is not as it should be."""
    result = read_result(folder / "run") if (folder / "run" / "result.json").exists() else None
    for client in task.clients:
        lines = (folder / client.name / "stub.log").read_text().splitlines()
        if any(line != OURS for line in lines if line.startswith("package")):
            row.problems.append(f"{client.name} runs another fedbpt_api")
        given = Counter(line for line in lines if line.startswith("pair "))
        kept, paid = Counter[bytes](), 0
        for journal in (folder / client.name / "kept").glob("*/scores-*.journal"):
            for record in read_journal(journal):
                kept.update(record.keys)
                paid += record.usage.scored
        row.answered += given.total()
        row.kept += kept.total()
        row.twice += given.total() - len(given)
        row.lost += len(given) - len(kept)
        if kept.total() != len(kept):
            row.problems.append(f"{client.name} has {kept.total() - len(kept)} answers in its journal twice")
        if result is not None and not accounted(result, client.name, paid):
            row.problems.append(f"{client.name} has paid {paid}; the coordinator's account: {result.spent}")
    died = sum("kill party" in strike or "kill machine" in strike for strike in row.strikes)
    # An answer that reaches a process as it is killed cannot be in its journal.
    if row.lost > died * UNDER_WAY or row.twice > died * UNDER_WAY:
        row.problems.append(f"{row.lost} answers lost, {row.twice} paid twice")
    if result is None:
        return
    row.start_loss = result.rounds[0].best_dev_loss
    row.loss = asyncio.run(development_loss(folder / "run", task))
    row.missing = sum(bool(client.note) for record in result.rounds for client in record.clients)
    answers = (folder / "run").glob("answers-*.records")
    row.envelopes = max(len(read_records(file, "file of answers", 1).payloads) for file in answers)
    late = folder / "run" / "late.records"
    if late.exists():
        told = [json.loads(bytes(one)) for one in read_records(late, "late searches", 1).payloads]
        row.late = sum(len(one["joined"]) for one in told)


async def development_loss(run: Path, task: Task) -> float:
    """Of the tuned prompt, over all parties' development texts.

    A run's own number is over those parties that answered when the prompt was judged.
    """
    tuned, backend = TunedPrompt.load(run), ToyBackend()
    encoder, scorer = Encoder(backend, task.template, task.label_words), Scorer(backend, Budget())
    scorer.use_words(tuned.verbalizer.words)
    losses = []
    for client in task.clients:
        texts = await encoder.labelled(client.dev)
        logprobs, exact = await scorer.scores(tuned.ids, texts.texts)
        losses += alone(tuned.verbalizer).losses(logprobs, texts.labels, exact).tolist()
    return float(np.mean(losses))


def accounted(result: RunResult, name: str, paid: int) -> bool:
    """Whether the coordinator's account of a party is what its journal says that it has paid."""
    counts = result.spent[name]
    return int(counts["scored"] + counts.get("test_scored", 0)) == paid
