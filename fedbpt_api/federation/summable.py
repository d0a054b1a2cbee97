"""A party's answers as rows of numbers that can be added up over parties, and what the sum says.

Most answers are sums over texts already. Means of a label's texts become sums again, and products of
deviations from a party's own means become products themselves; the sum is turned back into what one party
with all texts would have answered. The layout of a row (kinds and shapes, no value) travels in the open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

import numpy as np

from fedbpt_api.federation import plain
from fedbpt_api.federation.envelope import Envelope
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.federation.tally import Ints
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer import decode, encode
from fedbpt_api.verbalizer.discriminant import triangle
from fedbpt_api.verbalizer.messages import Cross, Message, Moments, Sums

Layout = list[Any]
"""[kind, and for each part its name and shape]."""

_PAIRED = ("both", "wins", "losses", "neither")
_MESSAGES: Mapping[str, type[Moments | Sums | Cross]] = {c.__name__: c for c in (Moments, Sums, Cross)}
_COUNTS = {"labels", "n", "bounded"}


def packed(answer: Envelope, size: int = 0) -> tuple[Layout, Floats]:
    """An answer's layout and its numbers.

    Args:
        answer: Of a question about the party's texts.
        size: For sums of words: numbers of tokens, each of which gets a place.

    Raises:
        MessageError: It is none that can be added up.
    """
    kind, told = answer.kind, answer.fields
    match kind:
        case "sums":
            return [kind], np.array([told["n"], told["loss"], told["correct"]], dtype=np.float64)
        case "joint losses":
            return [kind], np.array(told["losses"], dtype=np.float64)
        case "word sums":
            pairs = told["pairs"]
            row = np.zeros(size)
            if pairs and max(token for token, _ in pairs) >= size:
                raise MessageError(f"a token beyond the {size:,} that were asked about")
            row[[token for token, _ in pairs]] = [total for _, total in pairs]
            return [kind], row
        case "tally":
            methods, rivals = told["confusions"], told["paired"]
            rows = [np.array(counts, dtype=np.float64).ravel() for counts in methods.values()]
            rows += [np.array([counts[name] for name in _PAIRED], float) for counts in rivals.values()]
            labels = len(next(iter(methods.values())))
            return [kind, labels, list(methods), list(rivals)], np.concatenate(rows)
        case "moments":
            both = [_packed(decode(part)) for part in _halves(answer)]
            return [kind, *(layout for layout, _ in both)], np.concatenate([row for _, row in both])
        case "fit message":
            layout, row = _packed(decode(answer.body))
            return [kind, layout], row
    raise MessageError(f"an answer of kind {kind!r} cannot be added up")


@plain.reading
def unpacked(layout: Layout, row: Floats) -> Envelope:
    """What one party with all texts would have answered.

    Raises:
        MessageError: The layout is none, or does not fit the row.
    """
    kind, *parts = layout
    match kind:
        case "sums":
            n, loss, correct = row.tolist()
            return Envelope(kind, {"n": round(n), "loss": loss, "correct": round(correct)})
        case "joint losses":
            return Envelope(kind, {"losses": np.maximum(row, 0.0).tolist()})
        case "word sums":
            tokens = np.flatnonzero(row > 0)
            return Envelope(kind, {"pairs": [[int(token), float(row[token])] for token in tokens]})
        case "tally":
            labels, methods, rivals = parts
            return Envelope(kind, _tally(labels, methods, rivals, np.rint(row).astype(np.int64)))
        case "moments":
            first, second = parts
            cut = _length(first)
            body = encode(_unpacked(first, row[:cut]))
            return Envelope(kind, {"plain": len(body)}, body + encode(_unpacked(second, row[cut:])))
        case "fit message":
            return Envelope(kind, {}, encode(_unpacked(parts[0], row)))
    raise ValueError(f"a layout of kind {kind!r}")


def _halves(answer: Envelope) -> tuple[bytes, bytes]:
    """The two messages that a fit may begin with."""
    length = plain.to_length(answer.fields.get("plain"), len(answer.body))
    return answer.body[:length], answer.body[length:]


def _tally(labels: int, methods: list[str], rivals: list[str], counts: Ints) -> dict[str, Any]:
    """Counts of each method, [C, C], and four of each rival."""
    if counts.size != len(methods) * labels**2 + len(rivals) * len(_PAIRED):
        raise ValueError(f"{counts.size} counts are no tally")
    cut = len(methods) * labels**2
    tables = counts[:cut].reshape(len(methods), labels, labels).tolist()
    paired = [dict(zip(_PAIRED, row, strict=True)) for row in counts[cut:].reshape(len(rivals), -1).tolist()]
    return {
        "confusions": dict(zip(methods, tables, strict=True)),
        "paired": dict(zip(rivals, paired, strict=True)),
    }


def _packed(message: Message) -> tuple[Layout, Floats]:
    """A message of a fit; its layout is [kind, [name, shape], ...]."""
    if not isinstance(message, Moments | Sums | Cross):
        raise MessageError(f"{type(message).__name__} cannot be added up")
    values: dict[str, Floats] = {
        field.name: np.asarray(getattr(message, field.name), dtype=np.float64) for field in fields(message)
    }
    if isinstance(message, Moments):
        counts = values["labels"][:, None]
        values["scatter"] = values["scatter"] + _outer(counts, values["means"])
        values["means"] = values["means"] * counts
    shapes = [[name, list(value.shape)] for name, value in values.items()]
    return [type(message).__name__, *shapes], np.concatenate([value.ravel() for value in values.values()])


def _unpacked(layout: Layout, row: Floats) -> Moments | Sums | Cross:
    """The message that a sum of rows stands for."""
    kind, *shapes = layout
    cls = _MESSAGES[kind]
    if [name for name, _ in shapes] != [field.name for field in fields(cls)] or _length(layout) != row.size:
        raise ValueError(f"a layout that does not fit {kind}, or {row.size} numbers")
    ends = list(accumulate(_size(shape) for _, shape in shapes))
    values: dict[str, Any] = {
        name: part.reshape(shape)
        for (name, shape), part in zip(shapes, np.split(row, ends[:-1]), strict=True)
    }
    if cls is Moments:
        counts = np.maximum(np.rint(values["labels"]), 1)[:, None]
        values["means"] = values["means"] / counts
        values["scatter"] = values["scatter"] - _outer(np.rint(values["labels"])[:, None], values["means"])
    for name in _COUNTS & set(values):
        rounded = np.rint(values[name]).astype(np.intp)
        values[name] = rounded if rounded.ndim else int(rounded)
    return cls(**values)


def _outer(counts: Floats, means: Floats) -> Floats:
    """Products of label means, counted as often as there are texts: upper triangle, [T (T + 1) / 2]."""
    return np.asarray(((counts * means).T @ means)[triangle(means.shape[1])])


def _length(layout: Layout) -> int:
    return sum(_size(shape) for _, shape in layout[1:])


def _size(shape: Sequence[int]) -> int:
    return int(np.prod([plain.whole(k) for k in shape], dtype=np.int64))
