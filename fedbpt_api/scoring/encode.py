"""From texts to token ids: template, prompt and text are tokenised apart and joined as ids.

So a prompt's ids are the same beside every text, and the servers' prefix caches can re-use them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import orjson

from fedbpt_api.scoring.backend import Backend, Prompt, Soft
from fedbpt_api.scoring.losses import Labels
from fedbpt_api.task import Example, LabelWords, Template

Ids = tuple[int, ...]
AnyPrompt = Ids | Soft  # as token ids, or as vectors
_AT_ONCE = 64  # texts that are tokenised at the same time, where a server does it


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several prompts that answer together; each text is asked once a member (`verbalizer.committee`)."""

    members: tuple[Ids, ...]


Asked = AnyPrompt | Ensemble


def members_of(prompt: Asked) -> tuple[AnyPrompt, ...]:
    """The prompts that are asked for it."""
    return prompt.members if isinstance(prompt, Ensemble) else (prompt,)


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text as token ids: what stands before the prompt's place, and after it.

    Attributes:
        before: Ids before the prompt's place.
        after: Ids after it.
        text: Positions of the text's own ids in before + after (never the template's).
        example_first: Whether a text stands before the prompt's place.
        part: Which data it is of ("train", "dev", "test"), empty for none; no part of its identity.
        key: A hash of the ids and of where the prompt's place is; 16 bytes.
    """

    before: Ids
    after: Ids
    text: tuple[int, ...] = ()
    example_first: bool = False
    part: str = field(default="", compare=False)
    key: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Its identity as 16 bytes: texts are looked up far more often than they are made."""
        data = orjson.dumps((self.before, self.after))
        object.__setattr__(self, "key", hashlib.blake2b(data, digest_size=16).digest())

    def __len__(self) -> int:
        """Tokens without a prompt."""
        return len(self.before) + len(self.after)

    @property
    def lead(self) -> int:
        """Tokens of the template that every input has in front of its text; 0 where the text stands first."""
        if self.example_first:
            return 0
        return self.text[0] if self.text else len(self.before)

    def with_prompt(self, prompt: AnyPrompt) -> Prompt:
        """The whole input; shared with other inputs is its part up to the prompt's end, or the example."""
        at = len(self.before)
        shared = at if self.example_first else at + len(prompt)
        if isinstance(prompt, Soft):
            return Prompt(self.before + self.after, shared, prompt, at)
        return Prompt(self.before + prompt + self.after, shared)

    def moved(self) -> EncodedText:
        """The same text with the prompt's place right behind it."""
        ids, at = self.before + self.after, self.text[-1] + 1 if self.text else 0
        return EncodedText(ids[:at], ids[at:], self.text, True, self.part)

    def perturbed(self, rate: float, vocabulary: Ids, rng: np.random.Generator) -> EncodedText:
        """The text with each of its own tokens replaced by one of `vocabulary` at that rate (eq. 7)."""
        ids = list(self.before + self.after)
        for position in self.text:
            if rng.random() < rate:
                ids[position] = vocabulary[int(rng.integers(len(vocabulary)))]
        cut = len(self.before)
        return replace(self, before=tuple(ids[:cut]), after=tuple(ids[cut:]))


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """Texts of one client with their labels as numbers, shape [n]."""

    texts: tuple[EncodedText, ...]
    labels: Labels

    def __len__(self) -> int:
        return len(self.texts)

    def taken(self, places: Sequence[int]) -> EncodedSet:
        """Those at `places`."""
        return EncodedSet(tuple(self.texts[at] for at in places), self.labels[list(places)])

    def moved(self) -> EncodedSet:
        """The same texts with the prompt's place behind them."""
        return EncodedSet(tuple(text.moved() for text in self.texts), self.labels)


EMPTY: Final = EncodedSet((), np.zeros(0, dtype=np.intp))
"""No texts."""


class Encoder:
    """Tokenises one task for one backend; the template's own pieces are tokenised once."""

    def __init__(self, backend: Backend, template: Template, label_words: LabelWords) -> None:
        self._backend = backend
        self._template = template
        self._labels = {label: i for i, label in enumerate(label_words.labels)}
        self._pieces: dict[str, Ids] = {}

    async def texts(self, examples: Sequence[Example], part: str = "") -> tuple[EncodedText, ...]:
        """Token ids of the filled template, in the order of `examples`, which are of `part`."""
        found: list[EncodedText] = []
        for begin in range(0, len(examples), _AT_ONCE):
            some = examples[begin : begin + _AT_ONCE]
            found += await asyncio.gather(*(self._encode(example, part) for example in some))
        return tuple(found)

    async def labelled(self, examples: Sequence[Example], part: str = "") -> EncodedSet:
        """Texts and labels; every example has a label that the label words know (checked before)."""
        labels = [self._labels[e.label] for e in examples if e.label is not None]
        return EncodedSet(await self.texts(examples, part), np.array(labels, dtype=np.intp))

    async def _encode(self, example: Example, part: str) -> EncodedText:
        ids: list[list[int]] = [[], []]
        text: list[int] = []
        for side, pieces in enumerate(self._template.marked_pieces(example)):
            for piece, is_text in pieces:
                tokens = await self._tokens(piece, keep=not is_text)
                if is_text:
                    start = len(ids[0]) + len(ids[1])
                    text += range(start, start + len(tokens))
                ids[side] += tokens
        first = any(position < len(ids[0]) for position in text)
        return EncodedText(tuple(ids[0]), tuple(ids[1]), tuple(text), first, part)

    async def _tokens(self, piece: str, *, keep: bool) -> Ids:
        if piece in self._pieces:
            return self._pieces[piece]
        tokens = await self._backend.tokenize(piece)
        if keep:
            self._pieces[piece] = tokens
        return tokens


def longest(sets: Sequence[Sequence[EncodedText]]) -> int:
    """Tokens of the longest input without its prompt."""
    return max((len(text) for texts in sets for text in texts), default=0)
