"""The Scorer: de-duplication, budget and batching between one client and its backend.

A pair (prompt, text) with the same named words is paid for once in a run. Work that was sent is
always received and kept, also when the task that asked for it is cancelled meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedbpt_api.scoring.backend import Backend, Floats, Prompt, Usage
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import EncodedText

Ids = tuple[int, ...]
R = TypeVar("R")
_CHUNK = 32  # pairs a call to the backend: small enough to stop soon, large enough to keep it busy


class Stopped(Exception):
    """The user asked the run to stop; what had been sent was received first."""


class Scorer:
    """Scores prompts on one client's texts.

    Args:
        backend: Who answers.
        budget: What may be spent; counted here.
        words: The T named tokens, label words first. Fixed with `use_words` before scoring.
        stopping: Asked before each call; True makes `score` raise `Stopped`.
    """

    def __init__(
        self, backend: Backend, budget: Budget, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.backend = backend
        self.budget = budget
        self.words: Ids = ()
        self._stopping = stopping
        self._known: dict[tuple[Ids, EncodedText, Ids], npt.NDArray[np.float32]] = {}

    def use_words(self, words: Ids) -> None:
        """Ask for these T tokens from now on."""
        self.words = words

    async def score(self, prompt: Ids, texts: Sequence[EncodedText]) -> Floats:
        """Log-probabilities [n, T] of the named words, normalised over them, for each text.

        Raises:
            BudgetSpent: What is missing does not fit into the budget; nothing of it was sent.
            Stopped: The user asked to stop.
            BackendError: The backend cannot answer.
        """
        words = self.words
        missing = [t for t in dict.fromkeys(texts) if (prompt, t, words) not in self._known]
        self.budget.count_duplicates(len(texts) - len(missing))
        work = _work([t.with_prompt(prompt) for t in missing])
        self.budget.reserve(work)

        async def send(part: list[EncodedText]) -> None:
            nonlocal work
            prompts = [t.with_prompt(prompt) for t in part]
            scores = await self.backend.score(prompts, words)
            for text, row in zip(part, scores.logprobs, strict=True):
                self._known[prompt, text, words] = row.astype(np.float32)
            sent = _work(prompts)
            work = work - sent
            self.budget.settle(sent, scores.usage)

        try:
            for begin in range(0, len(missing), _CHUNK):
                if self._stopping():
                    raise Stopped
                await _finish(send(missing[begin : begin + _CHUNK]))
        finally:
            self.budget.settle(work, Usage())  # whatever was set aside and not sent
        rows = [self._known[prompt, t, words] for t in texts]
        return np.array(rows, dtype=np.float64).reshape(len(texts), len(words))

    async def top_words(self, prompt: Ids, texts: Sequence[EncodedText], k: int) -> list[dict[int, float]]:
        """The k most probable next tokens of each text; each text is one scored example."""
        prompts = [t.with_prompt(prompt) for t in texts]
        work = _work(prompts)
        self.budget.reserve(work)
        lists: list[dict[int, float]] = []
        used = Usage()
        try:
            for begin in range(0, len(prompts), _CHUNK):
                if self._stopping():
                    raise Stopped
                part, usage = await _finish(self.backend.top_words(prompts[begin : begin + _CHUNK], k))
                lists += part
                used = used + usage
        finally:
            self.budget.settle(work, used)
        return lists


def _work(prompts: Sequence[Prompt]) -> Usage:
    return Usage(len(prompts), sum(len(p.ids) for p in prompts), 0, len(prompts))


async def _finish(work: Coroutine[object, object, R]) -> R:
    """Await paid work to its end even if this task is cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
