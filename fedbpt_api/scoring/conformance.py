"""What every backend must do, as tests that its author runs: subclass, say how to open it, run pytest.

    from fedbpt_api.scoring.conformance import BackendConformance

    class TestMine(BackendConformance):
        async def open(self) -> Backend:
            return await open_backend(base_url="http://127.0.0.1:9000")

Each test opens the backend, asks a few questions and closes it; together they cost about 150 scored
examples. `NOISE` is how far two answers to one question may be apart, in nats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar, TypeVar

import numpy as np
import pytest

from fedbpt_api.errors import FedbptError
from fedbpt_api.scoring.backend import Backend, Prompt, Soft

T = TypeVar("T")
CUE = ".\nSentiment:"


class BackendConformance:
    """Inherit from it in a test module; see the module's docstring."""

    TEXTS: ClassVar[tuple[str, ...]] = (
        "The film was a delight from start to end",
        "Two hours of my life that I want back",
        "It was fine",
    )
    WORDS: ClassVar[tuple[str, ...]] = (" positive", " negative", " neutral")
    RARE: ClassVar[str] = " banana"
    NOISE: ClassVar[float] = 0.05
    BATCH_NOISE: ClassVar[float] = 0.15  # alone against in a list
    LISTS: ClassVar[bool] = True  # whether it can list probable words

    async def open(self) -> Backend:
        """A new, open backend."""
        raise NotImplementedError

    def run(self, test: Callable[[Backend], Awaitable[T]]) -> T:
        """Open, test, close."""

        async def work() -> T:
            backend = await self.open()
            try:
                return await test(backend)
            finally:
                await backend.aclose()

        return asyncio.run(work())

    async def _prompts(self, backend: Backend) -> list[Prompt]:
        cue = await backend.tokenize(CUE)
        return [Prompt((await backend.tokenize(text)) + cue) for text in self.TEXTS]

    async def _words(self, backend: Backend, *words: str) -> tuple[int, ...]:
        ids = [await backend.tokenize(word) for word in words or self.WORDS]
        assert all(len(found) == 1 for found in ids), "the words must be single tokens; set WORDS"
        return tuple(found[0] for found in ids)

    def test_text_comes_back_from_its_ids(self) -> None:
        async def test(backend: Backend) -> None:
            for text in (*self.TEXTS, " leading blank", "line\nbreaks\n\n", "naïve café, 東京 and 🙂"):
                ids = await backend.tokenize(text)
                assert ids and all(isinstance(i, int) and i >= 0 for i in ids)
                assert await backend.detokenize(ids) == text
                assert await backend.tokenize(text) == ids

        self.run(test)

    def test_log_probabilities_are_normalised_over_the_named_words(self) -> None:
        async def test(backend: Backend) -> None:
            words = await self._words(backend)
            scores = await backend.score(await self._prompts(backend), words)
            assert scores.logprobs.shape == scores.exact.shape == (len(self.TEXTS), len(words))
            assert scores.mass.shape == (len(self.TEXTS),)
            assert np.isfinite(scores.logprobs).all()
            np.testing.assert_allclose(np.exp(scores.logprobs).sum(axis=1), 1.0, atol=1e-6)
            known = scores.mass[~np.isnan(scores.mass)]
            assert ((known > 0) & (known <= 1.01)).all()

        self.run(test)

    def test_answers_are_in_the_order_of_the_questions(self) -> None:
        async def test(backend: Backend) -> None:
            words, prompts = await self._words(backend), await self._prompts(backend)
            forward = (await backend.score(prompts * 8, words)).logprobs
            backward = (await backend.score((prompts * 8)[::-1], words)).logprobs[::-1]
            np.testing.assert_allclose(forward, backward, atol=self.BATCH_NOISE)
            one = await backend.score(prompts[:1], words[::-1])
            np.testing.assert_allclose(one.logprobs[0, ::-1], forward[0], atol=self.BATCH_NOISE)
            apart = np.abs(forward[0] - forward[1]).max()
            assert apart > self.BATCH_NOISE, "praise and blame get the same answer"

        self.run(test)

    def test_the_same_question_gets_the_same_answer(self) -> None:
        async def test(backend: Backend) -> None:
            words, prompts = await self._words(backend), await self._prompts(backend)
            first, second = [await backend.score(prompts, words) for _ in range(2)]
            np.testing.assert_allclose(first.logprobs, second.logprobs, atol=self.NOISE)

        self.run(test)

    def test_questions_at_the_same_time_do_not_mix(self) -> None:
        async def test(backend: Backend) -> None:
            words, prompts = await self._words(backend), await self._prompts(backend)
            alone = (await backend.score(prompts, words)).logprobs
            other = (words[0], *await self._words(backend, self.RARE))
            asked = await asyncio.gather(
                *(backend.score([p], words) for p in prompts), backend.score(prompts, other)
            )
            rows = np.concatenate([scores.logprobs for scores in asked[:-1]])
            np.testing.assert_allclose(rows, alone, atol=self.BATCH_NOISE)
            assert asked[-1].logprobs.shape == (len(self.TEXTS), 2)

        self.run(test)

    def test_a_word_that_nobody_would_say_has_a_value_too(self) -> None:
        async def test(backend: Backend) -> None:
            words = (*await self._words(backend), *await self._words(backend, self.RARE))
            scores = await backend.score(await self._prompts(backend), words)
            assert (scores.logprobs[:, -1] < scores.logprobs[:, :-1].max(axis=1)).all()

        self.run(test)

    def test_what_was_spent_is_said(self) -> None:
        async def test(backend: Backend) -> None:
            prompts = await self._prompts(backend)
            usage = (await backend.score(prompts, await self._words(backend))).usage
            assert usage.scored == len(prompts)
            assert usage.prompt_tokens >= len(prompts)
            assert 0 <= usage.cached_tokens <= usage.prompt_tokens
            assert 1 <= usage.requests <= len(prompts)

        self.run(test)

    def test_lists_hold_the_most_probable_words(self) -> None:
        async def test(backend: Backend) -> None:
            if not self.LISTS:
                return
            prompts = await self._prompts(backend)
            lists, usage = await backend.top_words(prompts, 10)
            assert len(lists) == len(prompts) and usage.scored == len(prompts)
            for found in lists:
                assert 1 <= len(found) <= 10
                assert all(np.isfinite(value) and value <= 1e-6 for value in found.values())
                assert sum(np.exp(value) for value in found.values()) <= 1.01

        self.run(test)

    def test_no_prompts_are_no_work(self) -> None:
        async def test(backend: Backend) -> None:
            words = await self._words(backend)
            scores = await backend.score([], words)
            assert scores.logprobs.shape == (0, len(words))
            assert scores.usage.scored == 0

        self.run(test)

    def test_vectors_are_refused_where_they_are_not_taken(self) -> None:
        async def test(backend: Backend) -> None:
            if backend.info.soft:
                return
            (prompt, *_), words = await self._prompts(backend), await self._words(backend)
            with pytest.raises(FedbptError):
                await backend.score([Prompt(prompt.ids, 0, Soft(np.zeros((2, 8))), 0)], words)

        self.run(test)

    def test_the_embedding_table_fits_the_vocabulary(self) -> None:
        async def test(backend: Backend) -> None:
            table = await backend.token_table()
            if table is None:
                return
            assert len(table.texts) == len(table.embeddings)
            assert np.isfinite(table.embeddings).all()
            for word, token in zip(self.WORDS, await self._words(backend), strict=True):
                assert table.texts[token] == word

        self.run(test)

    def test_it_says_what_it_is(self) -> None:
        async def test(backend: Backend) -> None:
            info = backend.info
            assert info.kind and info.model and info.fingerprint
            assert info.context > 0 and info.max_words >= len(self.WORDS)
            assert info.batch >= 1 and info.parallel >= 1 and info.noise >= 0
            assert isinstance(backend.notice, str)

        self.run(test)

    def test_closed_twice_is_closed(self) -> None:
        async def test(backend: Backend) -> None:
            await backend.aclose()

        self.run(test)
