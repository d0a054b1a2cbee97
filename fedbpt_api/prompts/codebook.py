"""A discrete prompt space that is not flat: whitened principal coordinates of the model's own words.

Each of L positions has k coordinates; the nearest clean whole word is read off. Around the origin of
a position lies a ball that means "no word here", so z = 0 is the user's own prompt and the search can
also shorten what it has added. (The nearest token to p0 + Az in the full embedding space, by
contrast, is p0's own token for every step a search takes.)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
from scipy.spatial import cKDTree

from fedbpt_api.errors import ConfigError
from fedbpt_api.prompts.space import AnyPrompt, Ids
from fedbpt_api.scoring.backend import Backend, Floats, TokenTable

_CLEAN = re.compile(r" [A-Za-z]?[a-z]{2,}")
_WORDS = 6000  # the most frequent ones: a BPE vocabulary is ordered by frequency of merging
EMPTY = 1.0  # radius of the ball that means "no word", in standard deviations


@dataclass(frozen=True, eq=False)
class Codebook:
    """Words and their coordinates.

    Attributes:
        tokens: One token id a word, length N.
        texts: The words, each with its leading blank.
        coordinates: Whitened principal coordinates, shape [N, k], unit variance.
        source: Where the embeddings came from.
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    coordinates: Floats
    source: str

    @cached_property
    def digest(self) -> str:
        """A short hash of words and coordinates (to three decimals)."""
        data = orjson.dumps([self.tokens, np.round(self.coordinates, 3).ravel().tolist()])
        return hashlib.sha256(data).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the coordinates come back to the bit."""
        return {
            "tokens": list(self.tokens),
            "texts": list(self.texts),
            "coordinates": self.coordinates.tolist(),
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Codebook:
        """Reads `to_dict`."""
        return cls(tuple(data["tokens"]), tuple(data["texts"]), np.array(data["coordinates"]), data["source"])

    @cached_property
    def places(self) -> dict[int, int]:
        """Row of each token."""
        return {token: row for row, token in enumerate(self.tokens)}

    @cached_property
    def tree(self) -> cKDTree:
        return cKDTree(self.coordinates)


def from_table(table: TokenTable, coordinates: int, source: str) -> Codebook:
    """Build a codebook from a model's vocabulary and embedding table (PCA, then whitening)."""
    tokens = [i for i, text in enumerate(table.texts) if _CLEAN.fullmatch(text)][:_WORDS]
    if len(tokens) < 2 * coordinates:
        raise ConfigError(
            f"search.space: the model's vocabulary has only {len(tokens)} clean whole words",
            "set search.words = 'builtin' or use another model",
        )
    x = table.embeddings[tokens].astype(np.float64)
    x -= x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    top = vectors[:, ::-1][:, :coordinates]
    top = top * np.where(top[np.abs(top).argmax(axis=0), range(coordinates)] < 0, -1.0, 1.0)  # fix the signs
    white = np.round(x @ top / np.sqrt(values[::-1][:coordinates]), 6)
    return Codebook(tuple(tokens), tuple(table.texts[i] for i in tokens), white, source)


async def builtin(backend: Backend, coordinates: int) -> Codebook:
    """The packaged table, for models whose embeddings cannot be had: words that are one token there."""
    data = orjson.loads(files("fedbpt_api.prompts").joinpath("words.json").read_bytes())
    kept = [
        (ids[0], word, row)
        for word, row in zip(data["words"], data["coordinates"], strict=True)
        if len(ids := await backend.tokenize(word)) == 1
    ]
    if len(kept) < 2 * coordinates:
        raise ConfigError("search.space: hardly any built-in word is one token for this model")
    tokens, texts, rows = zip(*kept, strict=True)
    return Codebook(tokens, texts, np.array(rows)[:, :coordinates], str(data["source"]))


async def codebook_for(backend: Backend, coordinates: int) -> Codebook:
    """The codebook of the backend's model, or the built-in one where its embeddings cannot be had."""
    table = await backend.token_table()
    if table is None:
        return await builtin(backend, coordinates)
    return from_table(table, coordinates, f"{backend.info.model} {backend.info.fingerprint}")


