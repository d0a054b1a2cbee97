"""Several envelopes in one message: Flower takes its time for a message, however little is in it.

A count, then each envelope's length and bytes; numbers are little-endian u32.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from fedbpt_api.federation.envelope import MAX_BYTES
from fedbpt_api.federation.messages import MessageError

MOST: Final = 1024
"""Envelopes of a bundle at most."""

_NUMBER = struct.Struct("<I")


def pack(envelopes: Sequence[bytes]) -> bytes:
    """One message of envelopes; `unpack` gives them back."""
    parts = [_NUMBER.pack(len(envelopes))]
    for envelope in envelopes:
        parts += [_NUMBER.pack(len(envelope)), envelope]
    return b"".join(parts)


def unpack(data: bytes) -> list[bytes]:
    """The envelopes of a message.

    Raises:
        MessageError: It is none.
    """
    envelopes, place = [], _NUMBER.size
    try:
        (count,) = _NUMBER.unpack_from(data)
        if count > MOST:
            raise MessageError(f"a message of {count} envelopes, at most {MOST} are taken")
        for _ in range(count):
            (length,) = _NUMBER.unpack_from(data, place)
            place += _NUMBER.size
            if length > min(MAX_BYTES, len(data) - place):
                raise MessageError("an envelope is longer than its message, or than any may be")
            envelopes.append(data[place : place + length])
            place += length
    except struct.error as error:
        raise MessageError(f"a message that ends in the middle: {error}") from error
    if place != len(data):
        raise MessageError(f"a message with {len(data) - place} bytes too many")
    return envelopes
