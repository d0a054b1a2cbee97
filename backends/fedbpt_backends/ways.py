"""The ladder: ways of reading the log-probabilities of named words from a completions answer.

A way says which fields a request needs and reads one choice of the answer. The most exact and cheapest
that a server really supports is chosen when it is opened (`choose`), and never changed within a run:

1. `NamedTokens`: vLLM's ``logprob_token_ids``, full-vocabulary values of up to 128 ids;
2. `Choice`: vLLM's ``structured_outputs.choice`` with a top-k list: exact relative to the words;
3. `TopK`: the plain top-k list. A word outside it is bounded by the smallest of the list and by the
   mass that the list leaves, and marked as not exact.

Which servers do what: the providers' documentation; what a server really does is probed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import Bools, Floats

MOST_NAMED = 128  # vLLM's MAX_LOGPROB_TOKEN_IDS
_EXCESS = 1e-2  # by which probabilities may sum to more than 1: bfloat16's rounding
NEVER = -9000.0
"""What is not above this is no log-probability: servers write -9999 for minus infinity."""

SPOILED = "a list of nothing but -9999, as vLLM does while somebody else names token ids"


class Spoiled(BackendError):
    """Somebody else's request has spoiled the answer; the next one may be well."""


_FEW = 5  # log-probabilities that every list of as many entries has
_REST = 1e-6  # what a list leaves is known no better: the servers' numbers are float32


@dataclass(frozen=True, slots=True)
class Reading:
    """What a choice says about T words: shape [T] each; the values are full-vocabulary unless `relative`."""

    logprobs: list[float]
    exact: list[bool]


class Way(Protocol):
    """One way of asking for words and reading the answer."""

    @property
    def name(self) -> str: ...

    @property
    def words(self) -> int:
        """Most words that one request can name."""

    @property
    def relative(self) -> bool:
        """Whether values are exact only relative to each other."""

    def fields(self, words: Sequence[int]) -> dict[str, Any]:
        """Fields of the request beside model and prompt."""

    def read(self, choice: Mapping[str, Any], words: Sequence[int]) -> Reading:
        """Log-probabilities of `words` from one choice.

        Raises:
            KeyError, TypeError, ValueError: The answer has another form.
            BackendError: It has the form and is not what was asked for.
        """


@dataclass(frozen=True, slots=True)
class NamedTokens:
    """vLLM's ``logprob_token_ids`` (its PR 43463): every word, over the whole vocabulary."""

    name: str = "logprob_token_ids"
    words: int = MOST_NAMED
    relative: bool = False

    def fields(self, words: Sequence[int]) -> dict[str, Any]:
        # Without ids as keys, two tokens that decode alike would be one entry.
        return {"logprobs": 1, "logprob_token_ids": list(words), "return_tokens_as_token_ids": True}

    def read(self, choice: Mapping[str, Any], words: Sequence[int]) -> Reading:
        top = choice["logprobs"]["top_logprobs"][0]
        try:
            return Reading([float(top[f"token_id:{word}"]) for word in words], [True] * len(words))
        except KeyError as missing:
            raise BackendError(
                f"the server did not answer for {missing}: it ignores logprob_token_ids",
                "use vLLM 0.32 or newer, or backend.way = 'top-k'",
            ) from missing


@dataclass(frozen=True, slots=True)
class TopK:
    """The k most probable next tokens.

    Attributes:
        k: Length of the list.
        ids: Whether the server can key it by token ids (vLLM's ``return_tokens_as_token_ids``).
        texts: For each named word its text, where it cannot.
    """

    k: int
    ids: bool = True
    texts: Mapping[int, str] | None = None
    words: int = 10_000
    relative: bool = False

    @property
    def name(self) -> str:
        return f"top-{self.k}"

    def fields(self, words: Sequence[int]) -> dict[str, Any]:
        return {"logprobs": self.k} | ({"return_tokens_as_token_ids": True} if self.ids else {})

    def read(self, choice: Mapping[str, Any], words: Sequence[int]) -> Reading:
        top = choice["logprobs"]["top_logprobs"][0]
        if spoiled(top, self.k):
            raise Spoiled(f"the server sent {SPOILED}")
        if self.ids:
            return bounded(
                {key: float(value) for key, value in top.items()}, [f"token_id:{w}" for w in words]
            )
        texts = self.texts or {}
        return bounded(merged(top.items()), [texts[word] for word in words])


