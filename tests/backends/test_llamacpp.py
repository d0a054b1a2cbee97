"""The embedded model itself: exact, repeatable numbers, and a clean end however a program ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.prompts.codebook import (
    Codebook,
    CodebookSpace,
    codebook_for,
    demonstrations,
    drawn_texts,
    words_after,
)
from fedbpt_api.prompts.padding import PaddedSpace, pad
from fedbpt_api.prompts.written import CHOICES, write_line
from fedbpt_api.scoring.backend import Backend, Floats, Prompt, Scores
from fedbpt_api.scoring.conformance import BackendConformance
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.trie import label_trie
from fedbpt_api.task import LabelWords, Template
from toy import make_examples

pytestmark = pytest.mark.model

START = "Decide whether the mood of the following tweet is negative, neutral or positive.\n"
TEMPLATE = "Tweet: {text}\nSentiment:"
WORDS = LabelWords(("negative", "neutral", "positive"), ((" negative",), (" neutral",), (" positive",)))
TEXTS = make_examples(8, seed=5)


async def open_llama(**options: object) -> Backend:
    return await open_backend(
        "llamacpp", log_folder=None, known=None, **({"threads": 1, "context": 256} | options)
    )


@pytest.fixture(scope="module")
def llama() -> Iterator[Backend]:
    backend = asyncio.run(open_llama())
    yield backend
    asyncio.run(backend.aclose())


async def inputs(backend: Backend) -> tuple[list[Prompt], tuple[int, ...]]:
    """Eight texts under two prompts in front of the text and two behind it, and the label tokens."""
    found = []
    for place, starts in (("before", (START, "Mood?\n")), ("after", ("\nIs it good?", ""))):
        encoder = Encoder(
            backend, Template.parse(TEMPLATE, "before" if place == "before" else "after"), WORDS
        )
        texts = await encoder.texts(TEXTS)
        for start in starts:
            ids = await backend.tokenize(start) if start else ()
            found += [text.with_prompt(ids) for text in texts]
    return found, (await label_trie(backend, WORDS)).tokens


async def in_chunks(
    backend: Backend, prompts: Sequence[Prompt], words: Sequence[int], size: int
) -> tuple[Floats, int]:
    """Rows in the order of `prompts`, asked for `size` at a time; and tokens re-used."""
    parts = [await backend.score(prompts[i : i + size], words) for i in range(0, len(prompts), size)]
    return np.concatenate([part.logprobs for part in parts]), sum(part.usage.cached_tokens for part in parts)


# Numbers ----------------------------------------------------------------------------------------


async def test_log_probabilities_are_normalised_over_the_named_tokens(llama: Backend) -> None:
    prompts, words = await inputs(llama)
    scores = await llama.score(prompts[:8], words)
    assert scores.logprobs.shape == scores.exact.shape == (8, 3)
    assert scores.exact.all()
    np.testing.assert_allclose(np.exp(scores.logprobs).sum(axis=1), 1.0, atol=1e-12)
    assert ((scores.mass > 0) & (scores.mass < 1)).all()
    assert (scores.usage.scored, scores.usage.requests) == (8, 8)
    assert scores.usage.prompt_tokens == sum(len(p.ids) for p in prompts[:8])


async def test_a_score_depends_on_its_own_tokens_alone(llama: Backend) -> None:
    """Bit for bit: whatever the order, the chunks, the slots, and what was asked before."""
    every, words = await inputs(llama)
    prompts = every[::2]
    expected, _ = await in_chunks(llama, prompts, words, len(prompts))
    for seed, size, slots in ((1, 1, 4), (2, 5, 1), (3, 32, 16)):
        order = np.random.default_rng(seed).permutation(len(prompts))
        backend = await open_llama(slots=slots)
        try:
            await backend.top_words([Prompt(await backend.tokenize("Something else entirely."), 2)], 3)
            rows, _ = await in_chunks(backend, [prompts[i] for i in order], words, size)
        finally:
            await backend.aclose()
        np.testing.assert_array_equal(rows, expected[order])


async def test_a_stem_that_is_kept_gives_the_numbers_of_one_that_is_not(llama: Backend) -> None:
    prompts, words = await inputs(llama)
    stem = (*await llama.tokenize("A stem that nobody has asked for:"), *prompts[0].ids)
    tail = await llama.tokenize(" is it good?")
    once = await llama.score([Prompt(stem + tail, len(stem))], words)
    again = await llama.score([Prompt(stem + tail, len(stem))], words)
    assert (once.usage.cached_tokens, again.usage.cached_tokens) == (0, len(stem))
    np.testing.assert_array_equal(once.logprobs, again.logprobs)
    np.testing.assert_array_equal(once.mass, again.mass)
    plain = await llama.score([Prompt(stem + tail)], words)  # measured: equal to the last bit here too
    np.testing.assert_allclose(plain.logprobs, once.logprobs, atol=1e-2)


async def test_stems_are_reused_in_both_layouts(llama: Backend) -> None:
    prompts, words = await inputs(llama)
    _, front = await in_chunks(llama, prompts[:8], words, 8)
    assert front >= 7 * prompts[0].shared > 0
    backend = await open_llama(slots=8)
    try:
        _, behind = await in_chunks(backend, prompts[16:], words, 8)  # two prompts behind the same examples
    finally:
        await backend.aclose()
    assert behind == sum(p.shared for p in prompts[16:24])


async def test_top_words_are_the_most_probable_and_agree_with_scores(llama: Backend) -> None:
    prompts, _ = await inputs(llama)
    lists, usage = await llama.top_words(prompts[:4], 50)
    assert usage.scored == 4
    for prompt, found in zip(prompts, lists, strict=False):
        assert len(found) == 50
        words, values = list(found), np.array(list(found.values()))
        scores = await llama.score([prompt], words)
        np.testing.assert_allclose(scores.mass, np.exp(values).sum(), rtol=1e-12)
        np.testing.assert_allclose(scores.logprobs[0], values - np.log(np.exp(values).sum()), atol=1e-12)
        others = [i for i in range(0, 49000, 700) if i not in found]
        both = (await llama.score([prompt], [*words, *others])).logprobs[0]
        assert both[: len(words)].min() >= both[len(words) :].max()


async def test_two_models_in_one_process_do_not_disturb_each_other(llama: Backend) -> None:
    prompts, words = await inputs(llama)
    alone, _ = await in_chunks(llama, prompts[:8], words, 8)
    other = await open_llama(slots=2)
    try:
        mine, others = await asyncio.gather(
            in_chunks(llama, prompts[:8], words, 2), in_chunks(other, prompts[:8][::-1], words, 3)
        )
    finally:
        await other.aclose()
    np.testing.assert_array_equal(mine[0], alone)
    np.testing.assert_array_equal(others[0], alone[::-1])


# Token ids --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book(llama: Backend) -> Codebook:
    return asyncio.run(codebook_for(llama, 4))


async def shown(llama: Backend) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What the run gives `demonstrations`: the ids around a made-up text, label word included."""
    before, after = await llama.tokenize("Tweet:"), await llama.tokenize("\nSentiment:")
    return [(before, (*after, word)) for word in (await label_trie(llama, WORDS)).tokens]


