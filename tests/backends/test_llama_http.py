"""llama.cpp by URL: the same numbers as embedded, and every kind of server that is not one refused."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import llama_server
from fedbpt_api.errors import BackendError, FedbptError
from fedbpt_api.scoring.backend import Backend, Prompt
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.conformance import BackendConformance
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.scoring.trie import label_trie
from fedbpt_api.task import LabelWords, Template
from fedbpt_backends import pacing
from fedbpt_backends.llama_http import Slots
from toy import make_examples

WORDS = LabelWords(("negative", "neutral", "positive"), ((" negative",), (" neutral",), (" positive",)))
PROPS = {"default_generation_settings": {"n_ctx": 512}, "total_slots": 2, "model_path": "/models/tiny.gguf"}

# A real server ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A llama.cpp server in a process of its own, on a port of its choice."""
    with llama_server.serve() as address:
        yield address


@pytest.fixture
async def both(url: str) -> AsyncIterator[tuple[Backend, Backend]]:
    """The server and the embedded model."""
    server = await open_backend("llamacpp", base_url=url)
    embedded = await open_backend("llamacpp", threads=1, context=256)
    yield server, embedded
    await server.aclose()
    await embedded.aclose()


@pytest.mark.model
async def test_a_server_gives_the_embedded_model_s_label_probabilities(both: tuple[Backend, Backend]) -> None:
    """Measured: nowhere further apart than 3e-6. Room is left for other builds and batchings of Q8_0."""
    server, embedded = both
    prompt = await embedded.tokenize("Decide whether the mood of the text is good.\n")
    encoder = Encoder(embedded, Template.parse("Tweet: {text}\nSentiment:"), WORDS)
    prompts = [text.with_prompt(prompt) for text in await encoder.texts(make_examples(20, seed=3))]
    words = (await label_trie(embedded, WORDS)).tokens
    rare = (*words, *await embedded.tokenize(" banana"))
    ours, theirs = await embedded.score(prompts, rare), await server.score(prompts, rare)

    np.testing.assert_allclose(np.exp(theirs.logprobs).sum(axis=1), 1.0, atol=1e-9)
    apart = np.abs(ours.logprobs - theirs.logprobs)
    assert np.median(apart) < 0.005
    assert apart.max() < 0.05
    for word in range(3):
        ranks = spearmanr(ours.logprobs[:, word], theirs.logprobs[:, word])
        assert ranks.statistic >= 0.99
    assert theirs.exact.all()
    assert np.isnan(theirs.mass).all()
    assert (theirs.usage.scored, theirs.usage.requests) == (20, 20)
    assert theirs.usage.prompt_tokens == ours.usage.prompt_tokens
    assert 0 < theirs.usage.cached_tokens < theirs.usage.prompt_tokens


@pytest.mark.model
async def test_a_server_has_the_embedded_model_s_tokens(both: tuple[Backend, Backend]) -> None:
    server, embedded = both
    for text in (" positive", "Tweet: so <|im_end|> 日本\n\n", "x" * 50):
        ids = await server.tokenize(text)
        assert ids == await embedded.tokenize(text)
        assert await server.detokenize(ids) == await embedded.detokenize(ids) == text
    prompts = [Prompt(await embedded.tokenize("The mood is"))]
    (ours,), _ = await embedded.top_words(prompts, 10)
    (theirs,), usage = await server.top_words(prompts, 10)
    assert set(theirs) == set(ours)
    np.testing.assert_allclose([theirs[i] for i in ours], list(ours.values()), atol=0.05)
    assert usage.scored == 1


@pytest.mark.model
async def test_a_server_says_what_it_can_take_and_refuses_more(both: tuple[Backend, Backend]) -> None:
    server, embedded = both
    assert server.info.context == 256
    assert server.info.model == embedded.info.model
    assert await server.token_table() is None
    with pytest.raises(BackendError, match="400"):
        await server.score([Prompt((1123,) * 10), Prompt((1123,) * 300)], (5, 6))
    assert (await server.score([Prompt((1123,) * 10)], (5, 6))).logprobs.shape == (1, 2)


@pytest.mark.model
class TestConformance(BackendConformance):
    """The suite that every backend must pass."""

    @pytest.fixture(autouse=True)
    def _server(self, url: str) -> None:
        self.url = url

    async def open(self) -> Backend:
        return await open_backend("llamacpp", base_url=self.url)


@pytest.mark.model
async def test_what_a_slot_holds_already_is_not_evaluated_again(url: str) -> None:
    """Of what each slot could keep of eight prompts, at least nine tenths: by the server's own counters."""
    backend = await open_backend("llamacpp", base_url=url)
    try:
        encoder = Encoder(backend, Template.parse("Tweet: {text}\nSentiment:"), WORDS)
        texts = await encoder.texts(make_examples(12, seed=3))
        scorer = Scorer(backend, Budget())
        scorer.use_words((await label_trie(backend, WORDS)).tokens)
        prompts = [
            await backend.tokenize(f"{i} ways to say in a word what a tweet is about:\n") for i in range(8)
        ]
        await asyncio.gather(*(scorer.score(prompt, texts) for prompt in prompts))
    finally:
        await backend.aclose()
    could = sum(text.with_prompt(prompt).shared for prompt in prompts for text in texts[backend.info.batch :])
    assert scorer.budget.spent.cached_tokens >= 0.9 * could


