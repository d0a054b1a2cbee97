"""What finished runs would have taken by other rules of choice, tried on rows of the development file.

    FEDBPT_DATA=... python benchmarks/choices.py sst2 DIR/runs/sst2/one/ensemble/8000

Every prompt that a run of the bench judged is scored again on that run's own texts; each rule takes its
three; those are scored on balanced rows of the development file (never the test file), read by a verbalizer
that is fitted on all of the run's texts, as a run's result is. Accuracies, a row a rule, a column a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import orjson
import typer
from pool import HERE, development, nearest

from fedbpt_api.bench.grid import Cell, prepared
from fedbpt_api.bench.suite import Suite, load_suite
from fedbpt_api.prompts.space import Ids
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.ensemble import ORIGIN
from fedbpt_api.run.opening import open_parties
from fedbpt_api.run.words import choose_words
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import EncodedText, Encoder
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.verbalizer import fit
from fedbpt_api.verbalizer.verbalizer import normalised

MEMBERS: Final = 3
RULES: Final[Mapping[str, tuple[float, float]]] = {
    "labels": (1.0, 0.0),
    "labels and committee": (0.5, 0.0),
    "labels and committee, prompts counting by what they tell": (0.5, 2.0),
}
"""Trust in the labels, and the power of what prompts tell by which they count in the committee."""


def main(
    task: Annotated[str, typer.Argument(help="A task of the suite.")],
    folder: Annotated[Path, typer.Argument(help="Runs of one party, a folder a seed.")],
    split: Annotated[str, typer.Option(help="What they are split over: one or pooled.")] = "one",
    file: Annotated[Path, typer.Option("--suite", help="The suite that they are of.")] = HERE / "main.toml",
    rows: Annotated[int, typer.Option(help="Rows of the development file; 0: all, as they are.")] = 600,
) -> None:
    suite = load_suite(file)
    seeds = sorted(int(path.name) for path in folder.iterdir() if (path / "result.json").exists())
    found = [asyncio.run(_tried(suite, task, split, folder / str(seed), rows)) for seed in seeds]
    print(f"{task}, {split}, seeds {seeds}:")
    for rule in RULES:
        values = [accuracies[rule] for accuracies in found]
        print(f"  {rule}: {' '.join(f'{v:.3f}' for v in values)}, mean {np.mean(values):.3f}")


async def _tried(suite: Suite, task: str, split: str, run: Path, rows: int) -> dict[str, float]:
    settings, texts = prepared(suite, Cell(task, split, "ensemble", 1_000_000, int(run.name)))
    parties = await open_parties(settings, texts, lambda: False)
    async with aclosing(parties):
        parties.start()
        await choose_words(parties, Assessor(parties, settings, lambda event: None))
        encoder = Encoder(parties.backend, texts.template, texts.label_words)
        (own,) = texts.clients
        train, dev = [await encoder.labelled(part, "dev") for part in (own.train, own.dev)]
        held_out = await encoder.labelled(development(suite, task, texts.label_words.labels, rows), "dev")
        scorer = Scorer(parties.backend, Budget(), shelf=parties.local[0].scorer.shelf)
        scorer.use_words(parties.words)
        prompts = [await parties.backend.tokenize(text) for text in _judged(run)]
        scores = [await _scored(scorer, prompt, [*train.texts, *dev.texts]) for prompt in prompts]
        n, words, groups = len(train.texts), parties.words, parties.groups
        read = [fit(x[:n], train.labels, words, groups)[0].logits(x[n:]) for x in scores]
        accuracies = {}
        for rule, (trust, power) in RULES.items():
            taken = nearest(np.array(read), dev.labels, MEMBERS, trust, power)
            fitted = np.mean([scores[p] for p in taken], axis=0)
            labels = np.concatenate([train.labels, dev.labels])
            verbalizer, _ = fit(fitted, labels, words, groups, kind="weighted")
            new = [await _scored(scorer, prompts[p], held_out.texts) for p in taken]
            right = verbalizer.logits(np.mean(new, axis=0)).argmax(axis=1) == held_out.labels
            accuracies[rule] = float(right.mean())
    return accuracies


def _judged(run: Path) -> list[str]:
    """The single prompts that a run judged on all of its texts, each once."""
    lines = map(orjson.loads, (run / "prompts.jsonl").read_bytes().splitlines())
    judged = [x["prompt"] for x in lines if x["dev_loss"] is not None and x["origin"] != ORIGIN]
    return list(dict.fromkeys(judged))


async def _scored(scorer: Scorer, prompt: Ids, texts: Sequence[EncodedText]) -> Floats:
    found = await scorer.score(prompt, texts)
    return normalised(found, found.shape[1])


if __name__ == "__main__":
    typer.run(main)
