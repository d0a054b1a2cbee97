"""Which words a verbalizer should read: ways to choose them, on prompts that were scored for many words.

    FEDBPT_DATA=... python benchmarks/words.py score agnews words.npz --url http://127.0.0.1:8001
    python benchmarks/words.py study words.npz
    python benchmarks/words.py score subj words.npz --suite benchmarks/others.toml    # of benchmarks/sets.py

`score` has the model write lines as a run does, makes prompts with one of them a label, and scores these and
the user's on the texts of the few-shot splits and on rows of the development file (never the test file): for
all words that vary most by the lists after some split's training texts, many times more than are read.
`study` chooses words on each split's training texts under the user's first prompt, fits read-outs on the
split's texts, and tries them on all others.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pool import HERE, Drawn, Places, on

from fedbpt_api.bench.suite import Suite
from fedbpt_api.prompts.space import Ids
from fedbpt_api.scoring.backend import Backend, Floats, Prompt
from fedbpt_api.scoring.encode import EncodedText
from fedbpt_api.verbalizer import deviations, fit, word_sums

READ = 128  # words that are read, label words among them
LISTED = 372  # words by the lists, of which others choose
SIZES = (32, 64, 128, 192, 256, LISTED)  # words that are read, where a server names so many
app = typer.Typer(add_completion=False)


@app.command()
def score(
    dataset: Annotated[str, typer.Argument(help="sst2 or agnews, or another task of the suite.")],
    out: Annotated[Path, typer.Argument(help="Where the scores go.")],
    url: Annotated[str, typer.Option(help="A vLLM.")] = "http://127.0.0.1:8001",
    file: Annotated[Path, typer.Option("--suite", help="A suite.")] = HERE / "main.toml",
    rows: Annotated[int, typer.Option(help="Rows of the development file.")] = 200,
    draws: Annotated[int, typer.Option(help="Prompts with examples.")] = 4,
) -> None:
    asyncio.run(_score(on(file, url), dataset, out, rows, draws))


async def _score(suite: Suite, dataset: str, out: Path, rows: int, draws: int) -> None:
    drawn = await Drawn.of(suite, dataset, rows, {1: draws})
    parties, data, parts, trained = drawn.parties, drawn.data, drawn.parts, drawn.trained
    prompts = [text for _, text in drawn.prompts]
    lists, _ = await parties.backend.top_words(_under(await parties.backend.tokenize(prompts[0]), data), 200)
    named: dict[int, None] = dict.fromkeys(parties.label_tokens)
    listed: dict[int, list[int]] = {}
    for split in sorted(set(parts.tolist()) - {0}):
        own = np.flatnonzero((parts == split) & trained)
        pairs = word_sums([lists[i] for i in own])
        listed[split] = [token for token, _ in pairs if token not in parties.label_tokens][:LISTED]
        named |= dict.fromkeys(listed[split])
    words, found = list(named), list[Floats]()
    for text in prompts:
        ids = await parties.backend.tokenize(text)
        found.append(await _named(parties.backend, _under(ids, data), words, len(parties.label_tokens)))
        print(f"{len(found)} of {len(prompts)} prompts, {len(words)} words", flush=True)
        np.savez(
            out, logprobs=np.array(found, dtype=np.float32),
            labels=drawn.labels, parts=parts, trained=trained, words=np.array(words),
            groups=json.dumps([list(group) for group in parties.groups]), listed=json.dumps(listed),
            given=drawn.given,
        )  # fmt: skip
    await parties.aclose()


def _under(prompt: Ids, texts: Sequence[EncodedText]) -> list[Prompt]:
    return [text.with_prompt(prompt) for text in texts]


async def _named(backend: Backend, prompts: Sequence[Prompt], words: Sequence[int], labels: int) -> Floats:
    """Log-probabilities over the whole vocabulary, shape [N, W], by as many questions as that takes."""
    size, found = backend.info.max_words - labels, list[Floats]()
    for begin in range(labels, len(words), size):
        scores = await backend.score(prompts, (*words[:labels], *words[begin : begin + size]))
        rows = scores.logprobs + np.log(scores.mass)[:, None]
        found.append(rows if not found else rows[:, labels:])
    return np.concatenate(found, axis=1)


def _between(rows: Floats, labels: Places) -> Floats:
    """The part of the deviations that lies between labels."""
    away, found = rows - rows.mean(axis=0), np.zeros(rows.shape[1])
    for label in np.unique(labels):
        found += (labels == label).sum() * away[labels == label].mean(axis=0) ** 2
    return found


Way = Callable[[Floats, Places], Floats]  # of log-probabilities [n, W] and labels
WAYS: dict[str, Way] = {
    "as listed": lambda rows, labels: -np.arange(float(rows.shape[1])),
    "by name: deviations": lambda rows, labels: deviations(rows),
    "by name: and three times what lies between labels": lambda rows, labels: (
        deviations(rows) + 3 * _between(rows, labels)
    ),
}


@app.command()
def study(file: Annotated[Path, typer.Argument(help="What `score` wrote.")]) -> None:
    data = np.load(file)
    rows, labels = data["logprobs"].astype(np.float64), data["labels"].astype(np.intp)
    words, groups = data["words"].tolist(), json.loads(str(data["groups"]))
    listed: dict[str, list[int]] = json.loads(str(data["listed"]))
    place, first = {token: i for i, token in enumerate(words)}, sum(map(len, groups))

    def told(most: int, rank: Way, size: int) -> str:
        cells, given = [], int(data["given"])
        for split, tokens in listed.items():
            own = data["parts"] == int(split)
            columns = np.array([place[token] for token in tokens[:most]])
            asked = _normalised(rows[0][own & data["trained"]], columns, first)
            sums = rank(asked, labels[own & data["trained"]])
            chosen = columns[np.argsort(-sums, kind="stable")][: size - first]
            read = np.concatenate([np.arange(first), chosen])
            cells.append(_tried(rows[:, :, read], labels, own, [words[i] for i in read], groups, given))
        one, drawn, nats, together = np.mean(cells, axis=0)
        return f"{one:.3f}; {drawn:.3f} ({nats:.3f}); {together:.3f}"

    print(
        "accuracy (nats) on texts outside the split: first prompt; one with examples; all of these together"
    )
    for most in (LISTED, 2 * (READ - first)):
        for way, rank in WAYS.items():
            print(f"  {most} listed, {way}: {told(most, rank, READ)}")
    for size in SIZES:
        print(f"  {size} words that vary most by name: {told(LISTED, WAYS['by name: deviations'], size)}")


def _normalised(rows: Floats, columns: Places, first: int) -> Floats:
    """As the questions of a run give them: over each question's own words, label words among them."""
    found = []
    for begin in range(0, len(columns), READ - first):
        asked = rows[:, np.concatenate([np.arange(first), columns[begin : begin + READ - first]])]
        found.append((asked - np.logaddexp.reduce(asked, axis=1, keepdims=True))[:, first:])
    return np.concatenate(found, axis=1)


def _tried(
    rows: Floats, labels: Places, own: Any, words: list[int], groups: list[list[int]], given: int
) -> list[float]:
    """Accuracy of the first prompt; accuracy and loss of those with examples, each and together."""
    rows = rows - np.logaddexp.reduce(rows, axis=2, keepdims=True)
    logits = []
    for each in rows:
        verbalizer, _ = fit(each[own], labels[own], words, groups)
        read = verbalizer.logits(each)[~own]
        logits.append(read - np.logaddexp.reduce(read, axis=1, keepdims=True))
    others, examples = labels[~own], np.array(logits[given:])
    right = [float((each.argmax(axis=1) == others).mean()) for each in logits]
    nats = -examples[:, np.arange(len(others)), others].mean()
    together = float((examples.mean(axis=0).argmax(axis=1) == others).mean())
    return [right[0], float(np.mean(right[given:])), float(nats), together]


if __name__ == "__main__":
    app()
