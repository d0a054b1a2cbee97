"""What a journal costs while a run goes on, and how soon a run with many answers is where it was.

    python benchmarks/journal.py --scored 1000000

Answers come at once from this process, so that what is measured is the scorer's own processor time: without a
journal, with one, and for a run that goes on and finds everything in it. Prompts and texts are as in
`throughput.py`: 32 texts a prompt.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fedbpt_api.scoring.backend import BackendInfo, Floats, Prompt, Scores, TokenTable, Usage
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import EncodedText
from fedbpt_api.scoring.journal import Journal
from fedbpt_api.scoring.scorer import Scorer

TEXTS, CANDIDATES = 32, 8


class Instant:
    """Says the same to everything."""

    info = BackendInfo("instant", "instant", "1", 4096, batch=128, parallel=32)
    notice = ""

    def __init__(self) -> None:
        self.answered = 0

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return ()

    async def detokenize(self, ids: Sequence[int]) -> str:
        return ""

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        n = len(prompts)
        self.answered += n
        rows: Floats = np.full((n, len(words)), -np.log(len(words)))
        exact = np.ones(rows.shape, dtype=np.bool_)
        return Scores(rows, exact, np.ones(n), Usage(n, sum(map(len, prompts)), 0, 1))

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        return [{} for _ in prompts], Usage()

    async def token_table(self) -> TokenTable | None:
        return None

    async def aclose(self) -> None:
        pass


async def scored(journal: Journal | None, count: int, words: int) -> tuple[float, float, int]:
    """Processor and wall-clock seconds of so many scored examples, and how many were asked for."""
    rng = np.random.default_rng(0)
    texts = [EncodedText((), tuple(int(i) for i in rng.integers(0, 40_000, 40))) for _ in range(TEXTS)]
    backend = Instant()
    scorer = Scorer(backend, Budget(), journal=journal)
    scorer.use_words(tuple(range(words)))
    began, wall = time.process_time(), time.perf_counter()
    for _ in range(count // (TEXTS * CANDIDATES)):
        prompts = [tuple(int(i) for i in rng.integers(0, 1000, 24)) for _ in range(CANDIDATES)]
        await asyncio.gather(*(scorer.score(prompt, texts) for prompt in prompts))
    return time.process_time() - began, time.perf_counter() - wall, backend.answered


def main(
    count: Annotated[int, typer.Option("--scored", help="Scored examples.")] = 1_000_000,
    words: Annotated[int, typer.Option(help="Named words.")] = 2,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.journal"
        plain, _, n = asyncio.run(scored(None, count, words))
        print(f"{words} named words; without a journal: {1e6 * plain / n:.1f} microseconds an example")
        journal = Journal(path, b"secret")
        kept, _, n = asyncio.run(scored(journal, count, words))
        journal.close()
        size = path.stat().st_size / n
        print(
            f"with a journal: {1e6 * kept / n:.1f}; it costs {1e6 * (kept - plain) / n:.1f}, {size:.1f} bytes"
        )
        began = time.perf_counter()
        journal = Journal(path, b"secret")
        opened = time.perf_counter() - began
        _, wall, asked = asyncio.run(scored(journal, count, words))
        journal.close()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{n:,} answers: the journal is open after {opened:.1f} s, the run where it was after "
            f"{opened + wall:.1f} s, {asked} asked again; {memory:.0f} MiB at most"
        )


if __name__ == "__main__":
    typer.run(main)
