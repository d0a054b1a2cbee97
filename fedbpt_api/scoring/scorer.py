"""The Scorer: de-duplication, budget and batching between one client and its backend.

A pair (prompt, text) with the same question is paid for once in a run. A request that was sent
belongs to the scorer, not to the task that asked for it: when that task is cancelled, the request
goes on in the background, and its answer is kept and counted when it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import Backend, Floats, Prompt, Usage
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import EncodedText, Ids
from fedbpt_api.scoring.journal import Answer, Journal, Question

Key = tuple[Question, Ids, EncodedText]
_CHUNK = 32  # pairs a request to the backend: small enough to stop soon, large enough to keep it busy


class Stopped(Exception):
    """The user asked the run to stop; what had been sent was received first."""


class Scorer:
    """Scores prompts on one client's texts.

    Args:
        backend: Who answers.
        budget: What may be spent; counted here.
        stopping: Asked before each request; True makes the scorer raise `Stopped`.
        journal: Where answers are kept before they are used; nowhere without one.
    """

    def __init__(
        self,
        backend: Backend,
        budget: Budget,
        stopping: Callable[[], bool] = lambda: False,
        journal: Journal | None = None,
    ) -> None:
        self.backend = backend
        self.budget = budget
        self.words: Ids = ()
        self.journal = journal
        self._stopping = stopping
        self._known: dict[Key, Answer] = {}
        self._sent: dict[Key, asyncio.Task[None]] = {}

    def use_words(self, words: Ids) -> None:
        """Ask for these T tokens from now on, label words first."""
        self.words = words

    async def score(self, prompt: Ids, texts: Sequence[EncodedText]) -> Floats:
        """Log-probabilities [n, T] of the named words, normalised over them, for each text.

        Raises:
            BudgetSpent: What is missing does not fit into the budget; nothing of it was sent.
            Stopped: The user asked to stop.
            BackendError: The backend cannot answer.
        """
        words = self.words

        async def ask(prompts: Sequence[Prompt]) -> tuple[Sequence[Answer], Usage]:
            scores = await self.backend.score(prompts, words)
            if not np.isfinite(scores.logprobs).all():
                raise BackendError(
                    f"{self.backend.info.model} returned log-probabilities that are not finite",
                    "is the server healthy?",
                )
            return list(scores.logprobs.astype(np.float32)), scores.usage

        rows = await self._answers(("words", words), prompt, texts, ask)
        return np.array(rows, dtype=np.float64).reshape(len(texts), len(words))

    async def top_words(self, prompt: Ids, texts: Sequence[EncodedText], k: int) -> list[dict[int, float]]:
        """The k most probable next tokens of each text; each text is one scored example."""

        async def ask(prompts: Sequence[Prompt]) -> tuple[Sequence[Answer], Usage]:
            return await self.backend.top_words(prompts, k)

        lists = await self._answers(("top", k), prompt, texts, ask)
        return [dict(found) for found in lists if isinstance(found, dict)]

    async def aclose(self) -> None:
        """Give up on requests that are still under way."""
        for task in self._sent.values():
            task.cancel()
        await asyncio.gather(*self._sent.values(), return_exceptions=True)

    async def _answers(
        self,
        question: Question,
        prompt: Ids,
        texts: Sequence[EncodedText],
        ask: Callable[[Sequence[Prompt]], Awaitable[tuple[Sequence[Answer], Usage]]],
    ) -> list[Answer]:
        """Answers in the order of `texts`; what is not known yet is asked for, chunk by chunk."""
        keys = [(question, prompt, text) for text in texts]
        wanted = list(dict.fromkeys(keys))
        missing = [key for key in wanted if key not in self._known and key not in self._sent]
        reserved = _work(missing)
        self.budget.reserve(reserved)
        self.budget.count_duplicates(len(texts) - len(missing))
        try:
            for begin in range(0, len(wanted), _CHUNK):
                chunk = wanted[begin : begin + _CHUNK]
                new = [key for key in chunk if key not in self._known and key not in self._sent]
                if new and self._stopping():
                    raise Stopped
                if new:
                    reserved -= _work(new)  # from here on the request's own affair
                    self._send(new, ask)
                for task in {self._sent[key] for key in chunk if key in self._sent}:
                    await asyncio.shield(task)
        finally:
            self.budget.settle(reserved, Usage())
        return [self._known[key] for key in keys]

    def _send(
        self, keys: list[Key], ask: Callable[[Sequence[Prompt]], Awaitable[tuple[Sequence[Answer], Usage]]]
    ) -> None:
        """Start one request; what was set aside for it is settled when it ends, however it ends."""
        prompts = [text.with_prompt(prompt) for _, prompt, text in keys]

        async def request() -> None:
            used = Usage()
            try:
                answers, used = await ask(prompts)
                found = dict(zip(keys, answers, strict=True))
                if self.journal is not None:
                    self.journal.append([self.journal.key(*key) for key in keys], answers, used)
                self._known |= found
            finally:
                self.budget.settle(_work(keys), used)
                for key in keys:
                    del self._sent[key]

        task = asyncio.create_task(request())
        task.add_done_callback(_heard)
        self._sent |= dict.fromkeys(keys, task)


def _work(keys: Sequence[Key]) -> Usage:
    tokens = sum(len(text.with_prompt(prompt).ids) for _, prompt, text in keys)
    return Usage(len(keys), tokens, 0, len(keys))


def _heard(task: asyncio.Task[None]) -> None:
    """A failure is raised where it is awaited; where nobody waits any more, it is not an event."""
    if not task.cancelled():
        task.exception()
