"""What a server's short list costs the weighted verbalizer, and what being told of bounds gives back.

    FEDBPT_DATA=... python benchmarks/bounds.py --out benchmarks/results/bounds

The embedded model gives every word's probability; here only the k most probable are kept and the others
bounded, as `fedbpt_backends.ways.bounded` does, and the words asked for come from such lists too. The user's
prompt; fitted on the training texts and read on the development texts, and the other way round; no test text
is read. Tweets: eight draws of four parties (32 and 32); the treatment was chosen on the first four. SST-2
has three splits of 16 a label, read on 400 rows of the development file as well. The model's answers are
kept in --cache (500 MB).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from fedbpt_api.data import read_examples
from fedbpt_api.scoring.backend import Backend, Bools, Floats
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.trie import label_trie
from fedbpt_api.task import Example, LabelWords, Template
from fedbpt_api.verbalizer import ClientFit, Kind, fit_over_clients, label_groups, merge_words, word_sums
from fedbpt_api.verbalizer.regression import Ints
from fedbpt_backends.ways import bounded

HERE = Path(__file__).parent
DEMO = HERE.parent / "examples" / "tweets"
PARTIES = ("airlines", "cars", "phone-maker", "football")
SERVERS = ((20, 128), (20, 20), (5, 128))  # length of a list, and most words asked for
DEV_ROWS = 400
WAYS = (
    "no list",
    "bounds are values",
    "told",
    "one constant a word",
    "words in half the lists",
    "label bias",
)


@dataclass(frozen=True)
class Texts:
    """Full log-probabilities [n, V] and labels [n]."""

    rows: npt.NDArray[np.float32]
    labels: Ints


@dataclass(frozen=True)
class Task:
    """A draw: parties to fit on, and texts to read."""

    seed: int
    label_words: tuple[int, ...]
    parties: tuple[Texts, ...]
    unseen: tuple[Texts, ...]


def main(
    out: Annotated[Path, typer.Option(help="Folder for the table.")],
    cache: Annotated[Path, typer.Option(help="Folder for data and the model's answers.")] = Path(
        "/tmp/bounds"
    ),
) -> None:
    if not os.environ.get("FEDBPT_DATA"):
        sys.exit("set FEDBPT_DATA to the folder that holds sst2 and fewshot16")
    cache.mkdir(parents=True, exist_ok=True)
    lines = [
        "| task | list | words | bounds | read by | accuracy | loss | change of loss |",
        "|---" * 8 + "|",
    ]
    for name, tasks in asyncio.run(drawn(cache)).items():
        for k, most in SERVERS:
            lines += asyncio.run(compared(name, tasks, k, most))
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


async def drawn(cache: Path) -> dict[str, list[Task]]:
    """All draws of both tasks, each in both directions."""
    backend = await open_backend("llamacpp")
    files = (DEMO / "tweets.toml", HERE / "sst2.toml")
    tweets, sst2 = (tomllib.loads(file.read_text(encoding="utf-8")) for file in files)
    found: dict[str, list[Task]] = {"tweets 0-3": [], "tweets 4-7": [], "sst2": []}
    for seed in range(8):
        data = cache / "tweets" / str(seed)
        prepare = [sys.executable, str(DEMO / "prepare.py"), str(data), "--test", "10", "--seed", str(seed)]
        subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
        halves = [
            [await scored(backend, tweets, data / p / f"{part}.jsonl", cache / f"tweets-{seed}-{p}-{part}")
             for p in PARTIES]
            for part in ("train", "dev")
        ]  # fmt: skip
        found["tweets 0-3" if seed < 4 else "tweets 4-7"] += await both(backend, tweets, seed, halves, [])
    data = Path(os.environ["FEDBPT_DATA"])
    more = await scored(backend, sst2, data / "sst2" / "dev.jsonl", cache / "sst2-dev")
    for split in (13, 21, 42):
        splits = [data / "fewshot16" / "sst2" / str(split) / f"{part}.jsonl" for part in ("train", "dev")]
        halves = [[await scored(backend, sst2, file, cache / f"sst2-{split}-{file.stem}")] for file in splits]
        found["sst2"] += await both(backend, sst2, split, halves, [more])
    await backend.aclose()
    return found


async def both(
    backend: Backend, config: dict[str, Any], seed: int, halves: list[list[Texts]], more: list[Texts]
) -> list[Task]:
    words = (await label_trie(backend, LabelWords.from_mapping(config["labels"]))).tokens
    return [Task(seed, words, tuple(a), (*b, *more)) for a, b in (halves, halves[::-1])]


async def scored(backend: Backend, config: dict[str, Any], data: Path, kept: Path) -> Texts:
    """A file's texts with the user's prompt, asked once."""
    rows: Sequence[Example] = list(read_examples(data))[:DEV_ROWS]
    kept = kept.with_suffix(".npz")
    if not kept.exists():
        table = await backend.token_table()
        assert table is not None
        words = LabelWords.from_mapping(config["labels"])
        encoder = Encoder(backend, Template.parse(config["template"]), words)
        encoded = await encoder.labelled(rows)
        prompt = await backend.tokenize(config["prompts"][0])
        inputs = [text.with_prompt(prompt) for text in encoded.texts]
        scores = await backend.score(inputs, range(len(table.texts)))
        np.savez(kept, rows=scores.logprobs.astype(np.float32), labels=encoded.labels)
        print(f"scored {data}", file=sys.stderr, flush=True)
    with np.load(kept) as arrays:
        return Texts(arrays["rows"], arrays["labels"].astype(np.intp))


async def compared(name: str, tasks: list[Task], k: int, most: int) -> list[str]:
    """Rows of the table for one kind of server."""
    accuracy: defaultdict[str, list[float]] = defaultdict(list)
    loss: defaultdict[str, list[float]] = defaultdict(list)
    shares: list[float] = []
    counts: list[int] = []
    for task in tasks:
        tops = [[_top(row, k) for row in party.rows] for party in task.parties]
        words = merge_words([word_sums(lists) for lists in tops], task.label_words, most)
        seen = [censored(party.rows, words, k) for party in task.parties]
        unseen = censored(np.concatenate([t.rows for t in task.unseen]), words, k)
        counts.append(len(words))
        shares.append(float(1 - np.concatenate([exact for _, exact in seen]).mean()))
        for way in WAYS:
            right, losses = await read(task, words, seen, unseen, way)
            accuracy[way].append(100 * right)
            loss[way].append(losses)
    lines = []
    for way in WAYS:
        change = np.array(loss[way]) - np.array(loss["bounds are values"])
        error = change.std(ddof=1) / np.sqrt(len(change))
        lines.append(
            f"| {name} | {k} | {np.mean(counts):.0f} | {np.mean(shares):.0%} | {way} "
            f"| {np.mean(accuracy[way]):.1f} | {np.mean(loss[way]):.4f} "
            f"| {change.mean():+.4f} ± {error:.4f} |"
        )
    return lines


async def read(
    task: Task,
    words: tuple[int, ...],
    seen: list[tuple[Floats, Bools]],
    unseen: tuple[Floats, Bools],
    way: str,
) -> tuple[float, float]:
    """Accuracy and mean loss on the unseen texts."""
    c = len(task.label_words)
    marks = np.concatenate([exact for _, exact in seen])
    marks[:, :c] = True  # label words keep their values in every way
    rows, exact = [r for r, _ in seen], [e for _, e in seen]
    new, new_exact = unseen
    if way == "no list":
        rows = [party.rows[:, words].astype(np.float64) for party in task.parties]
        new = np.concatenate([texts.rows[:, words] for texts in task.unseen]).astype(np.float64)
    elif way == "one constant a word":
        every = np.concatenate(rows)
        sums, counts = np.where(marks, 0.0, every).sum(axis=0), (~marks).sum(axis=0)
        constant = np.where(counts, sums / np.maximum(counts, 1), every.mean(axis=0))
        bounds = [~e & (np.arange(len(words)) >= c) for e in (*exact, new_exact)]
        *rows, new = [np.where(b, constant, r) for b, r in zip(bounds, (*rows, new), strict=True)]
    elif way == "words in half the lists":
        kept = np.flatnonzero(marks.mean(axis=0) >= 0.5)
        words, rows, new = tuple(words[i] for i in kept), [r[:, kept] for r in rows], new[:, kept]
    told = way == "told"
    groups = label_groups([[word] for word in task.label_words])
    kind: Kind = "bias" if way == "label bias" else "weighted"
    clients = [
        ClientFit(str(i), r, party.labels, groups, exact=e if told else None)
        for i, (r, e, party) in enumerate(zip(rows, exact, task.parties, strict=True))
    ]
    verbalizer, _ = await fit_over_clients(clients, words, groups, kind=kind)
    labels = np.concatenate([texts.labels for texts in task.unseen])
    marked = new_exact if told else None
    right = verbalizer.logits(new, marked).argmax(axis=1) == labels
    return float(right.mean()), float(verbalizer.losses(new, labels, marked).mean())


def censored(full: npt.NDArray[np.float32], words: Sequence[int], k: int) -> tuple[Floats, Bools]:
    """What a server with lists of k gives of `words`: values or bounds, and which are values; [n, T] each."""
    keys = [str(word) for word in words]
    readings = [bounded({str(i): v for i, v in _top(row, k).items()}, keys) for row in full]
    return np.array([r.logprobs for r in readings]), np.array([r.exact for r in readings])


def _top(row: npt.NDArray[np.float32], k: int) -> dict[int, float]:
    return {int(i): float(row[i]) for i in np.argpartition(-row, k)[:k]}


if __name__ == "__main__":
    typer.run(main)
