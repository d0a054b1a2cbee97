"""What choosing between prompts is worth: a pool of prompts scored on many texts, then studied offline.

    FEDBPT_DATA=... python benchmarks/pool.py score sst2 pool.npz --url http://127.0.0.1:8001
    python benchmarks/pool.py study pool.npz
    python benchmarks/pool.py score subj pool.npz --suite benchmarks/others.toml    # of benchmarks/sets.py

`score` has the model write lines as a run does, makes prompts with 1, 2, 4, ... of them a label, and scores
each on the texts of the five few-shot splits and on balanced rows of the development file (never the test
file). `study` plays the choice on each split's texts and prints the accuracy on the development rows: of
single prompts by several criteria, and of sets of prompts by their size and by how they are chosen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from fedbpt_api.bench.grid import Cell, balanced, prepared
from fedbpt_api.bench.suite import Suite, load_suite
from fedbpt_api.data import read_examples
from fedbpt_api.prompts.written import Line
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import SPREAD
from fedbpt_api.run.draws import Shown
from fedbpt_api.run.opening import open_parties
from fedbpt_api.run.origins import shown_examples, written_lines
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.words import choose_words
from fedbpt_api.scoring.backend import Backend, Floats
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import EncodedText, Encoder
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.task import Example
from fedbpt_api.verbalizer import Kind, fit
from fedbpt_api.verbalizer.verbalizer import log_sum

SIZES = '{"1": 33, "4": 10, "2": 10}'
TRUST = 0.5  # in the labels, where the target is theirs and a committee's
SPLITS = (13, 21, 42, 87, 100)
KINDS: tuple[Kind, ...] = ("bias", "weighted")
HERE = Path(__file__).parent
Places = npt.NDArray[np.intp]
app = typer.Typer(add_completion=False)


@app.command()
def score(
    dataset: Annotated[str, typer.Argument(help="sst2 or agnews, or another task of the suite.")],
    out: Annotated[Path, typer.Argument(help="Where the scores go.")],
    url: Annotated[str, typer.Option(help="A vLLM.")] = "http://127.0.0.1:8001",
    file: Annotated[Path, typer.Option("--suite", help="A suite.")] = HERE / "main.toml",
    rows: Annotated[int, typer.Option(help="Rows of the development file; 0: all, as they are.")] = 300,
    sizes: Annotated[str, typer.Option(help="Prompts with so many lines a label.")] = SIZES,
) -> None:
    asyncio.run(_score(on(file, url), dataset, out, rows, {int(k): n for k, n in json.loads(sizes).items()}))


@dataclass(frozen=True)
class Drawn:
    """Texts with their labels, splits and parts (`texts_of`), the parties to ask, and prompts to try on them.

    `prompts` are (lines a label, text): the user's `given` first, then those with lines that the model wrote.
    """

    parties: Parties
    data: Sequence[EncodedText]
    labels: npt.NDArray[np.intp]
    parts: npt.NDArray[np.int_]
    trained: npt.NDArray[np.bool_]
    prompts: list[tuple[int, str]]
    given: int

    @classmethod
    async def of(cls, suite: Suite, dataset: str, rows: int, sizes: dict[int, int]) -> Drawn:
        """As a run would write lines; for each number of lines a label so many prompts."""
        settings, task = prepared(suite, Cell(dataset, "one", "ensemble", 400_000, SPLITS[0]))
        parties = await open_parties(settings, task, lambda: False)
        parties.start()
        texts = await texts_of(suite, dataset, parties, rows)
        assessor = Assessor(parties, settings, lambda event: None)
        await choose_words(parties, assessor)
        for text in settings.prompts:
            await assessor.assess(await parties.backend.tokenize(text), "start")
        shown = await shown_examples(assessor)
        lines = await written_lines(assessor, shown)
        prompts = [(0, text) for text in settings.prompts]
        rng = np.random.default_rng(5)
        for size, number in sizes.items():
            for draw in range(number):
                lead = settings.prompts[draw % len(settings.prompts)]
                prompts.append((size, lead + await _examples(parties.backend, shown, lines, size, rng)))
        return cls(parties, *texts, prompts, len(settings.prompts))


def on(suite: Path, url: str) -> Suite:
    """A suite's tasks on a vLLM."""
    backend = {"backend.kind": "vllm", "backend.base_url": url}
    return load_suite(suite).model_copy(update={"set": backend})