STARTS = (START, "", "Is this good or bad?", "Read the text.\n\n", "Classify:  \n", "Mood 1, 2 or 3: ")


async def retokenised(llama: Backend, space: CodebookSpace | PaddedSpace, n: int) -> list[str]:
    """The prompts of n random z whose text is tokenised into other ids than they have."""
    rng = np.random.default_rng(9)
    wrong = []
    for sigma in np.linspace(0.0, 2.0, n):
        ids = space.decode(sigma * rng.normal(size=space.dimension))
        text = await llama.detokenize(ids)
        if (await llama.tokenize(text) if text else ()) != ids:
            wrong.append(text)
    return wrong


@pytest.mark.parametrize("start", STARTS)
async def test_words_after_a_prompt_are_tokenised_again_into_the_same_ids(
    llama: Backend, book: Codebook, start: str
) -> None:
    assert await retokenised(llama, await words_after(llama, book, start, 5), 35) == []


@pytest.mark.parametrize("start", STARTS[:4])
async def test_made_up_examples_are_tokenised_again_into_the_same_ids(
    llama: Backend, book: Codebook, start: str
) -> None:
    drawn = drawn_texts(book, 3, 4, seed=1)
    written = [" I don't think it's generally un-watchable", ' "10/10, would fly again!" @jetblue', " Wow..."]
    texts = [await llama.tokenize(line) for line in written]
    for made_up in (drawn, texts):
        space = await demonstrations(llama, book, start, await shown(llama), made_up, 4)
        assert await retokenised(llama, space, 50) == []


