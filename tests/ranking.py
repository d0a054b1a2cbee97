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


async def ranks_as_native(openai: Backend, native: Backend, api: str, templated: Templated) -> int:
    """Assert that `openai` ranks 50 prompts as `native` does, but its noise aside; how many had no bound.

    Args:
        openai: One of OpenAI's routes.
        native: The same server by token ids.
        api: "completions" or "chat".
        templated: Token ids that the server makes of a text, or of a chat whose answer is begun.
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

    async def answers(asked: Sequence[Prompt]) -> np.ndarray:
        found = (await native.score(asked, [i for ids in variants for i in ids])).logprobs
        return np.stack([np.logaddexp.reduce(found[:, a:b], axis=1) for a, b in pairwise(ends)], axis=1)

    rows, again = await answers(prompts), (await answers(prompts[::-1]))[::-1]
    kept = found.exact.all(axis=1)
    assert found.usage.prompt_tokens == sum(len(prompt) for prompt in prompts)
    apart = np.abs(found.logprobs - rows)[kept]
    assert np.median(apart) < 0.02 + np.median(np.abs(again - rows)), apart
    for label in range(len(WORDS)):
        alike = spearmanr(again[kept, label], rows[kept, label]).statistic  # 1 where answers do not vary
        assert spearmanr(found.logprobs[kept, label], rows[kept, label]).statistic >= alike - 0.01
    return int(kept.sum())


async def _variants(native: Backend, word: str, api: str) -> list[int]:
    """Tokens that mean a word; in a chat without blanks and case."""
    forms = [word]
    if api == "chat":
        forms += [word.strip(), word.title(), word.strip().title(), word.upper(), word.strip().upper()]
    ids = [await native.tokenize(form) for form in forms]
    return [i[0] for i in ids if len(i) == 1]
