"""The codebook: whitened coordinates, the same decoding everywhere, and a space that is not flat."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedbpt_api.errors import ConfigError
from fedbpt_api.prompts.codebook import (
    Codebook,
    CodebookSpace,
    codebook_for,
    demonstrations,
    distinct_share,
    drawn_texts,
    from_table,
    words_after,
)
from fedbpt_api.scoring.backend import Floats, TokenTable
from toy import PROMPT, TEXTS, ToyBackend

BACKEND = ToyBackend()
BOOK = asyncio.run(codebook_for(BACKEND, 4))
SHOWN = [
    (asyncio.run(BACKEND.tokenize("Text:")), asyncio.run(BACKEND.tokenize("\nMood: negative"))),
    (asyncio.run(BACKEND.tokenize("Text:")), asyncio.run(BACKEND.tokenize("\nMood: positive"))),
]
prompts = st.sampled_from(["", "\n", PROMPT, "Is this good?", "Decide:  \n\n", "Ümlaut, \n", " good", "a b "])
points = arrays(np.float64, 12, elements=st.floats(-6, 6))


def text(ids: tuple[int, ...]) -> str:
    return asyncio.run(BACKEND.detokenize(ids))


def after(prompt: str, positions: int = 3, book: Codebook = BOOK) -> CodebookSpace:
    return asyncio.run(words_after(BACKEND, book, prompt, positions))


def examples(prompt: str, positions: int = 3, seed: int = 0, book: Codebook = BOOK) -> CodebookSpace:
    texts = drawn_texts(book, len(SHOWN), positions, seed)
    return asyncio.run(demonstrations(BACKEND, book, prompt, SHOWN, texts, positions))


def table(rows: int, width: int = 8, seed: int = 0) -> TokenTable:
    rng = np.random.default_rng(seed)
    names = tuple(f" {chr(97 + i // 26)}{chr(97 + i % 26)}x" for i in range(rows))
    scales = np.linspace(5.0, 0.5, width)
    return TokenTable(names, (rng.normal(size=(rows, width)) * scales + 3.0).astype(np.float32))


# Words and coordinates --------------------------------------------------------------------------


@given(st.integers(0, 100), st.integers(1, 6))
@settings(max_examples=25)
def test_coordinates_are_white(seed: int, k: int) -> None:
    book = from_table(table(200, seed=seed), k, "test")
    assert book.coordinates.shape == (200, k)
    np.testing.assert_allclose(book.coordinates.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(book.coordinates.T @ book.coordinates / 200, np.eye(k), atol=1e-4)


def test_the_first_coordinate_is_the_direction_in_which_words_differ_most() -> None:
    words = table(300)
    direction = np.array([0.6, 0.8, 0, 0, 0, 0, 0, 0], dtype=np.float32)
    strength = np.random.default_rng(1).normal(size=300).astype(np.float32)
    stretched = replace(words, embeddings=words.embeddings + 40 * strength[:, None] * direction)
    book = from_table(stretched, 2, "test")
    assert abs(np.corrcoef(book.coordinates[:, 0], strength)[0, 1]) > 0.95


def test_only_clean_whole_words_with_a_leading_blank_are_words() -> None:
    unclean = [
        "word",
        " A",
        " USA",
        " x1",
        "  home",
        " it's",
        " ",
        "\n",
        " Ünder",
        " e.g",
        " cdE",
        "ing",
        " a",
    ]
    words = table(30)
    rows = np.concatenate([np.eye(13, 8, dtype=np.float32), words.embeddings])
    mixed = TokenTable((*unclean, *words.texts), rows)
    book = from_table(mixed, 2, "test")
    assert book.texts == words.texts
    assert [mixed.texts[token] for token in book.tokens] == list(book.texts)


def test_the_same_model_gives_the_same_codebook_and_another_model_another() -> None:
    again = asyncio.run(codebook_for(ToyBackend(), 4))
    np.testing.assert_array_equal(again.coordinates, BOOK.coordinates)
    other = asyncio.run(codebook_for(ToyBackend(seed=1), 4))
    assert again.digest == BOOK.digest != other.digest
    assert after(PROMPT).identity == after(PROMPT, book=again).identity
    assert after(PROMPT).identity != after(PROMPT, book=other).identity


def test_the_signs_of_the_eigenvectors_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = np.linalg.eigh

    def flipped(matrix: Floats) -> tuple[Floats, Floats]:
        values, vectors = plain(matrix)
        return values, -vectors

    monkeypatch.setattr(np.linalg, "eigh", flipped)
    assert asyncio.run(codebook_for(ToyBackend(), 4)).digest == BOOK.digest


def test_too_few_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="only 7 clean whole words"):
        from_table(table(7), 4, "test")


def test_a_model_that_keeps_its_embeddings_gets_the_built_in_words_that_are_tokens_there() -> None:
    book = asyncio.run(codebook_for(ToyBackend(embeddings=False), 3))
    assert len(book.tokens) >= 6
    assert book.coordinates.shape == (len(book.tokens), 3)
    assert [TEXTS[token] for token in book.tokens] == list(book.texts)
    assert all(text.startswith(" ") for text in book.texts)


# Words after a prompt ---------------------------------------------------------------------------


@given(prompts | st.text(st.characters(codec="utf-8"), max_size=8), st.integers(1, 5))
def test_the_origin_is_the_bare_prompt(prompt: str, positions: int) -> None:
    space = after(prompt, positions)
    assert space.dimension == positions * 4
    assert space.decode(np.zeros(space.dimension)) == asyncio.run(BACKEND.tokenize(prompt))


@given(prompts, points)
def test_words_go_to_the_end_of_the_last_line(prompt: str, z: Floats) -> None:
    space = after(prompt)
    words = [BOOK.texts[BOOK.tokens.index(token)] for ids in space.words(z) for token in ids]
    body = prompt.rstrip()
    if not words:
        assert text(space.decode(z)) == prompt
    else:
        assert text(space.decode(z)) == body + "".join(words) + (prompt[len(body) :] or "\n")


@given(prompts, points)
def test_decoding_is_a_function_of_z_and_the_model_alone(prompt: str, z: Floats) -> None:
    ids = after(prompt).decode(z)
    elsewhere = after(prompt, book=asyncio.run(codebook_for(ToyBackend(), 4)))
    assert elsewhere.decode(z) == ids
    assert elsewhere.decode(z.reshape(3, 4)) == ids
    assert all(isinstance(i, int) for i in ids)


@given(st.lists(st.none() | st.integers(0, len(BOOK.tokens) - 1), min_size=3, max_size=3))
def test_at_a_word_s_coordinates_stands_that_word_and_near_the_origin_none(
    rows: list[int | None],
) -> None:
    far = [row for row in rows if row is not None and np.linalg.norm(BOOK.coordinates[row]) > 1.0]
    chosen = [row if row in far else None for row in rows]
    z = np.array([np.full(4, 0.49) if row is None else BOOK.coordinates[row] for row in chosen])
    expected = [() if row is None else (BOOK.tokens[row],) for row in chosen]
    assert after(PROMPT).words(z) == expected


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_nearly_all_prompts_of_a_generation_differ(sigma: float) -> None:
    for space in (after(PROMPT, 4), after("", 4), examples(PROMPT, 2)):
        z = np.random.default_rng(0).normal(size=(40, space.dimension)) * sigma
        assert distinct_share([space.decode(row) for row in z]) >= 0.9


def test_the_share_of_distinct_prompts() -> None:
    assert distinct_share([(1,), (2,), (1,), (3,)]) == 0.75
    assert distinct_share([]) == 1.0
    assert distinct_share([(1,)] * 240) == 1 / 240


# Made-up examples -------------------------------------------------------------------------------


@given(st.integers(0, 20), arrays(np.float64, 24, elements=st.floats(-6, 6)))
def test_every_label_has_an_example_after_the_prompt(seed: int, z: Floats) -> None:
    space = examples(PROMPT, seed=seed)
    words = ["".join(BOOK.texts[BOOK.tokens.index(t)] for t in ids) for ids in space.words(z)]
    assert text(space.decode(z)) == (
        f"{PROMPT}Text:{''.join(words[:3])}\nMood: negative\n\nText:{''.join(words[3:])}\nMood: positive\n\n"
    )


@pytest.mark.parametrize("k", [1, 2, 4])
def test_at_the_origin_every_position_has_a_word(k: int) -> None:
    book = asyncio.run(codebook_for(BACKEND, k))
    for seed in range(5):
        space = examples("", 4, seed, book)
        assert space.dimension == 2 * 4 * k
        assert all(space.words(np.zeros(space.dimension)))


def test_the_origin_is_drawn_by_the_seed() -> None:
    drawn = [examples("", seed=seed).decode(np.zeros(24)) for seed in range(8)]
    assert len(set(drawn)) == 8
    assert drawn == [examples("", seed=seed).decode(np.zeros(24)) for seed in range(8)]


def test_a_written_text_is_the_origin_and_only_its_whole_words_can_change() -> None:
    lines = [" the nice-ish film, hated it", " good day"]
    texts = [asyncio.run(BACKEND.tokenize(line)) for line in lines]
    space = asyncio.run(demonstrations(BACKEND, BOOK, PROMPT, SHOWN, texts, 9))
    start = f"{PROMPT}Text:{lines[0]}\nMood: negative\n\nText:{lines[1]}\nMood: positive\n\n"
    assert text(space.decode(np.zeros(space.dimension))) == start
    free = [BOOK.texts[BOOK.places[token]] for line in texts for token in line if token in BOOK.places]
    assert 0 < space.dimension // 4 <= len(free)
    seen = set()
    for seed in range(200):
        z = np.random.default_rng(seed).normal(size=space.dimension) * 3
        changed = text(space.decode(z))
        assert "-ish" in changed and changed.count(",") == 1  # glued to a word, and no word: they stay
        assert changed.startswith(f"{PROMPT}Text:") and changed.endswith("\nMood: positive\n\n")
        seen.add(changed)
    assert len(seen) > 100


@pytest.mark.parametrize("line", [" nice-ish", ""])
def test_an_example_without_a_word_that_can_change_keeps_its_frame(line: str) -> None:
    texts = [asyncio.run(BACKEND.tokenize(line)), asyncio.run(BACKEND.tokenize(" good day"))]
    space = asyncio.run(demonstrations(BACKEND, BOOK, PROMPT, SHOWN, texts, 9))
    start = f"{PROMPT}Text:{line}\nMood: negative\n\nText: good day\nMood: positive\n\n"
    assert text(space.decode(np.zeros(space.dimension))) == start


@pytest.mark.parametrize("most", [0, 1, 2])
def test_at_most_so_many_words_of_an_example_can_change(most: int) -> None:
    texts = [asyncio.run(BACKEND.tokenize(" good day nice film")), asyncio.run(BACKEND.tokenize(" bad"))]
    space = asyncio.run(demonstrations(BACKEND, BOOK, "", SHOWN, texts, most))
    assert space.dimension <= 4 * 2 * most