@dataclass(frozen=True, slots=True)
class Choice:
    """The grammar masks all but the label words, so a short list holds them all (vLLM, any logprobs mode).

    The grammar also permits shorter tokenisations of the words, so the list is asked for in full.
    """

    texts: Mapping[int, str]
    k: int = 20
    name: str = "structured choice"
    relative: bool = True

    @property
    def words(self) -> int:
        return self.k

    def fields(self, words: Sequence[int]) -> dict[str, Any]:
        choices = [self.texts[word] for word in words]
        return {
            "logprobs": self.k,
            "structured_outputs": {"choice": choices},
            "return_tokens_as_token_ids": True,
        }

    def read(self, choice: Mapping[str, Any], words: Sequence[int]) -> Reading:
        top = choice["logprobs"]["top_logprobs"][0]
        found = {key: float(value) for key, value in top.items() if value > NEVER}
        return bounded(found, [f"token_id:{word}" for word in words])


def way_named(name: str, k: int, texts: dict[int, str]) -> Way:
    """The way that has this name, where lists have k entries; `texts` is for a `Choice`, which reads it."""
    if name == NamedTokens().name:
        return NamedTokens()
    return Choice(texts, k) if name == Choice({}).name else TopK(k)


def merged(top: Any) -> dict[str, float]:
    """Text and log-probability pairs as a mapping; texts that come twice are added up."""
    found: dict[str, float] = {}
    for text, value in top:
        found[text] = float(np.logaddexp(found[text], value)) if text in found else float(value)
    return found


def spoiled(found: Mapping[Any, float], k: int) -> bool:
    """Whether hardly anything but -9999 is in a list of the k most probable tokens.

    So vLLM's older model runner answers where the batch held somebody's ``logprob_token_ids`` (its PR
    51789): another party's, or another program's. The next answer may be well.
    """
    usable = sum(value > NEVER for value in found.values())
    return usable < len(found) and usable < min(_FEW, k)


def bounded(found: Mapping[str, float], keys: Sequence[str]) -> Reading:
    """Values of `keys`; a missing one gets the largest value it can have.

    That is the smallest of the list, or what the list leaves of the probability 1, if that is less.
    """
    if not found:
        raise BackendError("the server sent an empty list of log-probabilities", "run fedbpt probe on it")
    rest = 1.0 - sum(math.exp(min(value, 0.0)) for value in found.values())
    bound = min(min(found.values()), math.log(max(rest, 0.0) + _REST))
    exact = [key in found for key in keys]
    return Reading([found.get(key, bound) for key in keys], exact)


def checked(readings: Sequence[Reading], n_words: int, place: str) -> tuple[Floats, Bools]:
    """Values and exactness, shape [n, T], once nothing about them is impossible.

    Raises:
        BackendError: Values that are not finite, above 0, all the same sentinel, or that sum to more
            than probability 1.
    """
    rows: Floats = np.array([r.logprobs for r in readings], dtype=np.float64).reshape(-1, n_words)
    exact: npt.NDArray[np.bool_] = np.array([r.exact for r in readings], dtype=np.bool_).reshape(-1, n_words)
    what = ""
    if not np.isfinite(rows).all():
        what = "log-probabilities that are not finite"
    elif (rows > 1e-3).any():
        what = "log-probabilities above 0"
    elif (rows <= NEVER).all(axis=1).any():
        what = "-9999 for every word"
    elif n_words > 1 and (rows == 0.0).all(axis=1).any():
        what = "0 for every word"
    elif (np.where(exact, np.exp(np.minimum(rows, 0.0)), 0.0).sum(axis=1) > 1.0 + _EXCESS).any():
        what = "probabilities that sum to more than 1"
    if what:
        raise BackendError(f"{place} returned {what}", "such answers cannot be trusted; see fedbpt probe")
    return np.maximum(rows, NEVER), exact