# Slots ------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=30), st.integers(1, 4)
)
def test_no_more_inputs_than_slots_and_every_input_gets_one(
    inputs: list[tuple[int, int, bool]], n: int
) -> None:
    """Each input has a stem, takes some turns of the loop, and may be given up before it is done."""
    busy: set[int] = set()
    done: set[int] = set()

    async def one(slots: Slots, number: int, stem: int, turns: int) -> None:
        async with slots.take((stem,)) as slot:
            assert slot not in busy
            assert 0 <= slot < n
            busy.add(slot)
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                busy.remove(slot)
        done.add(number)

    async def work() -> None:
        slots = Slots(n)
        tasks = [asyncio.create_task(one(slots, i, stem, turns)) for i, (stem, turns, _) in enumerate(inputs)]
        await asyncio.sleep(0)
        for task, (_, _, given_up) in zip(tasks, inputs, strict=True):
            if given_up:
                task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [end for end in ends if isinstance(end, AssertionError)]
        assert {i for i, (_, _, given_up) in enumerate(inputs) if not given_up} <= done

    asyncio.run(work())


async def test_a_slot_goes_to_an_input_whose_first_tokens_it_holds() -> None:
    slots, order = Slots(1), []

    async def one(stem: int) -> None:
        async with slots.take((stem,)):
            order.append(stem)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(stem) for stem in (1, 2, 3, 1, 2, 1)))
    assert order == [1, 1, 1, 2, 2, 3]


# Servers that are none --------------------------------------------------------------------------

Answer = tuple[int, object] | None  # status and body; None hangs up


class Canned:
    """A web server that gives prepared answers in order, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.paths: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.paths.append(head.split()[1])
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is not None:
            status, content = answer
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            start = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(start.encode() + body)
        writer.close()
        await writer.wait_closed()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self.answer, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_backoff", lambda state: 0.0)


async def open_canned(base_url: str) -> Backend:
    return await open_backend("llamacpp", base_url=base_url)


async def test_where_nothing_listens_the_address_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BackendError, match=f"127.0.0.1:{port}") as caught:
        await open_canned(f"http://127.0.0.1:{port}")
    assert "well" in caught.value.hint


async def test_a_server_that_hangs_up_is_asked_again_and_then_no_more() -> None:
    canned = Canned(None)
    async with canned.serve() as url:
        with pytest.raises(BackendError, match="no answer"):
            await open_canned(url)
    assert canned.paths == ["/props"] * pacing.ATTEMPTS


async def test_a_server_that_is_still_loading_is_waited_for() -> None:
    canned = Canned((503, {"error": "loading"}), None, (503, b""), (200, PROPS))
    async with canned.serve() as url:
        backend = await open_canned(url)
        await backend.aclose()
    assert backend.info.model == "tiny.gguf"
    assert backend.info.context == 512
    assert len(canned.paths) == 4


async def test_a_refusal_is_not_repeated_and_is_passed_on() -> None:
    canned = Canned((404, b"no such page"))
    async with canned.serve() as url:
        with pytest.raises(BackendError, match="404: no such page"):
            await open_canned(url)
    assert len(canned.paths) == 1


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"", [], {}, {"total_slots": "many"}, "hello", 3])
async def test_a_web_server_that_is_not_llama_cpp_is_refused(body: object) -> None:
    async with Canned((200, body)).serve() as url:
        with pytest.raises(BackendError):
            backend = await open_canned(url)
            try:
                await backend.tokenize("text")
            finally:
                await backend.aclose()


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "http://[::1", "ftp://127.0.0.1", "", "http://"])
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(FedbptError):
        await open_canned(url)


@pytest.mark.parametrize(
    "answer", [None, (500, b"out of memory"), (200, {}), (200, {"completion_probabilities": [{}]}), (200, [])]
)
async def test_a_server_that_fails_while_it_scores_is_one_error_of_the_backend(answer: Answer) -> None:
    canned = Canned((200, PROPS), answer)
    async with canned.serve() as url:
        backend = await open_canned(url)
        try:
            with pytest.raises(BackendError):
                await backend.score([Prompt((1, 2)), Prompt((3,)), Prompt((4,))], (5, 6))
        finally:
            await backend.aclose()


async def test_a_word_that_the_server_left_out_is_not_exact() -> None:
    found = [{"id": 5, "prob": 0.6}, {"id": 6, "prob": 0.2}, {"id": 9, "prob": 0.1}, {"id": 7, "prob": 0.0}]
    canned = Canned((200, PROPS), (200, {"completion_probabilities": [{"top_probs": found}]}))
    async with canned.serve() as url:
        backend = await open_canned(url)
        try:
            scores = await backend.score([Prompt((1, 2, 3))], (6, 5, 7, 8))
        finally:
            await backend.aclose()
    assert scores.exact.tolist() == [[True, True, False, False]]
    np.testing.assert_allclose(scores.logprobs[0, :2], np.log([0.25, 0.75]), rtol=1e-9)
    assert (scores.logprobs[0, 2:] < -80).all()
    assert np.isfinite(scores.logprobs).all()
    assert scores.usage.prompt_tokens == 3
