"""Text as ids: lossless for any text, the same in every process, and nothing guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import BackendError
from fedbpt_backends import text_vocabulary
from fedbpt_backends.text_vocabulary import TextVocabulary


@given(st.text(st.characters(codec=None)))  # lone surrogates too: data files may hold them
def test_any_text_comes_back(text: str) -> None:
    vocabulary = TextVocabulary()
    ids = vocabulary.tokenize(text)
    assert vocabulary.detokenize(ids) == text
    assert all(0 < i < 2**31 for i in ids)


@given(st.lists(st.text()))
def test_texts_that_are_tokenised_apart_join_to_the_joined_text(texts: list[str]) -> None:
    vocabulary = TextVocabulary()
    ids = [i for text in texts for i in vocabulary.tokenize(text)]
    assert vocabulary.detokenize(ids) == "".join(texts)


@pytest.mark.parametrize(
    "word",
    [
        " positive",
        "positive",
        " Straße",
        " 5",
        " 2026",
        " सकारात्मक",
        " إيجابي",
        " e\u0301te\u0301",
        "很好",
        "\n",
    ],
)
def test_a_label_word_is_one_piece(word: str) -> None:
    vocabulary = TextVocabulary()
    (number,) = vocabulary.tokenize(word)
    assert vocabulary.piece(word) == number


@pytest.mark.parametrize("text", ["", " so good", "good!", "\n\n", " (", "it's", "snake_case"])
def test_what_is_more_than_one_piece_has_no_id(text: str) -> None:
    assert TextVocabulary().piece(text) is None


def test_ids_are_the_same_in_every_version() -> None:
    """They are kept in prompt files and journals, so these numbers may never change."""
    vocabulary = TextVocabulary()
    assert vocabulary.tokenize(" positive\n") == (283264974, 2074832665)


def test_an_id_that_was_never_seen_is_refused() -> None:
    (number,) = TextVocabulary().tokenize(" xylophonist")
    with pytest.raises(BackendError, match="another model"):
        TextVocabulary().detokenize([number])


def test_what_is_packaged_can_be_said_by_every_process() -> None:
    ids = [i for text in (" the", " The", "the", "The", ".", "\n") for i in TextVocabulary().tokenize(text)]
    assert TextVocabulary().detokenize(ids) == " the ThetheThe.\n"


def test_two_pieces_with_one_id_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = TextVocabulary()
    monkeypatch.setattr(text_vocabulary, "_hash", lambda piece: 7)
    vocabulary.tokenize(" one one one")
    with pytest.raises(BackendError, match="' two' and ' one'"):
        vocabulary.tokenize(" one two")