@pytest.mark.parametrize("start", STARTS)
async def test_padded_prompts_are_tokenised_again_into_the_same_ids(
    llama: Backend, book: Codebook, start: str
) -> None:
    texts = [await llama.tokenize(" I don't think it's generally un-watchable")] * 3
    spaces = [
        await words_after(llama, book, start, 4),
        await demonstrations(llama, book, start, await shown(llama), texts, 4),
    ]
    for space in spaces[: 2 if start in STARTS[:4] else 1]:
        wide = await pad(llama, space, 3, 32)
        assert wide is not None
        assert await retokenised(llama, wide, 20) == []
        assert (3 + len(wide.decode(np.zeros(wide.dimension)))) % 32 == 0


async def test_the_model_writes_lines_that_end_and_are_tokenised_again_into_the_same_ids(
    llama: Backend,
) -> None:
    async def probable(ids: tuple[int, ...]) -> dict[int, float]:
        return (await llama.top_words([Prompt(lead + ids, len(lead))], CHOICES))[0][0]

    lead = await llama.tokenize("Sentiment: positive\nTweet:")
    rngs = [np.random.default_rng(seed) for seed in range(6)]
    lines = [await write_line(probable, llama.detokenize, rng) for rng in rngs]
    texts = [await llama.detokenize(line) for line in lines]
    assert len(set(texts)) == 6
    assert all(text.startswith(" ") and "\n" not in text and len(text) >= 3 for text in texts)
    again = await write_line(probable, llama.detokenize, np.random.default_rng(3))
    assert again == lines[3]


async def test_the_codebook_holds_words_that_are_one_token(llama: Backend, book: Codebook) -> None:
    assert len(book.tokens) > 3000
    for token, text in list(zip(book.tokens, book.texts, strict=True))[::50]:
        assert await llama.tokenize(text) == (token,)


async def test_words_that_begin_alike_have_the_probabilities_of_their_tokens_one_after_another(
    llama: Backend,
) -> None:
    words = LabelWords(
        ("good", "bad", "where"),
        ((" very good", " positive"), (" very bad",), (" New York", " New Jersey", " flabbergasted")),
    )
    trie = await label_trie(llama, words)
    backend = trie.over(llama)
    prompts, _ = await inputs(llama)
    scores = await backend.score(prompts[:3], trie.tokens)
    assert len(trie.nodes) == 3 and scores.usage.scored == 3 * 3
    everything = range(len((await backend.top_words(prompts[:1], 10**6))[0][0]))
    for prompt, row, mass in zip(prompts, scores.logprobs, scores.mass, strict=False):

        @cache
        def after(ids: tuple[int, ...], prompt: Prompt = prompt) -> asyncio.Task[Scores]:
            """Over the whole vocabulary, after some more tokens."""
            asked = [Prompt(prompt.ids + ids, prompt.shared)]
            return asyncio.ensure_future(llama.score(asked, everything))

        whole = []
        for ids in trie.ids:
            said = ids if ids[0] in trie.shared else ids[:1]
            whole.append(sum([(await after(said[:i])).logprobs[0, said[i]] for i in range(len(said))]))
        # Siblings are compared with each other, so a shared beginning keeps all of its probability.
        expected = np.array(whole)
        for first in trie.shared:
            family = [i for i, ids in enumerate(trie.ids) if ids[0] == first]
            beginning = (await after(())).logprobs[0, first]
            expected[family] += beginning - np.logaddexp.reduce(expected[family])
        np.testing.assert_allclose(row, expected - np.logaddexp.reduce(expected), atol=1e-5)
        assert mass == pytest.approx(np.exp(whole).sum(), rel=1e-5)


async def test_label_words_that_cannot_be_told_apart_are_refused(llama: Backend) -> None:
    words = LabelWords(("a", "b", "c"), ((" positive",), (" flabby",), (" positive", " flabbiness", " fl")))
    with pytest.raises(ConfigError) as caught:
        await label_trie(llama, words)
    assert caught.value.problems[0] == (
        f"labels.c: ' positive' is the same for {llama.info.model} as labels.a: ' positive'"
    )
    assert "labels.b: ' flabby' begins with all of labels.c: ' fl' for" in caught.value.problems[-1]


# Refusals ---------------------------------------------------------------------------------------


async def test_an_input_longer_than_the_context_is_refused_before_it_is_evaluated() -> None:
    backend = await open_llama(context=64)
    try:
        (word,) = await backend.tokenize(" good")
        assert backend.info.context == 64
        fits = await backend.score([Prompt((word,) * 64, 10)], (word,))
        with pytest.raises(BackendError, match="65 tokens, the context holds 64"):
            await backend.score([Prompt((word,) * 3), Prompt((word,) * 65)], (word,))
        np.testing.assert_array_equal(
            (await backend.score([Prompt((word,) * 64, 10)], (word,))).mass, fits.mass
        )
    finally:
        await backend.aclose()


