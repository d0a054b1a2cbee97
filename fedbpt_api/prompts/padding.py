"""Neutral tokens in front of a space's prompts, so that what inputs share fills whole blocks of a cache.

A prefix cache that works in blocks of B tokens keeps the whole blocks of what inputs share: a shared part of
45 tokens with B = 16 is kept to its 32nd, and the other 13 are evaluated again for each text. Three tokens
more in front of it, and nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from fedbpt_api.prompts.codebook import CodebookSpace
from fedbpt_api.prompts.space import Ids
from fedbpt_api.scoring.backend import Backend, Floats

_SENTENCE = (
    "Here is some text that was written by someone and is now read by you , one line at a time , "
    "from the first word to the last ."
)


def _prose(k: int) -> str:
    """The first words of a sentence, over and over, each of them a token, and the line break."""
    return " ".join(islice(cycle(_SENTENCE.split()), k - 1)) + "\n"


_FORMS: tuple[Callable[[int], str], ...] = (
    _prose,  # measured: harmless, where as many signs or line breaks raise the loss (docs/servers.md)
    lambda k: "*" + " *" * (k - 2) + "\n" if k > 1 else "\n",
    lambda k: " *" * k,  # where a prompt begins with a line break, which would join another
    lambda k: "\n" * k,
)


@dataclass(frozen=True, eq=False)
class PaddedSpace:
    """A space whose prompts have tokens in front that bring what inputs share to whole blocks.

    Attributes:
        inner: The space without them.
        block: Tokens of a block, B.
        lead: Tokens that inputs share beside the prompt.
        fillers: For the number of tokens that are missing, from 0 to B - 1, their ids.
    """

    inner: CodebookSpace
    block: int
    lead: int
    fillers: Mapping[int, Ids]

    @property
    def dimension(self) -> int:
        return self.inner.dimension

    @property
    def identity(self) -> dict[str, object]:
        return self.inner.identity | {"block": self.block, "lead": self.lead}

    def decode(self, z: Floats) -> Ids:
        ids = self.inner.decode(z)
        return self.fillers[missing(self.lead + len(ids), self.block)] + ids


def missing(shared: int, block: int) -> int:
    """Tokens that a shared part lacks to whole blocks."""
    return -shared % block


def evaluated(shared: int, block: int, texts: float) -> float:
    """Tokens of a shared part that a server evaluates for each text: whole blocks once, the others each time.

    Args:
        shared: Tokens that the inputs of a prompt begin with alike.
        block: Tokens of a block.
        texts: Texts that a prompt is scored on.
    """
    rest = shared % block
    return (shared - rest) / texts + rest


def typical(space: CodebookSpace, lead: int, block: int, texts: float, sigma: float) -> tuple[float, float]:
    """Tokens evaluated for each text, as `evaluated`, of a first generation's prompts: plain and padded."""
    drawn = np.random.default_rng(0).normal(0.0, sigma, (64, space.dimension))
    lengths = [lead + len(space.decode(z)) for z in drawn]
    plain = [evaluated(n, block, texts) for n in lengths]
    padded = [evaluated(n + missing(n, block), block, texts) for n in lengths]
    return float(np.mean(plain)), float(np.mean(padded))


async def pad(backend: Backend, space: CodebookSpace, lead: int, block: int) -> PaddedSpace | None:
    """The space with padding in front of its prompts: a sentence, or signs or line breaks.

    A prompt's text must be tokenised into the prompt's ids again, so a padding is taken only if it is as many
    tokens as are missing, and stays apart from what follows it.

    Returns:
        None where there is no such padding.
    """
    starts = {await backend.detokenize(ids) for ids in (space.decode(0.0 * space.anchors), space.fullest)}
    needed = {missing(lead + n, block) for n in space.lengths}
    for form in _FORMS:
        fillers: dict[int, Ids] = {}
        for k in sorted(needed, reverse=True):  # the longest fail first
            found = await _apart(backend, form(k), starts) if k else ()
            if len(found) != k:
                break
            fillers[k] = found
        else:
            return PaddedSpace(space, block, lead, fillers)
    return None


async def _apart(backend: Backend, filler: str, starts: set[str]) -> Ids:
    """Token ids of a filler; nothing where it would not stay apart from every one of `starts`."""
    ids = await backend.tokenize(filler)
    for start in starts:
        if await backend.tokenize(filler + start) != ids + (await backend.tokenize(start) if start else ()):
            return ()
    return ids
