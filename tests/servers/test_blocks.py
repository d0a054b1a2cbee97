"""Whole cache blocks on a real vLLM, by its own counters."""

from __future__ import annotations

import re
from collections.abc import Sequence

import httpx
import numpy as np
import pytest

from fedbpt_api.prompts.codebook import codebook_for, words_after
from fedbpt_api.prompts.padding import evaluated, pad
from fedbpt_api.scoring.backend import Backend
from fedbpt_api.scoring.encode import EncodedText, Encoder, Ids
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.trie import label_trie
from fedbpt_api.task import LabelWords, Template
from toy import make_examples

pytestmark = pytest.mark.servers

WORDS = LabelWords(("negative", "positive"), ((" negative",), (" positive",)))
TEMPLATE = Template.parse("Tweet: {text}\nSentiment:")
START = (
    "Read the following tweet slowly, think of who may have written it and of what has happened to them, "
    "and then decide whether the mood of the tweet is a good one or a bad one.\n"
)
TEXTS, CANDIDATES = 16, 4


def counters(url: str) -> tuple[float, float]:
    """Tokens that the cache was asked for so far, and those of them that it had."""
    text = httpx.get(f"{url}/metrics").text
    kinds = ("queries", "hits")
    asked, had = (
        sum(float(n) for n in re.findall(rf"^vllm:prefix_cache_{kind}_total\{{.*\}} (\S+)", text, re.M))
        for kind in kinds
    )
    return asked, had


async def spent(
    url: str, backend: Backend, prompts: Sequence[Ids], texts: Sequence[EncodedText], words: Ids
) -> tuple[float, float]:
    """Tokens that the server evaluated and re-used for these prompts, each scored on all texts."""
    asked, had = counters(url)
    for prompt in prompts:
        await backend.score([text.with_prompt(prompt) for text in texts], words)
    asked_now, had_now = counters(url)
    return asked_now - asked - (had_now - had), had_now - had


async def test_padded_prompts_are_re_used_whole_and_leave_fewer_tokens_to_evaluate(vllm_url: str) -> None:
    backend = await open_backend("vllm", base_url=vllm_url)
    block = backend.info.block
    assert block == 32  # what the server was started with
    texts = await Encoder(backend, TEMPLATE, WORDS).texts(make_examples(TEXTS, seed=3))
    words = (await label_trie(backend, WORDS)).tokens
    space = await words_after(backend, await codebook_for(backend, 4), START, 4)
    wide = await pad(backend, space, texts[0].lead, block)
    assert wide is not None
    rng = np.random.default_rng()  # never asked before
    drawn = rng.normal(size=(2, CANDIDATES, space.dimension))
    plain, padded = [space.decode(z) for z in drawn[0]], [wide.decode(z) for z in drawn[1]]
    for prompt in padded:
        assert await backend.tokenize(await backend.detokenize(prompt)) == prompt
    shared = [texts[0].lead + len(prompt) for prompt in plain]
    assert min(n % block for n in shared) > 8  # otherwise it would show nothing

    before, _ = await spent(vllm_url, backend, plain, texts, words)
    after, hits = await spent(vllm_url, backend, padded, texts, words)
    await backend.aclose()
    could = sum((texts[0].lead + len(prompt)) * (TEXTS - 1) for prompt in padded)
    assert hits >= 0.9 * could
    foreseen = sum(evaluated(n, block, TEXTS) for n in shared) / CANDIDATES
    foreseen -= sum(evaluated(texts[0].lead + len(p), block, TEXTS) for p in padded) / CANDIDATES
    saved = (before - after) / (TEXTS * CANDIDATES)
    assert saved > 0.7 * foreseen > 5.0
