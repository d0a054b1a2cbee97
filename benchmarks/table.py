"""All prompts of a small space scored on many texts: a search on it costs nothing, and its truth is known.

    FEDBPT_DATA=... python benchmarks/table.py table.npz --url http://127.0.0.1:8001

The prompts are SST-2's first prompt with no, one or two words after it: two positions, each empty or holding
one of some words of the codebook, with the coordinates that they have there. Texts are balanced rows of the
development file (never the test file), the first of them a second time with half of their tokens replaced,
which is what equation 7 of FedBPT (arXiv 2310.01467) asks. Beside them stand how probable the model finds the
words where they are, and short instructions in the words' place. benchmarks/searches.py plays searches on it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from pool import HERE, development, on

from fedbpt_api.bench.grid import Cell, prepared
from fedbpt_api.prompts.codebook import EMPTY, from_table
from fedbpt_api.run.opening import open_parties
from fedbpt_api.scoring.backend import Floats, Prompt
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.scorer import Scorer

TEXTS, GARBLED = 96, 64  # texts, and how many of them are asked garbled too
RATE = 0.5  # tokens of a garbled text that are replaced
COORDINATES = 16  # that are kept of each word
POSITIONS = 2
PHRASES = """
Answer with one word.|Think of the writer's mood.|Sarcasm is negative.|Is it worth seeing?|Be careful.
Read every word.|Would the writer see it again?|Look at the last words.|Mind words such as "but" and "not".
The writer is a film critic.|Does the writer recommend it?|Say what the writer feels.|Praise is positive.
Complaints are negative.|Judge the tone.|Take your time.|Is this good or bad?|Think step by step.
Weigh praise against blame.|A short review of a film follows.|The sentiment is clear.|Be honest.
Ignore the plot.|What is the overall opinion?|Positive or negative?|Choose one label.|Do not be neutral.
Did the writer like it?|You are an expert in sentiment.|This is a classification task.|Mixed means negative.
Faint praise is negative.
"""


def main(
    out: Annotated[Path, typer.Argument(help="Where the scores go.")],
    url: Annotated[str, typer.Option(help="A vLLM.")] = "http://127.0.0.1:8001",
    words: Annotated[int, typer.Option(help="Words that a position may hold.")] = 20,
) -> None:
    asyncio.run(_score(out, url, words))


async def _score(out: Path, url: str, size: int) -> None:
    suite = on(HERE / "main.toml", url)
    settings, task = prepared(suite, Cell("sst2", "one", "ensemble", 400_000, 13))
    parties = await open_parties(settings, task, lambda: False)
    parties.start()
    backend, rng = parties.backend, np.random.default_rng(7)
    embedded = await backend.token_table()
    assert embedded is not None
    codebook = from_table(embedded, COORDINATES, url)
    apart = embedded.embeddings[list(codebook.tokens)].astype(np.float64)
    variances = np.linalg.eigvalsh(np.cov(apart.T))[::-1][:COORDINATES]
    rows = rng.permutation(np.flatnonzero(np.linalg.norm(codebook.coordinates[:, :4], axis=1) >= EMPTY))[
        :size
    ]
    texts = await Encoder(backend, task.template, task.label_words).labelled(
        development(suite, "sst2", task.label_words.labels, TEXTS), "dev"
    )
    texts = texts.taken(rng.permutation(TEXTS).tolist())
    garbled = [text.perturbed(RATE, codebook.tokens, rng) for text in texts.texts[:GARBLED]]
    ids = await backend.tokenize(settings.prompts[0].rstrip())
    tail = await backend.tokenize("\n")
    held = [(), *((codebook.tokens[row],) for row in rows)]
    scorer = Scorer(backend, Budget(), shelf=parties.local[0].scorer.shelf)
    scorer.use_words(parties.label_tokens)
    found: list[Floats] = []
    for first in held:
        prompts = [ids + first + second + tail for second in held]
        found += await asyncio.gather(*(scorer.score(each, (*texts.texts, *garbled)) for each in prompts))
        print(f"{len(found)} of {len(held) ** 2} prompts", flush=True)
    phrases = [each for line in PHRASES.split("\n") for each in line.split("|") if each]
    told = [ids + tuple(await backend.tokenize(" " + phrase)) + tail for phrase in phrases]
    by_phrase = [await scorer.score(prompt, texts.texts) for prompt in told]
    scores = await backend.score([Prompt(ids + first, 0) for first in held], [each[0] for each in held[1:]])
    await parties.aclose()
    np.savez(
        out, logprobs=np.array(found, dtype=np.float32), labels=texts.labels,
        coordinates=codebook.coordinates[rows], scales=np.sqrt(variances),
        words=[codebook.texts[row] for row in rows], phrases=phrases, by_phrase=np.array(by_phrase),
        readable=scores.logprobs + np.log(scores.mass)[:, None],
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Table:
    """Label log-probabilities of all prompts.

    Attributes:
        logprobs: Of prompts by the words of the two positions (0: none) on texts, shape [W + 1, W + 1, N, 2].
        garbled: The same of the first texts garbled, shape [W + 1, W + 1, G, 2].
        labels: Of the texts, shape [N].
        coordinates: Of the words: whitened principal coordinates of all words' embeddings, shape [W, 16].
        scales: What whitening divided these by, shape [16].
        words: They.
        readable: Log-probability of a word after the prompt and another word (0: none), shape [W + 1, W].
        phrases: Label log-probabilities of prompts that end in a short instruction, shape [P, N, 2].
    """

    logprobs: Floats
    garbled: Floats
    labels: npt.NDArray[np.intp]
    coordinates: Floats
    scales: Floats
    words: list[str]
    readable: Floats
    phrases: Floats

    @classmethod
    def load(cls, path: Path) -> Table:
        """What the command wrote."""
        data = np.load(path)
        n, side = len(data["labels"]), len(data["coordinates"]) + 1
        rows = data["logprobs"].astype(np.float64).reshape(side, side, -1, 2)
        return cls(
            rows[:, :, :n], rows[:, :, n:], data["labels"], data["coordinates"], data["scales"],
            data["words"].tolist(), data["readable"], data["by_phrase"],
        )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
