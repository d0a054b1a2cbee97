"""A backend from outside the project: its "model" always continues with the prompt's last token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedbpt_api.scoring.backend import Backend, BackendInfo, Prompt, Scores, TokenTable, Usage


async def open_backend(*, strength: float = 0.9) -> Backend:
    """Open the echo.

    Args:
        strength: Probability of the last token among the named ones, where it is one of them.
    """
    return Echo(strength)


class Echo:
    """Tokens are Unicode code points; every named word but the last one seen is equally likely."""

    def __init__(self, strength: float) -> None:
        self._strength = strength

    @property
    def info(self) -> BackendInfo:
        return BackendInfo("echo", "echo", f"echo-{self._strength}", context=4096)

    @property
    def notice(self) -> str:
        return ""

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    async def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        shape = (len(prompts), len(words))
        weights = np.full(shape, 1.0 - self._strength)
        for row, prompt in enumerate(prompts):
            weights[row, [word == prompt.ids[-1] for word in words]] = self._strength * (len(words) - 1)
        logprobs = np.log(weights / weights.sum(axis=1, keepdims=True))
        tokens = sum(len(prompt.ids) for prompt in prompts)
        return Scores(
            logprobs, np.ones(shape, bool), np.ones(len(prompts)), Usage(len(prompts), tokens, requests=1)
        )

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        return [{prompt.ids[-1]: 0.0} for prompt in prompts], Usage(len(prompts), requests=1)

    async def token_table(self) -> TokenTable | None:
        return None

    async def aclose(self) -> None:
        """Nothing is held."""
