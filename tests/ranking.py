"""OpenAI's routes against native scoring of the very token ids that the server makes of the same text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import numpy as np
from scipy.stats import spearmanr

from fedbpt_api.scoring.backend import Backend, Prompt
from toy import make_examples

WORDS = (" negative", " neutral", " positive")
Messages = Sequence[dict[str, str]]
Templated = Callable[[str | Messages], Awaitable[Sequence[int]]]


async def ranks_as_native(
    openai: Backend, native: Backend, api: str, templated: Templated, noise: float
) -> int:
    """Assert that `openai` ranks 50 prompts as `native` does, but for noise; how many had no bound.

    Args:
        openai: One of OpenAI's routes.
        native: The same server by token ids.
        api: "completions" or "chat".
        templated: Token ids that the server makes of a text, or of a chat whose answer is begun.
        noise: Nats (one standard deviation) by which an answer may move between two routes.
    """
    texts = [
        f"Is the mood positive, neutral or negative?\n{e.text}\nMood:" for e in make_examples(50, seed=5)
    ]
    asked = [Prompt(await openai.tokenize(text)) for text in texts]
    found = await openai.score(asked, [(await openai.tokenize(word))[0] for word in WORDS])
    prompts = []
    for text in texts:
        head, _, begun = text.rpartition("\n")
        chat = [{"role": "user", "content": head}, {"role": "assistant", "content": begun}]
        prompts.append(Prompt(tuple(await templated(chat if api == "chat" else text))))
    variants = [await _variants(native, word, api) for word in WORDS]
    ends = np.cumsum([0, *map(len, variants)])

    answers = (await native.score(prompts, [i for ids in variants for i in ids])).logprobs
    rows = np.stack([np.logaddexp.reduce(answers[:, a:b], axis=1) for a, b in pairwise(ends)], axis=1)
    kept = found.exact.all(axis=1)
    assert found.usage.prompt_tokens == sum(len(prompt) for prompt in prompts)
    apart = np.abs(found.logprobs - rows)[kept]
    assert np.median(apart) < noise, apart
    moved = np.random.default_rng(0).normal(0, noise, (50, *rows.shape))
    for label in range(len(WORDS)):
        own = rows[kept, label]
        alike = min(spearmanr(own + shift, own).statistic for shift in moved[:, kept, label])
        assert spearmanr(found.logprobs[kept, label], own).statistic >= alike
    return int(kept.sum())


async def _variants(native: Backend, word: str, api: str) -> list[int]:
    """Tokens that mean a word; in a chat without blanks and case."""
    forms = [word]
    if api == "chat":
        forms += [word.strip(), word.title(), word.strip().title(), word.upper(), word.strip().upper()]
    ids = [await native.tokenize(form) for form in forms]
    return [i[0] for i in ids if len(i) == 1]
