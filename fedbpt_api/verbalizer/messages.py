"""What travels while a verbalizer is fitted: sums over a client's texts, never a text or its label.

A message is one line of JSON (version, kind, plain fields, names, types and shapes of its arrays), a
line break, and the arrays' little-endian numbers. There is no field for the numbers of one text; the sums
of a client that holds one text are that text's, which is why clients should hold more than a few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from fedbpt_api.verbalizer.problem import FitError

VERSION: Final = 3
_TYPES: Final = ("<f8", "<f4", "<i4")
_MAX_DIMENSIONS: Final = 2
_MAX_NUMBERS: Final = 1 << 22

Numbers: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class WordSums:
    """Client: the words that vary most over its texts.

    Attributes:
        tokens: Token ids, shape [k].
        sums: Their squared deviations summed over the client's texts, shape [k].
    """

    tokens: Numbers
    sums: Numbers

    @classmethod
    def of(cls, pairs: tuple[tuple[int, float], ...]) -> WordSums:
        """From what `word_sums` gives."""
        return cls(
            np.array([t for t, _ in pairs], dtype=np.int32), np.array([s for _, s in pairs], dtype=np.float32)
        )

    def pairs(self) -> tuple[tuple[int, float], ...]:
        """As `merge_words` takes it."""
        return tuple((int(t), float(s)) for t, s in zip(self.tokens, self.sums, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class AskMoments:
    """Server: send counts and, where `scatter` is set, means and products."""

    scatter: bool


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Client: what its texts add to counts, means and covariances.

    Attributes:
        labels: Texts of each label, shape [C].
        logits: Label log-probabilities summed, shape [C].
        means: Mean log-probabilities of each label's texts, 0 where it has none, shape [C, T]; T is 0 where
            they were not asked for.
        scatter: Products of deviations from its label's mean, summed: upper triangle, [T (T + 1) / 2].
        bounded: How many of its n T log-probabilities are bounds.
    """

    labels: Numbers
    logits: Numbers
    means: Numbers
    scatter: Numbers
    bounded: int


@dataclass(frozen=True, slots=True, eq=False)
class Begin:
    """Server: what all texts add up to; losses, gradients and curvature are wanted at the start.

    Each strength of shrinkage makes a design of its own; design 0 has no discriminant scores.

    Attributes:
        labels: Texts of each label, shape [C].
        centre: Mean label log-probabilities of all texts, shape [C].
        means: Mean log-probabilities of each label's texts, shape [C, T].
        covariance: Of log-probabilities within labels: upper triangle, [T (T + 1) / 2].
        strengths: Of designs 1, 2, ..., shape [R].
        thetas: Parameters at which the sums of each design are wanted, shape [R + 1, p].
    """

    labels: Numbers
    centre: Numbers
    means: Numbers
    covariance: Numbers
    strengths: Numbers
    thetas: Numbers


@dataclass(frozen=True, slots=True, eq=False)
class AskSums:
    """Server: the sums of M models are wanted.

    Attributes:
        designs: The design of each model, shape [M].
        thetas: Parameters, shape [M, p].
    """

    designs: Numbers
    thetas: Numbers


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Client: sums over its texts.

    Attributes:
        losses: Nats, shape [M].
        gradients: Shape [M, p].
        curvature: Second derivatives, upper triangles, [M, p (p + 1) / 2].
    """

    losses: Numbers
    gradients: Numbers
    curvature: Numbers


@dataclass(frozen=True, slots=True, eq=False)
class AskCross:
    """Server: losses of texts under models fitted without them are wanted; see `regression.left_out`.

    Attributes:
        designs: The design of each of K models, shape [K].
        thetas: Their parameters, shape [K, p].
        free: 1 for those that are fitted, shape [K, p].
        pulls: The penalty's gradients, shape [K, p].
        curvature: A of `regression.left_out`, upper triangles, [K, p (p + 1) / 2].
    """

    designs: Numbers
    thetas: Numbers
    free: Numbers
    pulls: Numbers
    curvature: Numbers


@dataclass(frozen=True, slots=True, eq=False)
class Cross:
    """Client: cross-validated losses, summed over its texts; first come the label words alone.

    Attributes:
        n: Its texts.
        sums: Nats, shape [K + 1].
        products: Of two models' losses on the same text, summed, shape [K + 1, K + 1].
        gradients: Of the summed loss of all its texts at each model's parameters, shape [K, p].
    """

    n: int
    sums: Numbers
    products: Numbers
    gradients: Numbers


Message: TypeAlias = WordSums | AskMoments | Moments | Begin | AskSums | Sums | AskCross | Cross

_CLASSES: Final[dict[str, type[Message]]] = {
    cls.__name__: cls for cls in (WordSums, AskMoments, Moments, Begin, AskSums, Sums, AskCross, Cross)
}


def encode(message: Message) -> bytes:
    """The message as bytes; `decode` gives back the same numbers."""
    plain: dict[str, int | bool] = {}
    shapes: dict[str, list[str | int]] = {}
    parts: list[bytes] = []
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(value, np.ndarray):
            kind = "<i4" if value.dtype.kind == "i" else "<f4" if value.dtype == np.float32 else "<f8"
            shapes[field.name] = [kind, *value.shape]
            parts.append(value.astype(kind).tobytes())
        else:
            plain[field.name] = value
    header = {"version": VERSION, "kind": type(message).__name__, **plain, "arrays": shapes}
    return b"".join([orjson.dumps(header), b"\n", *parts])


def decode(data: bytes) -> Message:
    """Read what `encode` wrote.

    Raises:
        FitError: Anything else: another version, unknown kind, missing fields, wrong length, NaN.
    """
    line, newline, body = data.partition(b"\n")
    try:
        header = orjson.loads(line)
        if not newline or header["version"] != VERSION:
            raise ValueError(f"version {header['version']!r}, this one reads {VERSION}")
        cls = _CLASSES[header["kind"]]
        arrays = {f.name for f in fields(cls) if f.type == "Numbers"}
        values = {f.name: header[f.name] for f in fields(cls) if f.name not in arrays}
        if set(header["arrays"]) != arrays or not all(isinstance(v, int) for v in values.values()):
            raise ValueError("fields of other names or types than this version writes")
        for name, (kind, *shape) in header["arrays"].items():
            values[name], body = _array(kind, shape, body)
        if body:
            raise ValueError(f"{len(body)} bytes too many")
        return cls(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FitError(
            f"this is no message of a verbalizer's fit: {type(error).__name__} {error}",
            "do client and server run the same version of fedbpt_api?",
        ) from error


def _array(kind: str, shape: list[int], body: bytes) -> tuple[Numbers, bytes]:
    """An array and the bytes after it."""
    if (
        kind not in _TYPES
        or len(shape) > _MAX_DIMENSIONS
        or not all(isinstance(k, int) and 0 <= k <= _MAX_NUMBERS for k in shape)
    ):
        raise ValueError(f"array type {kind!r} with shape {shape!r}")
    count = math.prod(shape)
    length = count * np.dtype(kind).itemsize
    if count > _MAX_NUMBERS or length > len(body):
        raise ValueError("arrays longer than the message")
    values: Numbers = np.frombuffer(body[:length], dtype=kind).reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError("a number that is not finite")
    return values, body[length:]
