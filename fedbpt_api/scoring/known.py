"""What is known already: answers by question, prompt and text, kept compactly.

A run asks a few hundred texts about thousands of prompts. For each prompt the numbers of its texts and
their answers are two arrays, so an answer takes its own bytes and four more, and a lookup is a search in
a sorted array. A list of probable words is two arrays too: as a dictionary it would take ten times as much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from fedbpt_api.scoring.backend import Soft
from fedbpt_api.scoring.encode import AnyPrompt, EncodedText, Ids

Question = tuple[str, Ids | int]  # the named words, or how many words a list has
Rows = npt.NDArray[Any]  # [n, T] float32, or [n] of lists


def asked_key(question: Question, prompt: AnyPrompt) -> bytes:
    """16 bytes that tell a question about a prompt from every other."""
    digest = hashlib.blake2b(orjson.dumps(question), digest_size=16)
    digest.update(b"soft" + prompt.digest if isinstance(prompt, Soft) else orjson.dumps(prompt))
    return digest.digest()


@dataclass(frozen=True, slots=True, eq=False)
class _List:
    """{token id: log-probability}, in its order."""

    tokens: npt.NDArray[np.int32]
    values: npt.NDArray[np.float64]

    @classmethod
    def of(cls, found: Mapping[int, float]) -> _List:
        n = len(found)
        return cls(np.fromiter(found.keys(), np.int32, n), np.fromiter(found.values(), np.float64, n))

    def to_dict(self) -> dict[int, float]:
        return dict(zip(self.tokens.tolist(), self.values.tolist(), strict=True))


@dataclass(slots=True)
class Block:
    """Answers about one prompt: `texts` are sorted numbers [n], `rows` their answers."""

    texts: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    rows: Rows | None = None

    def lacks(self, numbers: Sequence[int]) -> list[int]:
        """Those of `numbers` that have no answer, in their order."""
        if not len(self.texts):
            return list(numbers)
        wanted = np.asarray(numbers, dtype=np.int32)
        at = np.minimum(np.searchsorted(self.texts, wanted), len(self.texts) - 1)
        lacking: list[int] = wanted[self.texts[at] != wanted].tolist()
        return lacking

    def add(self, numbers: Sequence[int], rows: Rows) -> None:
        """Answers to texts that had none."""
        texts = np.concatenate([self.texts, np.asarray(numbers, dtype=np.int32)])
        rows = _each(rows, _List.of) if rows.dtype == object else rows
        rows = rows if self.rows is None else np.concatenate([self.rows, rows])
        order = np.argsort(texts, kind="stable")
        self.texts, self.rows = texts[order], rows[order]

    def of(self, numbers: Sequence[int]) -> Rows:
        """Answers in the order of `numbers`, all of which have one."""
        assert self.rows is not None
        rows = self.rows[np.searchsorted(self.texts, np.asarray(numbers, dtype=np.int32))]
        return _each(rows, _List.to_dict) if rows.dtype == object else rows


class Known:
    """All answers of one client."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, Block] = {}
        self._numbers: dict[bytes, int] = {}

    def block(self, asked: bytes) -> Block:
        """Answers about the question and prompt of that key; empty where it is new."""
        return self._blocks.setdefault(asked, Block())

    def number(self, text: EncodedText) -> int:
        """The number of a text, given when it is first seen."""
        return self._numbers.setdefault(text.key, len(self._numbers))


def _each(rows: Rows, change: Callable[[Any], object]) -> Rows:
    """Lists in another form."""
    changed = np.empty(len(rows), dtype=object)
    changed[:] = [change(row) for row in rows]
    return changed
