"""The one seam between the tuner and a model: the `Backend` protocol.

A backend turns token-id prompts into log-probabilities of named next tokens. Nothing else in
`fedbpt_api` knows about servers. Implementations are found through the entry-point group
``fedbpt_api.backends``; see `fedbpt_api.scoring.registry`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedbpt_api.errors import BackendError

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


class PartlyAnswered(BackendError):
    """A call failed after the server had answered a part of it.

    Args:
        cause: Why it failed.
        usage: What the answered part cost.
    """

    def __init__(self, cause: BackendError, usage: Usage) -> None:
        super().__init__(cause.message, cause.hint)
        self.usage = usage


class Soft:
    """A continuous prompt: vectors that stand where the embeddings of token ids would. Never changes.

    Args:
        vectors: Shape [L, D], D the width of the model's embeddings; kept as float32.
    """

    __slots__ = ("digest", "vectors")

    def __init__(self, vectors: npt.NDArray[np.floating]) -> None:
        self.vectors: npt.NDArray[np.float32] = np.array(vectors, dtype=np.float32)
        self.vectors.setflags(write=False)
        self.digest = hashlib.blake2b(self.vectors.tobytes(), digest_size=16).digest()

    def __len__(self) -> int:
        return len(self.vectors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Soft) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One input: token ids, with a continuous prompt among them where there is one.

    Attributes:
        ids: Token ids.
        shared: How many of the first tokens will come back in other inputs.
        soft: Vectors that stand before the id at the place `at`.
        at: That place.
    """

    ids: tuple[int, ...]
    shared: int = 0
    soft: Soft | None = None
    at: int = 0

    def __len__(self) -> int:
        return len(self.ids) + (len(self.soft) if self.soft is not None else 0)


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
    """Who answers: enough to tell two models or servers apart, and what they can take.

    Attributes:
        kind: Name of the backend.
        model: Name of the model.
        fingerprint: Changes where scores may: another model, version or precision.
        context: Longest input in tokens.
        max_words: Most words that can be named in a question.
        details: More facts for the run folder, such as the way of scoring ("way") and the address ("url").
            Where one changes, scores may: answers are shared between runs only where all are equal, but for
            what is measured anew each time ("noise", "cache block", "requests of the probe").
        batch: Inputs that one call of `score` should bring.
        parallel: Calls that one client should have under way.
        soft: Whether inputs may hold a continuous prompt.
        complete: Whether every named word gets its exact value; false where only a short list comes back.
        noise: Standard deviation of a log-probability when the same is asked again, in nats.
        continues: Whether an input may end within the answer; a chat may only be able to begin a new one.
        inputs: The inputs that answering a pair for named words takes, each a scored example: for each of
            them how many tokens it has beside the pair's own.
        block: Tokens that a prefix cache keeps or drops together; 1 where it keeps every prefix, has none, or
            does not say.
        generated: Tokens that it generates, and may charge, for an answered input at most.
        learns: Whether it can only say what it has been shown: a vocabulary of pieces of text.
    """

    kind: str
    model: str
    fingerprint: str
    context: int
    max_words: int = 128
    details: dict[str, str] = field(default_factory=dict)
    batch: int = 32
    parallel: int = 1
    soft: bool = False
    complete: bool = True
    noise: float = 0.0
    continues: bool = True
    inputs: tuple[int, ...] = (0,)
    block: int = 1
    generated: int = 1
    learns: bool = False


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The model's vocabulary as the prompt space needs it: texts [V] and embeddings [V, D]."""

    texts: tuple[str, ...]
    embeddings: npt.NDArray[np.float32]


class Backend(Protocol):
    """What a server must be able to do. Every method may raise `BackendError`."""

    @property
    def info(self) -> BackendInfo: ...

    @property
    def notice(self) -> str:
        """What slows the server down just now, for people; empty while all is well."""

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