async def _score(suite: Suite, dataset: str, out: Path, rows: int, sizes: dict[int, int]) -> None:
    drawn = await Drawn.of(suite, dataset, rows, sizes)
    parties, parts = drawn.parties, drawn.parts
    print(f"splits and texts: {dict(zip(*np.unique(parts, return_counts=True), strict=True))}")
    scorer = Scorer(parties.backend, Budget(), shelf=parties.local[0].scorer.shelf)
    scorer.use_words(parties.words)
    found: list[Floats] = []
    for size, text in drawn.prompts:
        found.append(await scorer.score(await parties.backend.tokenize(text), drawn.data))
        print(f"{len(found)} of {len(drawn.prompts)} prompts ({size} lines a label)", flush=True)
        done = len(found)
        np.savez(
            out, logprobs=np.array(found, dtype=np.float32),
            labels=drawn.labels, parts=parts, trained=drawn.trained,
            sizes=np.array([n for n, _ in drawn.prompts[:done]]), words=np.array(parties.words),
            groups=json.dumps([list(group) for group in parties.groups]),
        )  # fmt: skip
    await parties.aclose()


async def _examples(
    backend: Backend,
    shown: Sequence[Shown],
    lines: Sequence[Sequence[Line]],
    size: int,
    rng: np.random.Generator,
) -> str:
    """`size` examples a label, in a random order."""
    text = ""
    for _ in range(size):
        for label in rng.permutation(len(shown)):
            example, line = shown[label], lines[label][int(rng.integers(len(lines[label])))]
            text += (
                await backend.detokenize(example.before + line.ids + example.after + example.word) + "\n\n"
            )
    return text


def development(suite: Suite, dataset: str, labels: Sequence[str], rows: int) -> Sequence[Example]:
    """Balanced rows of the development file beside a task's test file; 0: all of them, as they are."""
    path = suite.path(suite.tasks[dataset].test).with_name("dev.jsonl")
    examples = read_examples(path)
    return balanced(examples, labels, rows, path) if rows else examples


async def texts_of(suite: Suite, dataset: str, parties: Any, rows: int) -> tuple[Any, Any, Any, Any]:
    """All texts, their labels, of which split they are (0: the development file), whether for training."""
    files = suite.tasks[dataset]
    parts: list[tuple[int, str, Sequence[Example]]] = []
    few = suite.path(str(files.fewshot))
    for split, folder in ((split, few / str(split)) for split in SPLITS if (few / str(split)).exists()):
        parts += [(split, part, list(read_examples(folder / f"{part}.jsonl"))) for part in ("train", "dev")]
    parts.append((0, "dev", development(suite, dataset, parties.task.label_words.labels, rows)))
    encoder = Encoder(parties.backend, parties.task.template, parties.task.label_words)
    encoded = [await encoder.labelled(some, "dev") for _, _, some in parts]
    return (
        [text for part in encoded for text in part.texts],
        np.concatenate([part.labels for part in encoded]),
        np.array([split for split, _, some in parts for _ in some]),
        np.array([part == "train" for _, part, some in parts for _ in some]),
    )


@dataclass(frozen=True)
class Pool:
    """Scores [P, N, T] of P prompts, labels [N], splits [N], training texts or not [N], lines a label [P]."""

    logprobs: Floats
    labels: npt.NDArray[np.intp]
    parts: npt.NDArray[np.int_]
    trained: npt.NDArray[np.bool_]
    sizes: npt.NDArray[np.int_]
    words: list[int]
    groups: list[list[int]]
    read: dict[tuple[int, bytes], Floats] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Pool:
        """What `score` wrote."""
        data = np.load(path)
        logprobs = data["logprobs"].astype(np.float64)
        return cls(
            logprobs - np.logaddexp.reduce(logprobs, axis=2, keepdims=True),
            data["labels"].astype(np.intp), data["parts"], data["trained"], data["sizes"],
            data["words"].tolist(), json.loads(str(data["groups"])),
        )  # fmt: skip

    @property
    def splits(self) -> list[int]:
        return [split for split in SPLITS if (self.parts == split).any()]

    def logits(self, member: int, split: int) -> Floats:
        """Logits [N, C] of all texts, fitted as a run does while it judges: on a split's training texts."""
        return self.fitted(member, np.flatnonzero((self.parts == split) & self.trained))

    def reading(self, members: Sequence[int], split: int, kind: Kind) -> tuple[float, float]:
        """Cross-validated loss on a split's texts, and accuracy on the development rows."""
        rows, own, held = self.logprobs[list(members)].mean(axis=0), self.parts == split, self.parts == 0
        verbalizer, report = fit(rows[own], self.labels[own], self.words, self.groups, kind=kind)
        right = verbalizer.logits(rows[held]).argmax(axis=1) == self.labels[held]
        return report.loss, float(right.mean())

    def accuracy(self, members: Sequence[int] | Places, own: Places, others: Places) -> float:
        """On other texts, of prompts together that are each fitted on `own`, texts by their places."""
        logits = np.mean([self.fitted(member, own)[others] for member in members], axis=0)
        return float((logits.argmax(axis=1) == self.labels[others]).mean())

    def fitted(self, member: int, own: Places) -> Floats:
        """Logits [N, C] of all texts, fitted on those at `own`."""
        key = (int(member), own.tobytes())
        if key not in self.read:
            rows = self.logprobs[member]
            verbalizer, _ = fit(rows[own], self.labels[own], self.words, self.groups)
            self.read[key] = verbalizer.logits(rows)
        return self.read[key]


