"""The envelope of what travels between the server and a party: a line of JSON, then bytes.

The line holds version, kind and plain fields; the bytes are a message of its own format (`messages`, or the
verbalizer's). Nothing in it names a class or a path, and what is not exactly such an envelope is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from fedbpt_api.federation.messages import MessageError

VERSION: Final = 1
"""Version of what is asked and answered; an envelope of another version is refused."""

MAX_BYTES: Final = 1 << 26
"""Most bytes of an envelope; the largest honest one brings a codebook of 10,000 words."""

MAX_ANSWER: Final = 1 << 23
"""Most bytes of an answer; the largest honest ones are sums with masks, of a few MB."""

_MAX_LINE = 1 << 20  # bytes of an answer's plain fields
_KIND = 32  # characters
_DEEPEST = 32  # lists and objects in one another


@dataclass(frozen=True, slots=True)
class Envelope:
    """A question or an answer.

    Attributes:
        kind: What it is.
        fields: Plain JSON values.
        body: Bytes of a message inside.
    """

    kind: str
    fields: Mapping[str, Any]
    body: bytes = b""


def seal(envelope: Envelope) -> bytes:
    """The envelope as bytes; `opened` gives back the same one, numbers to the bit.

    Raises:
        MessageError: A field is no plain JSON value, or it is too large.
    """
    head = {"version": VERSION, "kind": envelope.kind, "fields": envelope.fields}
    try:
        line = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError as error:
        raise MessageError(f"the message {envelope.kind} cannot be written: {error}") from error
    data = line + b"\n" + envelope.body
    if len(data) > MAX_BYTES:
        raise MessageError(
            f"the message {envelope.kind} has {len(data):,} bytes, at most {MAX_BYTES:,} travel"
        )
    return data


def opened_answer(data: bytes) -> Envelope:
    """Read an answer: as `opened`, but not as large as a question may be.

    Raises:
        MessageError: As from `opened`.
    """
    if len(data) > MAX_ANSWER or data.find(b"\n", 0, _MAX_LINE) < 0:
        raise MessageError(f"an answer of {len(data):,} bytes is too large, or does not begin as one")
    return opened(data)


def opened(data: bytes) -> Envelope:
    """Read what `seal` wrote.

    Raises:
        MessageError: It is something else, too large, or of another version.
    """
    if len(data) > MAX_BYTES:
        raise MessageError(f"a message of {len(data):,} bytes is too large, at most {MAX_BYTES:,} travel")
    line, newline, body = data.partition(b"\n")
    try:
        head = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise MessageError(f"a message does not begin with a line of JSON: {error}") from error
    if not newline or not isinstance(head, dict) or set(head) != {"version", "kind", "fields"}:
        raise MessageError("a message does not begin with version, kind and fields")
    if type(head["version"]) is not int or head["version"] != VERSION:
        raise MessageError(
            f"a message has version {head['version']!r}, but {VERSION} is understood",
            "run the same release of fedbpt_api on the server and at every party",
        )
    if _depth(head) > _DEEPEST:
        raise MessageError("a message is nested deeper than any that is sent")
    kind, fields = head["kind"], head["fields"]
    if not isinstance(kind, str) or not 0 < len(kind) <= _KIND or not isinstance(fields, dict):
        raise MessageError("the kind or the fields of a message are not what they must be")
    return Envelope(kind, fields, body)


def _depth(value: object) -> int:
    """How deep lists and objects are nested; the parser lets through more than can be shown."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner: list[object] = []
        for one in level:
            inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        level = inner
    return depth
