"""How repeatable a server is: the same questions cold and warm, alone and in lists, in another order.

    python benchmarks/repeatable.py llamacpp
    python benchmarks/repeatable.py llamacpp --url http://127.0.0.1:8080 [--exact]
    python benchmarks/repeatable.py vllm --url http://127.0.0.1:8001

For each condition the largest and the median difference of a log-probability from the first answers, in nats,
over words likely and unlikely; and what a pass took against the first, warm one. Where all are 0, a score
depends on its question alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import typer

from fedbpt_api.scoring.backend import Backend, Floats, Prompt
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.registry import open_backend
from throughput import TEMPLATE, WORDS, texts

PROMPTS = ("", "Decide whether the mood of the following review is good or bad.\n", "Read this:\n")
UNLIKELY = (" banana", " the", " seven")


async def answers(backend: Backend, prompts: Sequence[Prompt], words: Sequence[int], size: int) -> Floats:
    """Log-probabilities of all prompts, asked in lists of `size`, several at a time where that is allowed."""
    parts = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    gate = asyncio.Semaphore(max(backend.info.parallel, 1))

    async def one(part: Sequence[Prompt]) -> Floats:
        async with gate:
            return (await backend.score(part, words)).logprobs

    return np.concatenate(await asyncio.gather(*(one(part) for part in parts)))


def main(
    kind: Annotated[str, typer.Argument(help="llamacpp or vllm.")],
    url: Annotated[str | None, typer.Option(help="The server; llama.cpp embedded without one.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="llama.cpp's server with backend.exact.")] = False,
    n: Annotated[int, typer.Option(help="Texts.")] = 24,
) -> None:
    options: dict[str, object] = {}
    options |= {"base_url": url} if url else {}
    options |= {"exact": True} if exact else {}
    asyncio.run(_main(kind, options, n))


async def _main(kind: str, options: dict[str, object], n: int) -> None:
    backend = await open_backend(kind, log_folder=None, known=None, **options)
    encoded = await Encoder(backend, TEMPLATE, WORDS).texts(texts(n))
    words = [(await backend.tokenize(w))[0] for w in (*(g[0] for g in WORDS.words), *UNLIKELY)]
    prompts = [text.with_prompt(await backend.tokenize(p)) for p in PROMPTS for text in encoded]
    order = np.random.default_rng(0).permutation(len(prompts))
    shuffled = [prompts[i] for i in order]
    began = time.perf_counter()
    first = await answers(backend, prompts, words, backend.info.batch)
    usual = time.perf_counter() - began
    way = backend.info.details.get("way")
    print(f"{backend.info.model}, {way}: {len(prompts)} inputs, first pass {usual:.1f} s")
    for name, asked, size in (
        ("again, warm", prompts, backend.info.batch),
        ("alone", prompts, 1),
        ("in lists of 7", prompts, 7),
        ("in another order", shuffled, backend.info.batch),
    ):
        began = time.perf_counter()
        found = await answers(backend, asked, words, size)
        seconds = time.perf_counter() - began
        if asked is shuffled:
            found = found[np.argsort(order)]
        apart = np.abs(found - first)
        print(
            f"  {name:<18} largest {apart.max():.2e}, median {np.median(apart):.2e} nats; "
            f"time {seconds / usual:.2f} of the first"
        )
    await backend.aclose()


if __name__ == "__main__":
    typer.run(main)