@dataclass(frozen=True, eq=False)
class CodebookSpace:
    """z in R^(L k) to a prompt: fixed ids with words in their gaps.

    Attributes:
        codebook: Words and coordinates.
        pieces: Fixed token ids, and numbers that say how many positions stand there.
        anchors: Where z = 0 lies, shape [L, k].
        bare: The prompt where no position holds a word, if that is not simply the fixed ids.
    """

    codebook: Codebook
    pieces: tuple[Ids | int, ...]
    anchors: Floats
    bare: Ids | None = None

    @property
    def dimension(self) -> int:
        return self.anchors.size

    @property
    def identity(self) -> dict[str, object]:
        return {
            "space": "codebook",
            "codebook": self.codebook.digest,
            "source": self.codebook.source,
            "words": len(self.codebook.tokens),
            "positions": len(self.anchors),
            "coordinates": int(self.anchors.shape[1]),
        }

    def decode(self, z: Floats) -> Ids:
        words = self.words(z)
        if self.bare is not None and not any(words):
            return self.bare
        ids: list[int] = []
        position = 0
        for piece in self.pieces:
            if isinstance(piece, int):
                for word in words[position : position + piece]:
                    ids += word
                position += piece
            else:
                ids += piece
        return tuple(ids)

    @property
    def lengths(self) -> frozenset[int]:
        """Tokens that a prompt of this space may have."""
        fixed = sum(len(piece) for piece in self.pieces if not isinstance(piece, int))
        own = () if self.bare is None else (len(self.bare),)
        return frozenset((*range(fixed, fixed + len(self.anchors) + 1), *own))

    @property
    def fullest(self) -> Ids:
        """A prompt with a word at every position."""
        far = np.linalg.norm(self.codebook.coordinates, axis=1).argmax()
        return self.decode(self.codebook.coordinates[far] - self.anchors)

    def shorter(self) -> tuple[CodebookSpace, ...]:
        """Spaces of at least half as many positions, where all of them stand in one place."""
        gaps = [piece for piece in self.pieces if isinstance(piece, int)]
        fewer = range(len(self.anchors) - 1, (len(self.anchors) - 1) // 2, -1) if len(gaps) == 1 else ()
        return tuple(
            replace(
                self,
                pieces=tuple(n if isinstance(piece, int) else piece for piece in self.pieces),
                anchors=self.anchors[:n],
            )
            for n in fewer
        )

    def words(self, z: Floats) -> list[Ids]:
        """For each position the token id of its word, or nothing."""
        points = self.anchors + np.asarray(z, dtype=np.float64).reshape(self.anchors.shape)
        filled = np.linalg.norm(points, axis=1) >= EMPTY
        _, nearest = self.codebook.tree.query(points)
        return [(self.codebook.tokens[int(i)],) if f else () for i, f in zip(nearest, filled, strict=True)]


async def words_after(backend: Backend, codebook: Codebook, prompt: str, positions: int) -> CodebookSpace:
    """The space whose origin is `prompt` itself: words go to the end of its last line."""
    body = prompt.rstrip()
    ending = prompt[len(body) :] or "\n"
    head, tail = [await backend.tokenize(part) for part in (body, ending)]
    bare = await backend.tokenize(prompt)
    anchors = np.zeros((positions, codebook.coordinates.shape[1]))
    return CodebookSpace(codebook, (head, positions, tail), anchors, bare)


async def demonstrations(
    backend: Backend,
    codebook: Codebook,
    prompt: str,
    shown: Sequence[tuple[Ids, Ids]],
    texts: Sequence[Ids],
    positions: int,
) -> CodebookSpace:
    """The space whose origin is a prompt followed by one made-up example a label.

    At most `positions` words of each example can be changed: whole words of the codebook.

    Args:
        backend: Tokenises what stands between the words that can be changed.
        codebook: The words.
        prompt: Put before the examples.
        shown: For each label the ids before its example's text and those after it, label word included.
        texts: For each label the ids of its example's text.
        positions: Words of an example that the search may change.
    """
    fixed = framed(prompt)
    pieces: list[Ids | int] = []
    chosen: list[int] = []
    for (before, after), text in zip(shown, texts, strict=True):
        free = (await _whole_words(backend, codebook, text))[:positions]
        chosen += [codebook.places[text[at]] for at in free]
        cuts = [-1, *free, len(text)]
        runs = [text[begin + 1 : end] for begin, end in pairwise(cuts)]
        runs[0] = before + runs[0]
        runs[-1] += after  # the same run where no word can be changed
        for number, run in enumerate(runs):
            if number:  # what stands between two free words is tokenised as one text
                pieces += [await backend.tokenize(fixed), 1]
                fixed = ""
            fixed += await backend.detokenize(run)
        fixed += "\n\n"
    pieces.append(await backend.tokenize(fixed))
    return CodebookSpace(codebook, tuple(pieces), codebook.coordinates[chosen])


def framed(prompt: str) -> str:
    """A prompt that examples follow: it ends its line; nothing where it is empty."""
    return prompt if not prompt or prompt.endswith("\n") else prompt + "\n"


def drawn_texts(codebook: Codebook, labels: int, length: int, seed: int) -> list[Ids]:
    """For each label `length` different random words."""
    rng = np.random.default_rng((seed, labels, length))
    words = np.flatnonzero(np.linalg.norm(codebook.coordinates, axis=1) >= EMPTY)
    chosen = rng.choice(words, labels * length, replace=labels * length > len(words))
    return [tuple(codebook.tokens[i] for i in row) for row in chosen.reshape(labels, length)]


async def _whole_words(backend: Backend, codebook: Codebook, text: Ids) -> list[int]:
    """Places in a text where a codebook word stands that nothing is glued to, so another word may stand."""
    found: list[int] = []
    for at, token in enumerate(text):
        place = codebook.places.get(token)
        if place is None or np.linalg.norm(codebook.coordinates[place]) < EMPTY:
            continue
        after = (await backend.detokenize(text[at + 1 : at + 2]))[:1] if at + 1 < len(text) else ""
        if not after.isalnum() and after not in ("'", "\u2019"):
            found.append(at)
    return found


def distinct_share(prompts: Sequence[AnyPrompt]) -> float:
    """Share of different prompts in a generation; a space that yields few is broken."""
    return len(set(prompts)) / len(prompts) if prompts else 1.0
