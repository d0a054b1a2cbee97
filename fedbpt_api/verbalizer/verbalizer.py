"""The verbalizer itself: a frozen set of numbers that turns word log-probabilities into label probabilities.

    logits = scale * L + bias + weights . (X - mean) / spread

X are the log-probabilities of T named words, normalised over the T words; L are those of the labels:
the log-sum over the words of each label, normalised over the labels.

A server with a short list only bounds a word outside it. L takes the bound. X takes the words outside a
text's list for equally probable, a margin below the smallest value in it (`lowered`): what bound a word got
does not matter there, only that it is outside (benchmarks/bounds.py compares ways of doing it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fedbpt_api.scoring.backend import Bools, Floats
from fedbpt_api.scoring.losses import cross_entropy

Kind: TypeAlias = Literal["words", "bias", "weighted"]

MARGIN = 0.5
"""Nats by which words outside a list are taken to be below the smallest value in it."""

LOWEST = -60.0
"""Nats below the largest of a text's log-probabilities; those below are raised to it, a server's -inf too."""


@dataclass(frozen=True, slots=True, eq=False)
class Verbalizer:
    """From T word log-probabilities to C labels.

    Attributes:
        words: Token ids of the T words, label words first.
        groups: For each of C labels the columns of its words; no column twice.
        scale: Factor of the labels' log-probabilities.
        bias: One number a label, shape [C].
        weights: Weights of the standardised words, shape [C, T].
        mean: Subtracted from the words' log-probabilities, shape [T].
        spread: Divides them after that, shape [T].
        kind: "words": label words alone; "bias": a bias and perhaps a scale; "weighted": weights too.
        margin: The weights take words outside a list for this much below the smallest value in it, in
            nats; None where they take bounds for values: nothing was bounded when they were fitted, or
            they come from a version that did not ask.

    Raises:
        ValueError: Shapes, columns or numbers that do not fit together.
    """

    words: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    scale: float
    bias: Floats
    weights: Floats
    mean: Floats
    spread: Floats
    kind: Kind
    margin: float | None = None

    def __post_init__(self) -> None:
        t, c = len(self.words), len(self.groups)
        columns = [j for group in self.groups for j in group]
        if c < 2 or not all(self.groups) or len(set(columns)) != len(columns):
            raise ValueError("a verbalizer needs two labels or more, each with columns of its own")
        if not all(0 <= j < t for j in columns):
            raise ValueError(f"the labels' columns must be within 0..{t - 1}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown kind {self.kind!r}")
        for name, shape in (("bias", (c,)), ("weights", (c, t)), ("mean", (t,)), ("spread", (t,))):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite numbers of shape {shape}, got shape {values.shape}")
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if not np.isfinite(self.scale) or not (self.spread > 0).all():
            raise ValueError("scale must be finite and spread positive")
        if self.margin is not None and not 0 <= self.margin < np.inf:
            raise ValueError(f"margin must be at least 0 nats, got {self.margin}")

    @classmethod
    def from_words(cls, words: Sequence[int], groups: Sequence[Sequence[int]]) -> Verbalizer:
        """The label words alone: nothing is fitted."""
        return cls.from_bias(words, groups, 1.0, np.zeros(len(groups)), kind="words")

    @classmethod
    def from_bias(
        cls,
        words: Sequence[int],
        groups: Sequence[Sequence[int]],
        scale: float,
        bias: Floats,
        kind: Kind = "bias",
    ) -> Verbalizer:
        """A scale and a bias per label; the other words weigh nothing."""
        t = len(words)
        return cls(
            words=tuple(int(w) for w in words),
            groups=tuple(tuple(int(j) for j in group) for group in groups),
            scale=float(scale),
            bias=bias,
            weights=np.zeros((len(groups), t)),
            mean=np.zeros(t),
            spread=np.ones(t),
            kind=kind,
        )

    def logits(self, logprobs: npt.ArrayLike, exact: Bools | None = None) -> Floats:
        """Unnormalised label log-probabilities.

        Args:
            logprobs: Natural logarithms, shape [n, T]; normalised here over the T words.
            exact: False where they are bounds, shape [n, T]; all are values where not given.

        Returns:
            Shape [n, C].
        """
        return self.read(self.views(logprobs, exact))

    def views(self, logprobs: npt.ArrayLike, exact: Bools | None = None) -> Floats:
        """`logprobs` as the labels are read from them and, where that differs, as the weights see them.

        Returns:
            Shape [1 or 2, n, T], for `read`; the only one is `logprobs` itself.
        """
        rows = np.asarray(logprobs, dtype=np.float64)
        if self.kind != "weighted" or self.margin is None or exact is None or np.all(exact):
            return rows[None]
        return np.stack([rows, lowered(rows, exact, self.margin)])

    def read(self, views: Floats) -> Floats:
        """What `logits` gives, shape [n, C], from `views` or from something that was made of them."""
        rows = normalised(views[0], len(self.words))
        logits: Floats = self.scale * label_logprobs(rows, self.groups) + self.bias
        if self.kind == "weighted":
            seen = rows if len(views) == 1 else normalised(views[1], len(self.words))
            logits = logits + ((seen - self.mean) / self.spread) @ self.weights.T
        return logits

    def probabilities(self, logprobs: npt.ArrayLike, exact: Bools | None = None) -> Floats:
        """Label probabilities, shape [n, C]; the arguments are those of `logits`."""
        logits = self.logits(logprobs, exact)
        return np.exp(logits - log_sum(logits))

    def losses(
        self, logprobs: npt.ArrayLike, labels: npt.NDArray[np.intp], exact: Bools | None = None
    ) -> Floats:
        """Cross-entropy in nats of n texts with known labels (indices of `groups`), shape [n]."""
        return cross_entropy(self.logits(logprobs, exact), labels)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists; weights only where there are any."""
        data: dict[str, Any] = {
            "kind": self.kind,
            "words": list(self.words),
            "groups": [list(group) for group in self.groups],
            "scale": self.scale,
            "bias": self.bias.tolist(),
        }
        if self.kind == "weighted":
            data |= {name: getattr(self, name).tolist() for name in ("mean", "spread", "weights")}
        if self.margin is not None:
            data["margin"] = self.margin
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verbalizer:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: `data` is something else.
        """
        plain = cls.from_bias(
            data["words"], data["groups"], float(data["scale"]), np.array(data["bias"], dtype=np.float64)
        )
        weighted = data["kind"] == "weighted"
        return cls(
            words=plain.words,
            groups=plain.groups,
            scale=plain.scale,
            bias=plain.bias,
            weights=np.array(data["weights"], dtype=np.float64) if weighted else plain.weights,
            mean=np.array(data["mean"], dtype=np.float64) if weighted else plain.mean,
            spread=np.array(data["spread"], dtype=np.float64) if weighted else plain.spread,
            kind=data["kind"],
            margin=float(data["margin"]) if data.get("margin") is not None else None,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Verbalizer) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        arrays = (self.bias, self.weights, self.mean, self.spread)
        return (self.kind, self.words, self.groups, self.scale, self.margin, *(a.tobytes() for a in arrays))


def log_sum(values: Floats) -> Floats:
    """log(sum(exp(values))) over the last axis, which is kept with length 1."""
    top = values.max(axis=-1, keepdims=True)
    total: Floats = np.log(np.exp(values - top).sum(axis=-1, keepdims=True)) + top
    return total


def normalised(logprobs: npt.ArrayLike, width: int) -> Floats:
    """Log-probabilities [n, T] normalised over the T words.

    Raises:
        ValueError: Not n rows of `width` columns.
    """
    rows = np.asarray(logprobs, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"expected log-probabilities of shape [n, {width}], got {list(rows.shape)}")
    if not len(rows):
        return rows
    rows = np.maximum(rows, rows.max(axis=1, keepdims=True) + LOWEST)
    shares: Floats = rows - log_sum(rows)
    return shares


def lowered(rows: Floats, exact: Bools, margin: float) -> Floats:
    """`rows` [n, T] with bounds put `margin` below the smallest exact value of their row.

    A row that is nothing but bounds goes by its smallest bound.

    Raises:
        ValueError: `exact` has another shape.
    """
    if exact.shape != rows.shape:
        raise ValueError(f"expected marks of shape {list(rows.shape)}, got {list(exact.shape)}")
    if len(rows):
        rows = np.maximum(rows, rows.max(axis=1, keepdims=True) + LOWEST)  # an exact -inf is a number too
    listed = exact | ~exact.any(axis=1, keepdims=True)
    ends = np.where(listed, rows, np.inf).min(axis=1, keepdims=True)
    return np.where(exact, rows, ends - margin)


def label_logprobs(rows: Floats, groups: Sequence[Sequence[int]]) -> Floats:
    """Labels' log-probabilities [n, C]: summed over each label's words, normalised over the labels."""
    if not len(rows):
        return np.zeros((0, len(groups)))
    sums: Floats = np.concatenate([log_sum(rows[:, list(group)]) for group in groups], axis=1)
    return sums - log_sum(sums)
