"""The one seam between the tuner and a model: the `Backend` protocol.

A backend turns token-id prompts into log-probabilities of named next tokens. Nothing else in
`fedbpt_api` knows about servers. Implementations are found through the entry-point group
``fedbpt_api.backends``; see `fedbpt_api.scoring.registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost. Cached tokens are part of the prompt tokens."""

    scored: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    requests: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.scored + other.scored,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.requests + other.requests,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.scored - other.scored,
            self.prompt_tokens - other.prompt_tokens,
            self.cached_tokens - other.cached_tokens,
            self.requests - other.requests,
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of one input; the first `shared` of them will come back in other inputs."""

    ids: tuple[int, ...]
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """Answers for n prompts and T named tokens.

    Attributes:
        logprobs: Natural-log probabilities normalised over the T tokens, shape [n, T].
        exact: False where the server could only bound the value, shape [n, T].
        mass: Probability of all T tokens together, shape [n]; NaN where not measured.
        usage: What was spent.
    """

    logprobs: Floats
    exact: Bools
    mass: Floats
    usage: Usage


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Who answers: enough to tell two models or servers apart, and what they can take."""

    kind: str
    model: str
    fingerprint: str
    context: int
    max_words: int = 128
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The model's vocabulary as the prompt space needs it: texts [V] and embeddings [V, D]."""

    texts: tuple[str, ...]
    embeddings: npt.NDArray[np.float32]


class Backend(Protocol):
    """What a server must be able to do. Every method may raise `BackendError`."""

    @property
    def info(self) -> BackendInfo: ...

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`, without special tokens."""

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Text of `ids`."""

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        """Log-probabilities of the T tokens `words` right after each of n prompts."""

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        """The k most probable next tokens of each prompt, as {token id: log-probability}."""

    async def token_table(self) -> TokenTable | None:
        """Vocabulary and embedding table, or None where the model's file cannot be had."""

    async def aclose(self) -> None:
        """Give everything back. May be called twice."""
