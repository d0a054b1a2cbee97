"""Text as if it were token ids, for servers that take text and say nothing about their tokenizer.

Text is cut into pieces, and each piece has an id that is the same in every process: a hash of it. What is
behind an id can only be said where its piece has been seen, so the vocabulary remembers what it cut. It
knows the packaged words and the usual characters from the beginning.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files

import orjson

from fedbpt_api.errors import BackendError

# A word with the blank before it, or one character. Marks that follow a letter belong to the word (accents,
# the vowel signs of Indic scripts), but for the punctuation that lies among them.
_MARK = (
    r"(?![\u060c\u061b\u061f\u06d4\u0964\u0965])[\u0300-\u036f\u0591-\u08ff\u0900-\u1cff\u200c\u200d\ufe0f]"
)
_PIECE = re.compile(rf" ?[^\W_](?:[^\W_]|{_MARK})*|.", re.DOTALL)
_CHARACTERS = (*map(chr, range(0x20, 0x7F)), "\n", "\t", *"\u2018\u2019\u201c\u201d\u2013\u2014\u2026")


class TextVocabulary:
    """Pieces of text and their ids; grows with every text that is tokenised."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = dict(_packaged())

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Ids of the pieces of `text`, remembered.

        Raises:
            BackendError: Two different pieces have the same id.
        """
        return tuple([self._id(piece) for piece in _PIECE.findall(text)])

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of pieces, one after the other.

        Raises:
            BackendError: An id that no text was tokenised to.
        """
        try:
            return "".join([self._texts[i] for i in ids])
        except KeyError as unknown:
            raise BackendError(
                f"there is no token {unknown} for a model that is asked with text: "
                "the prompt was made for another model",
                "use the model it was tuned on, or tune again",
            ) from unknown

    def piece(self, text: str) -> int | None:
        """Id of `text` where it is one piece; nothing is remembered."""
        return _hash(text) if _PIECE.fullmatch(text) else None

    def known(self) -> frozenset[int]:
        """Ids whose text can be said now."""
        return frozenset(self._texts)

    def _id(self, piece: str) -> int:
        number = _hash(piece)
        known = self._texts.setdefault(number, piece)
        if known != piece:
            raise BackendError(
                f"{piece!r} and {known!r} have the same id {number}", "write one of them another way"
            )
        return number


def _hash(piece: str) -> int:
    """A number from 1 to 2^31 - 1: it fits where token ids are kept as 32 bits."""
    digest = hashlib.blake2b(piece.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2**31 - 1) + 1


@cache
def _packaged() -> dict[int, str]:
    """Ids of what every process knows: the words of the packaged codebook, and characters."""
    return {_hash(piece): piece for piece in (*_words(), *_CHARACTERS)}


def _words() -> Iterator[str]:
    """Packaged words as they are, without their blank, and with a capital letter."""
    data = orjson.loads(files("fedbpt_api.prompts").joinpath("words.json").read_bytes())
    for word in data["words"]:
        bare = word.strip()
        yield from (word, bare, bare.capitalize(), f" {bare.capitalize()}")
