"""Padding to whole cache blocks: the length, the text, and the prompt behind it, for every z."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedbpt_api.prompts.codebook import CodebookSpace, codebook_for, demonstrations, drawn_texts, words_after
from fedbpt_api.prompts.padding import PaddedSpace, evaluated, missing, pad, typical
from fedbpt_api.scoring.backend import Floats
from toy import PROMPT, ToyBackend

BACKEND = ToyBackend()
BOOK = asyncio.run(codebook_for(BACKEND, 2))
SHOWN = [
    tuple(asyncio.run(BACKEND.tokenize(part)) for part in ("Text:", f"\nMood: {label}"))
    for label in ("negative", "positive")
]
prompts = st.sampled_from(["", "\n", PROMPT, "Is this good?", "Decide:  \n\n", " good", "a b "])
points = arrays(np.float64, 12, elements=st.floats(-6, 6))
blocks = st.sampled_from([2, 16, 32])


def space_of(prompt: str, examples: bool) -> CodebookSpace:
    if not examples:
        return asyncio.run(words_after(BACKEND, BOOK, prompt, 6))
    texts = drawn_texts(BOOK, 2, 3, seed=0)
    around = [(before, after) for before, after in SHOWN]
    return asyncio.run(demonstrations(BACKEND, BOOK, prompt, around, texts, 3))


def padded(space: CodebookSpace, lead: int, block: int) -> PaddedSpace:
    found = asyncio.run(pad(BACKEND, space, lead, block))
    assert found is not None
    return found


@given(prompts, st.booleans(), points, blocks, st.integers(0, 20))
def test_what_inputs_share_fills_whole_blocks_and_the_prompt_stands_behind_the_padding(
    prompt: str, examples: bool, z: Floats, block: int, lead: int
) -> None:
    space = space_of(prompt, examples)
    wide = padded(space, lead, block)
    ids, own = wide.decode(z), space.decode(z)
    assert (lead + len(ids)) % block == 0
    assert len(ids) - len(own) < block
    assert ids[len(ids) - len(own) :] == own
    assert len(own) in space.lengths
    text = asyncio.run(BACKEND.detokenize(ids))
    assert asyncio.run(BACKEND.tokenize(text)) == ids
    assert wide.dimension == space.dimension
    assert wide.identity == space.identity | {"block": block, "lead": lead}


class Merging(ToyBackend):
    """Line breaks that follow each other are one token, as for most real models."""

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return await super().tokenize(re.sub("\n+", "\n", text))


class Signs(Merging):
    """A sign with the blank before it is one token."""

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return await super().tokenize(text.replace(" *", "*"))


class Words(Merging):
    """So is every word, of one letter here."""

    async def tokenize(self, text: str) -> tuple[int, ...]:
        first, *rest = re.split("(?=\n)", text, maxsplit=1)
        words = re.sub(r"\S+ ?", "w", first) if first.startswith("Here is") else first
        return await super().tokenize("".join([words, *rest]))


@pytest.mark.parametrize(
    ("backend", "prompt", "begins"),
    [
        (BACKEND, PROMPT, "\n"),  # its words are many tokens, and line breaks stay apart
        (Signs(), PROMPT, "*"),
        (Signs(), "\nIs it?", "*"),
        (Words(), PROMPT, "w"),
    ],
)
async def test_the_first_padding_that_is_as_many_tokens_as_are_missing_is_taken(
    backend: ToyBackend, prompt: str, begins: str
) -> None:
    space = await words_after(BACKEND, BOOK, prompt, 2)
    wide = await pad(backend, space, 0, 16)
    assert wide is not None
    text = await BACKEND.detokenize(wide.decode(np.zeros(4)))
    n = missing(len(await BACKEND.tokenize(prompt)), 16)
    alone = prompt.startswith("\n") or begins == "\n"
    assert text == (begins * n if alone else begins * (n - 1) + "\n") + prompt


async def test_without_such_padding_there_is_none() -> None:
    assert await pad(Merging(), await words_after(BACKEND, BOOK, PROMPT, 2), 0, 16) is None


@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 100))
def test_padding_saves_what_is_left_over_and_costs_itself_once(shared: int, block: int, texts: int) -> None:
    more = missing(shared, block)
    assert (shared + more) % block == 0 and more < block
    plain, full = evaluated(shared, block, texts), evaluated(shared + more, block, texts)
    assert full * texts == pytest.approx(shared + more)
    assert plain * texts == pytest.approx(shared + (texts - 1) * (shared % block))
    assert (full < plain) == (more < (texts - 1) * (shared % block))


def test_blocks_of_one_token_cost_nothing_more() -> None:
    plain, full = typical(space_of(PROMPT, False), 3, 1, 10.0, 1.0)
    assert plain == full


@pytest.mark.parametrize(("positions", "left"), [(1, []), (2, [1]), (4, [3, 2]), (5, [4, 3])])
def test_words_are_left_out_from_the_end_and_half_of_them_stay(positions: int, left: list[int]) -> None:
    space = asyncio.run(words_after(BACKEND, BOOK, PROMPT, positions))
    shorter = space.shorter()
    assert [len(s.anchors) for s in shorter] == left
    for short in shorter:
        assert short.decode(np.zeros(short.dimension)) == space.decode(np.zeros(space.dimension))
        assert len(space.fullest) - len(short.fullest) == positions - len(short.anchors)


def test_examples_keep_their_words() -> None:
    space = space_of(PROMPT, True)
    assert space.shorter() == ()
    assert len(space.fullest) == max(space.lengths)
