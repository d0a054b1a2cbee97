"""vLLM itself: numbers as transformers computes them, vectors as ids, and the suite for all backends."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.scoring.backend import Backend, Floats, Prompt, Soft
from fedbpt_api.scoring.conformance import BackendConformance
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.trie import label_trie
from fedbpt_api.task import LabelWords, Template
from servers import vllm_cpu
from toy import make_examples

pytestmark = pytest.mark.servers

WORDS = LabelWords(("negative", "neutral", "positive"), ((" negative",), (" neutral",), (" positive",)))
TEMPLATE = Template.parse("Tweet: {text}\nSentiment:")
PROMPTS = ("", "Decide whether the mood of the following tweet is negative, neutral or positive.\n")


class TestConformance(BackendConformance):
    """The suite that every backend must pass."""

    NOISE = BATCH_NOISE = 2 * vllm_cpu.STEP

    @pytest.fixture(autouse=True)
    def _server(self, vllm_url: str) -> None:
        self.url = vllm_url

    async def open(self) -> Backend:
        return await open_backend("vllm", base_url=self.url)


@pytest.fixture
async def vllm(vllm_url: str) -> AsyncIterator[Backend]:
    backend = await open_backend("vllm", base_url=vllm_url)
    yield backend
    await backend.aclose()


async def inputs(backend: Backend) -> tuple[list[Prompt], tuple[int, ...]]:
    """Twenty texts under two prompts, and words likely and not."""
    encoder = Encoder(backend, TEMPLATE, WORDS)
    texts = await encoder.texts(make_examples(20, seed=4))
    prompts = [text.with_prompt(await backend.tokenize(p)) for p in PROMPTS for text in texts]
    words = (await label_trie(backend, WORDS)).tokens
    return prompts, (*words, *await backend.tokenize(" banana"), *await backend.tokenize(" the"))


def by_transformers(prompts: list[Prompt], words: tuple[int, ...], folder: Path) -> Floats:
    """Log-probabilities over the whole vocabulary, shape [n, T], in float32."""
    asked = {"folder": str(folder), "prompts": [list(p.ids) for p in prompts], "words": list(words)}
    script = Path(__file__).with_name("reference_scores.py")
    done = subprocess.run(
        [vllm_cpu.python(), script], input=json.dumps(asked), capture_output=True, text=True, check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    return np.array(json.loads(done.stdout))


async def test_log_probabilities_are_those_of_transformers_within_bfloat16_s_error(
    vllm: Backend, vllm_weights: Path
) -> None:
    """bfloat16 has 8 bits: logits of about 20 are exact to about 0.06."""
    prompts, words = await inputs(vllm)
    ours = await vllm.score(prompts, words)
    theirs = by_transformers(prompts, words, vllm_weights)
    apart = np.abs(ours.logprobs + np.log(ours.mass)[:, None] - theirs)
    assert np.median(apart) < 0.03
    assert apart.max() < 0.25
    assert ours.exact.all()
    assert vllm.info.details["way"] == "logprob_token_ids"


async def test_a_text_s_embeddings_score_as_its_token_ids(vllm: Backend) -> None:
    prompts, words = await inputs(vllm)
    table = await vllm.token_table()
    assert table is not None and vllm.info.soft
    cut = 9  # the prompt's first tokens, as vectors
    hard = [p for p in prompts if p.shared > cut]
    soft = [
        Prompt((*p.ids[:2], *p.ids[cut:]), p.shared, Soft(table.embeddings[list(p.ids[2:cut])]), 2)
        for p in hard
    ]
    by_ids, by_vectors = await vllm.score(hard, words), await vllm.score(soft, words)
    apart = np.abs(by_vectors.logprobs - by_ids.logprobs)
    assert apart.mean() < vllm_cpu.STEP  # a single vector in another's place moves them by 2.5 to 3 steps,
    assert apart.max() < 4 * vllm_cpu.STEP  # and some by 8 or more
    assert by_vectors.usage.prompt_tokens == by_ids.usage.prompt_tokens


async def test_lists_and_named_words_asked_at_the_same_time_agree(vllm: Backend) -> None:
    """vLLM's older runner spoils lists that share a batch with named words; they are kept apart."""
    import asyncio

    prompts, _ = await inputs(vllm)
    alone, _ = await vllm.top_words(prompts, 20)
    words = tuple(alone[0])
    mixed = await asyncio.gather(
        *(vllm.top_words(prompts[i : i + 4], 20) for i in range(0, 40, 4)),
        *(vllm.score(prompts[i : i + 4], words) for i in range(0, 40, 4)),
    )
    lists = [found for part in mixed[:10] if isinstance(part, tuple) for found in part[0]]
    for before, now in zip(alone, lists, strict=True):
        common = set(before) & set(now)
        assert len(common) >= 17
        assert max(abs(before[w] - now[w]) for w in common) < 2 * vllm_cpu.STEP


async def test_lists_beside_another_program_that_names_words_agree(vllm_url: str, vllm: Backend) -> None:
    """Nobody can keep two programs' requests apart: what the server spoils is asked for again."""
    import asyncio

    prompts, _ = await inputs(vllm)
    alone, _ = await vllm.top_words(prompts, 60)
    other = await open_backend("vllm", base_url=vllm_url)
    try:
        naming = [other.score(prompts[i : i + 4], tuple(alone[0])) for i in range(0, 40, 4)]
        busy = asyncio.ensure_future(asyncio.gather(*naming))
        lists = await asyncio.gather(*(vllm.top_words([prompt], 60) for prompt in prompts))
        await busy
    finally:
        await other.aclose()
    for before, ((now,), _) in zip(alone, lists, strict=True):
        assert len(now) == 60
        common = set(before) & set(now)
        assert len(common) >= 50
        assert max(abs(before[w] - now[w]) for w in common) < 2 * vllm_cpu.STEP


@pytest.mark.parametrize("way", ["choice", "top-k"])
async def test_other_ways_give_the_same_label_probabilities(vllm_url: str, vllm: Backend, way: str) -> None:
    """Likely words, so that none is outside a list."""
    prompts, _ = await inputs(vllm)
    words = (await label_trie(vllm, WORDS)).tokens
    other = await open_backend("vllm", base_url=vllm_url, way=way)
    try:
        ours, theirs = await vllm.score(prompts, words), await other.score(prompts, words)
    finally:
        await other.aclose()
    kept = theirs.exact.all(axis=1)
    assert kept.mean() > 0.5
    np.testing.assert_allclose(theirs.logprobs[kept], ours.logprobs[kept], atol=2 * vllm_cpu.STEP)
    if way == "choice":
        assert kept.all()


async def test_a_model_that_is_not_served_is_named(vllm_url: str) -> None:
    with pytest.raises(BackendError, match="smollm2"):
        await open_backend("vllm", base_url=vllm_url, model="gpt-7")
    with pytest.raises(ConfigError, match="weights"):
        await open_backend("vllm", base_url=vllm_url, weights="/nowhere")
