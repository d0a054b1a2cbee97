"""The journal: every answered request on disk before its scores are used, so that nothing paid for is lost.

One append-only file a client: a header line (JSON), then records. A record is its payload's length and CRC-32
(two u32), and the payload: how many pairs n, how many values a pair has, the usage, one 16-byte key a pair,
the values. Named words are stored as float32, exactly as the run uses them (above 0: a bound, with its sign
turned); a list of probable words as token ids (i32) and log-probabilities (float32). All numbers are
little-endian.

A key says which pair (prompt, text) with which question a value belongs to. It is a hash keyed by the
client's whole data, so no text can be read from it, or guessed without the other texts. The values are the
model's answers: who has the same model can check a guess against them, so a journal stays with its client.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import orjson

from fedbpt_api.errors import RunFolderError
from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.encode import EncodedText
from fedbpt_api.scoring.known import Rows

VERSION: Final = 1
_KEY = 16  # bytes
_FRAME = struct.Struct("<II")  # length and CRC-32 of the payload
_HEAD = struct.Struct("<BIIIIII")  # kind, pairs, values a pair, and the usage's four numbers
_NAMED, _LISTS = 0, 1

Row = npt.NDArray[np.float32]
Answer = Row | dict[int, float]


@dataclass(frozen=True, slots=True)
class Record:
    """One answered request.

    Attributes:
        keys: One a pair.
        answers: For each pair the log-probabilities of the named words [T], or {token id: log-probability}.
        usage: What it cost.
    """

    keys: tuple[bytes, ...]
    answers: tuple[Answer, ...]
    usage: Usage


class Journal:
    """A journal open for writing.

    Args:
        path: The file; it must not exist.
        secret: What keys are hashed with; see `secret_of`.

    Raises:
        RunFolderError: It exists or cannot be written.
    """

    def __init__(self, path: Path, secret: bytes) -> None:
        self._secret = secret
        self._path = path
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written: {error.strerror}") from error
        self._whole = 0  # bytes of the file that are whole records
        self._write(orjson.dumps({"format": "fedbpt-journal", "version": VERSION}) + b"\n")

    def key(self, asked: bytes, text: EncodedText) -> bytes:
        """The key of a text for a question about a prompt (`known.asked_key`): 16 bytes."""
        return hashlib.blake2b(asked + text.key, digest_size=_KEY, key=self._secret).digest()

    def append(self, keys: Sequence[bytes], answers: Rows | Sequence[Answer], usage: Usage) -> None:
        """Add an answered request; it is on disk when this returns.

        Raises:
            RunFolderError: The disk is full, or gone.
        """
        if not keys:
            return
        kind, width, values = _packed(answers)
        numbers = (usage.scored, usage.prompt_tokens, usage.cached_tokens, usage.requests)
        payload = _HEAD.pack(kind, len(keys), width, *numbers) + b"".join(keys) + values
        self._write(_FRAME.pack(len(payload), zlib.crc32(payload)) + payload)

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        try:
            self._file.seek(self._whole)
            self._file.truncate()  # what a failed write has left
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunFolderError(
                f"{self._path} cannot be written: {error.strerror}", "make room; what is in it is kept"
            ) from error
        self._whole += len(data)


def secret_of(texts: Sequence[EncodedText]) -> bytes:
    """A client's secret: a hash of all its texts, so it need not be stored anywhere."""
    digest = hashlib.blake2b(digest_size=32)
    for text in texts:
        digest.update(text.key)
    return digest.digest()


def read_journal(path: Path) -> Iterator[Record]:
    """The records of a journal, in order. A torn last one (the process died) is left out.

    Raises:
        RunFolderError: It is no journal, of a later version, or damaged before its end.
    """
    data = path.read_bytes()
    line, _, rest = data.partition(b"\n")
    try:
        header = orjson.loads(line)
    except orjson.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or header.get("format") != "fedbpt-journal":
        raise RunFolderError(f"{path} is not a journal of scores")
    if header.get("version") != VERSION:
        raise RunFolderError(f"{path} is of version {header.get('version')}", "use a newer fedbpt_api")
    at = 0
    while at + _FRAME.size <= len(rest):
        length, crc = _FRAME.unpack_from(rest, at)
        begin, end = at + _FRAME.size, at + _FRAME.size + length
        payload = rest[begin:end]
        if len(payload) < length:
            return
        if zlib.crc32(payload) != crc:
            if end == len(rest):
                return
            raise RunFolderError(f"{path} is damaged at byte {len(line) + 1 + at}", "restore it from a copy")
        yield _unpacked(payload)
        at = end


def _packed(answers: Rows | Sequence[Answer]) -> tuple[int, int, bytes]:
    """Kind, values a pair (0 where lists say it themselves), and the values as bytes."""
    if isinstance(answers, np.ndarray) and answers.dtype != object:
        return _NAMED, answers.shape[1], answers.astype("<f4").tobytes()
    rows = [answer for answer in answers if isinstance(answer, np.ndarray)]
    if len(rows) == len(answers):
        return _NAMED, len(rows[0]), np.asarray(rows, dtype="<f4").tobytes()
    return _LISTS, 0, b"".join(_packed_list(a) for a in answers if isinstance(a, dict))


def _packed_list(found: Mapping[int, float]) -> bytes:
    tokens = np.fromiter(found.keys(), dtype="<i4", count=len(found))
    values = np.fromiter(found.values(), dtype="<f4", count=len(found))
    return struct.pack("<I", len(found)) + tokens.tobytes() + values.tobytes()


def _unpacked(payload: bytes) -> Record:
    kind, pairs, width, *usage = _HEAD.unpack_from(payload)
    at = _HEAD.size + pairs * _KEY
    keys = tuple(payload[i : i + _KEY] for i in range(_HEAD.size, at, _KEY))
    answers: list[Answer] = []
    if kind == _NAMED:
        answers += list(np.frombuffer(payload, "<f4", pairs * width, at).reshape(pairs, width))
    else:
        for _ in range(pairs):
            (count,) = struct.unpack_from("<I", payload, at)
            tokens = np.frombuffer(payload, "<i4", count, at + 4)
            values = np.frombuffer(payload, "<f4", count, at + 4 + 4 * count)
            answers.append(dict(zip(tokens.tolist(), values.tolist(), strict=True)))
            at += 4 + 8 * count
    return Record(keys, tuple(answers), Usage(*usage))