@app.command()
def study(pool: Annotated[Path, typer.Argument(help="What `score` wrote.")]) -> None:
    found = Pool.load(pool)
    splits = found.splits
    singles = {
        (p, split): found.reading([p], split, "bias") for p in range(len(found.sizes)) for split in splits
    }
    print("accuracy of single prompts, read with a bias, by lines a label (mean, sd over prompts):")
    for size in sorted(set(found.sizes.tolist())):
        means = [
            np.mean([singles[p, s][1] for s in splits]) for p in np.flatnonzero(found.sizes == size).tolist()
        ]
        print(f"  {size}: {np.mean(means):.3f} {np.std(means):.3f} ({len(means)} prompts)")
    ones = np.flatnonzero(found.sizes <= 1).tolist()
    print("one prompt chosen on a split's texts, by criterion (accuracy; correlation with accuracy):")
    for name, criterion in CRITERIA.items():
        picks, related = [], []
        for split in splits:
            values = np.array(criterion(found, ones, split))
            picks.append(singles[ones[int(values.argmax())], split][1])
            related.append(np.corrcoef(values, [singles[p, split][1] for p in ones])[0, 1])
        print(f"  {name}: {np.mean(picks):.3f} ({np.mean(related):+.2f})")
    print("sets of prompts, read with a bias / weighted, by how they are chosen:")
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 5, 8):
        cells = []
        for rule in RULES:
            sets = {split: RULES[rule](found, ones, split, size, rng) for split in splits}
            by_kind = [
                np.mean([found.reading(m, s, kind)[1] for s in splits for m in sets[s]]) for kind in KINDS
            ]
            cells.append(f"{rule} {by_kind[0]:.3f} / {by_kind[1]:.3f}")
        print(f"  {size}: {' | '.join(cells)}")


def _drawn(pool: Pool, ones: list[int], split: int, size: int, rng: np.random.Generator) -> list[list[int]]:
    return [rng.choice(ones, size, replace=False).tolist() for _ in range(8)]


def _greedy(pool: Pool, ones: list[int], split: int, size: int, rng: np.random.Generator) -> list[list[int]]:
    """Forward selection by the held-out loss of all together."""
    members: list[int] = []
    while len(members) < size:
        rest = [p for p in ones if p not in members]
        losses = [pool.reading([*members, p], split, "bias")[0] for p in rest]
        members.append(rest[int(np.argmin(losses))])
    return [members]


def nearest(
    rows: Floats, labels: npt.NDArray[np.intp], size: int, trust: float, power: float = 0.0
) -> list[int]:
    """Places of prompts, chosen one after the other by how near they come together to a target.

    With R_p(x) what is read for x, the target is a committee of all prompts and the labels,
    t(x) = (1 - trust) softmax( sum_p v_p R_p(x) ) + trust e_y(x), and the distance of a set S is the
    cross-entropy of t and softmax( mean over S of R_p ): distillation (Hinton et al. 2015) of a committee. A
    prompt counts in it by a power of what it tells of the labels, v_p ~ max(0, log C - its loss)^power.

    Args:
        rows: R, shape [P, n, C].
        labels: The texts' labels.
        size: Prompts to choose.
        trust: Weight of the labels in the target; with 1 it is what a run does.
        power: 0: all count alike.
    """
    rows, everyone, n = rows - log_sum(rows), range(len(rows)), np.arange(len(labels))
    told = np.maximum(1e-9, np.log(rows.shape[2]) + rows[:, n, labels].mean(axis=1)) ** power
    committee = np.tensordot(told / told.sum(), rows, 1)
    target = (1 - trust) * np.exp(committee - log_sum(committee))
    target[n, labels] += trust
    places: list[int] = []
    while len(places) < size:
        rest = [p for p in everyone if p not in places]
        together = np.array([rows[[*places, p]].mean(axis=0) for p in rest])
        distances = -(target * (together - log_sum(together))).sum(axis=(1, 2))
        places.append(rest[int(np.argmin(distances))])
    return places


