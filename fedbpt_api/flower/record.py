"""A bundle as the content of one of Flower's messages."""

from __future__ import annotations

from typing import Final

from flwr.app import ConfigRecord, Message, RecordDict

_RECORD: Final = "fedbpt"
_BUNDLE: Final = "bundle"


def written(data: bytes) -> RecordDict:
    return RecordDict({_RECORD: ConfigRecord({_BUNDLE: data})})


def read(message: Message) -> bytes:
    """The bundle of a message; nothing where there is none."""
    record = message.content.get(_RECORD)
    data = record.get(_BUNDLE) if isinstance(record, ConfigRecord) else None
    return data if isinstance(data, bytes) else b""