Ask = Callable[[Backend], Coroutine[Any, Any, object]]


@pytest.mark.parametrize(
    "ask",
    [
        lambda b: b.score([Prompt((49152,))], (5,)),
        lambda b: b.score([Prompt((7, -1), 1)], (5,)),
        lambda b: b.score([Prompt((7, 2**32 + 5))], (5,)),
        lambda b: b.score([Prompt(())], (5,)),
        lambda b: b.score([Prompt((7,))], (5, 49152)),
        lambda b: b.score([Prompt((7,))], (5, -1)),
    ],
    ids=["beyond", "negative", "wrapped", "empty", "word-beyond", "word-negative"],
)
async def test_ids_that_the_model_does_not_have_are_an_error_of_the_backend(llama: Backend, ask: Ask) -> None:
    """A prompt file from elsewhere may hold any number."""
    prompts, words = await inputs(llama)
    before = await llama.score(prompts[:2], words)
    with pytest.raises(BackendError):
        await ask(llama)
    np.testing.assert_array_equal((await llama.score(prompts[:2], words)).logprobs, before.logprobs)


async def test_a_failure_in_the_middle_of_an_input_does_not_spoil_its_stem() -> None:
    backend = await open_llama(context=1024)
    try:
        stem, (word,) = await backend.tokenize("Is this good or bad?"), await backend.tokenize(" good")
        good = Prompt((*stem, word), len(stem))
        before = await backend.score([good], (word, 5))
        with pytest.raises(BackendError):  # more than one batch, so that part of it is evaluated
            await backend.score([Prompt((*stem, *(word,) * 600, 49152), len(stem))], (word,))
        np.testing.assert_array_equal((await backend.score([good], (word, 5))).logprobs, before.logprobs)
    finally:
        await backend.aclose()


class TestConformance(BackendConformance):
    """The suite that every backend must pass."""

    NOISE = BATCH_NOISE = 1e-12

    async def open(self) -> Backend:
        return await open_llama()


# The end ----------------------------------------------------------------------------------------


async def test_closed_is_closed() -> None:
    backend = await open_llama()
    await backend.aclose()
    await backend.aclose()
    asks: list[Ask] = [
        lambda b: b.score([Prompt((7,))], (5,)),
        lambda b: b.top_words([Prompt((7,))], 3),
        lambda b: b.tokenize("text"),
        lambda b: b.detokenize((7,)),
        lambda b: b.token_table(),
    ]
    for ask in asks:
        with pytest.raises(BackendError, match="closed"):
            await ask(backend)


async def test_closing_ends_what_is_being_scored() -> None:
    backend = await open_llama()
    prompts, words = await inputs(backend)
    task = asyncio.create_task(backend.score(prompts * 4, words))
    await asyncio.sleep(0)
    await backend.aclose()
    with pytest.raises(BackendError, match="closed"):
        await task


PROGRAM = """
import asyncio, os, signal, sys
from fedbpt_api.scoring.backend import Prompt
from fedbpt_api.scoring.registry import open_backend

async def main(how, closes):
    backend = await open_backend("llamacpp", threads=1, context=256)
    try:
        print(len((await backend.score([Prompt((7, 8, 9), 2)], (5, 6))).logprobs), flush=True)
        busy = asyncio.create_task(backend.score([Prompt((7, i)) for i in range(10, 40)], (5, 6)))
        await asyncio.sleep(0)
        if how == "exception":
            raise RuntimeError("out of the blue")
        if how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if how == "detokenize":
            await backend.detokenize((49152,))
        await busy
    finally:
        if closes == "closed":
            await backend.aclose()

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
asyncio.run(main(*sys.argv[1:]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "faulthandler", "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("closes", ["closed", "left open"])
@pytest.mark.parametrize(
    ("how", "code", "last"),
    [
        ("end", 0, ""),
        ("exception", 1, "RuntimeError: out of the blue"),
        ("interrupt", -2, "KeyboardInterrupt"),
    ],
)
def test_a_program_ends_as_it_should_while_the_model_is_busy(
    how: str, code: int, last: str, closes: str
) -> None:
    done = run(how, closes)
    assert (done.returncode, done.stdout) == (code, "1\n"), done.stderr
    assert last in ("", *done.stderr.splitlines())
    assert "Fatal" not in done.stderr


def test_a_token_that_the_model_does_not_have_does_not_end_the_process() -> None:
    """In a process of its own, because llama.cpp aborts."""
    done = run("detokenize", "closed")
    assert done.returncode == 1, done.stderr[-500:]
    assert "BackendError" in done.stderr