def _nearest(
    trust: float, held_out: bool = True, power: float = 0.0
) -> Callable[[Pool, list[int], int, int, np.random.Generator], list[list[int]]]:
    """By the distance from committee and labels, on texts that no reading was fitted on."""

    def choose(
        pool: Pool, ones: list[int], split: int, size: int, rng: np.random.Generator
    ) -> list[list[int]]:
        own = (pool.parts == split) & ~(pool.trained & held_out)
        rows = np.array([pool.logits(p, split)[own] for p in ones])
        return [[ones[p] for p in nearest(rows, pool.labels[own], size, trust, power)]]

    return choose


def _best(pool: Pool, ones: list[int], split: int, size: int, rng: np.random.Generator) -> list[list[int]]:
    """Those with the smallest held-out losses, each for itself."""
    return [sorted(ones, key=lambda p: pool.reading([p], split, "bias")[0])[:size]]


def _promising(
    pool: Pool, ones: list[int], split: int, size: int, rng: np.random.Generator
) -> list[list[int]]:
    """By committee and labels, of those whose training loss is within a standard error of the best."""
    own = (pool.parts == split) & pool.trained
    losses = {
        p: fit(pool.logprobs[p][own], pool.labels[own], pool.words, pool.groups, kind="bias")[1].loss
        for p in ones
    }
    limit = min(losses.values()) + SPREAD / np.sqrt(own.sum())
    kept = [p for p in ones if losses[p] <= limit]
    return _nearest(TRUST)(pool, kept, split, min(size, len(kept)), rng)


RULES: dict[str, Callable[[Pool, list[int], int, int, np.random.Generator], list[list[int]]]] = {
    "at random": _drawn,
    "held-out loss": _greedy,
    "committee": _nearest(0.0),
    "committee and labels": _nearest(TRUST),
    "the same, labels weighing half as much": _nearest(TRUST / 2),
    "the same, prompts counting by what they tell": _nearest(TRUST, power=2.0),
    "the same on training texts too": _nearest(TRUST, held_out=False),
    "labels": _nearest(1.0),
    "best losses": _best,
    "committee and labels of the promising": _promising,
}


def _centred(pool: Pool, members: Sequence[int], split: int) -> Floats:
    """Label log-probabilities of a split's texts, each prompt's mean taken out, shape [P, n, C]."""
    rows = pool.logprobs[np.array(members)][:, pool.parts == split]
    labels = np.stack([np.logaddexp.reduce(rows[:, :, g], axis=2) for g in pool.groups], axis=2)
    labels = labels - labels.mean(axis=1, keepdims=True)
    return np.asarray(labels - np.logaddexp.reduce(labels, axis=2, keepdims=True))


def _held_out(pool: Pool, members: Sequence[int], split: int) -> list[float]:
    return [-pool.reading([p], split, "bias")[0] for p in members]


def _information(pool: Pool, members: Sequence[int], split: int) -> list[float]:
    """Mutual information of text and answer, without labels (Sorensen et al. 2022, arXiv 2203.11364)."""
    shares = np.exp(_centred(pool, members, split))

    def entropy(p: Floats) -> Floats:
        return np.asarray(-(p * np.log(p + 1e-12)).sum(axis=-1))

    return list(entropy(shares.mean(axis=1)) - entropy(shares).mean(axis=1))


def _ranking(pool: Pool, members: Sequence[int], split: int) -> list[float]:
    """Area under the curve of each label against the others, averaged."""
    rows, labels = _centred(pool, members, split), pool.labels[pool.parts == split]
    return [
        float(
            np.mean(
                [
                    (one[labels == c, c][:, None] > one[labels != c, c][None]).mean()
                    for c in range(len(pool.groups))
                ]
            )
        )
        for one in rows
    ]


CRITERIA: dict[str, Callable[[Pool, Sequence[int], int], list[float]]] = {
    "held-out loss": _held_out,
    "mutual information": _information,
    "area under the curve": _ranking,
}


if __name__ == "__main__":
    app()
