"""What a party has answered, on disk: a server that is started again asks for nothing twice.

A run's questions follow from the answers before them, so a server that begins anew puts the same questions
in the same order; those that were answered are answered from the file, those that were not reach the party.
Each answer is on disk, and flushed, before it is used. The file holds sums, never a text.

Format: a first line, then records of a length (4 bytes), a hash of the question (16), a checksum (4) and the
answer. A record that was torn by a crash is cut off.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import defaultdict, deque
from pathlib import Path
from typing import Final

from fedbpt_api.errors import RunFolderError
from fedbpt_api.federation.remote import Exchange

_FIRST: Final = b"fedbpt answers 1\n"
_HEAD: Final = struct.Struct("<I16sI")


class Recorded:
    """An `Exchange` that keeps answers.

    Args:
        path: The file; made if there is none.
        exchange: Who is asked what the file does not know.

    Raises:
        RunFolderError: The file is of another kind, or cannot be written.
    """

    def __init__(self, path: Path, exchange: Exchange) -> None:
        self._exchange = exchange
        self._known: defaultdict[bytes, deque[bytes]] = defaultdict(deque)
        try:
            end = self._read(path.read_bytes()) if path.exists() else 0
            self._file = path.open("r+b" if end else "wb")
            self._file.truncate(end)
            self._file.seek(end)
            if not end:
                self._file.write(_FIRST)
                self._flush()
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written: {error}", "is the disk full?") from error

    async def __call__(self, question: bytes) -> bytes:
        """The answer: one from before, or the party's."""
        key = hashlib.blake2b(question, digest_size=16).digest()
        if self._known[key]:
            return self._known[key].popleft()
        answer = await self._exchange(question)
        try:
            self._file.write(_HEAD.pack(len(answer), key, zlib.crc32(key + answer)) + answer)
            self._flush()
        except OSError as error:
            raise RunFolderError(f"an answer cannot be kept: {error}", "is the disk full?") from error
        return answer

    def close(self) -> None:
        self._file.close()

    def _read(self, data: bytes) -> int:
        """Take what is whole; where it ends, 0 where not even the first line is there."""
        if not data.startswith(_FIRST):
            if _FIRST.startswith(data):  # torn before anything was answered
                return 0
            raise RunFolderError("this is no file of answers, or one of another version")
        at = len(_FIRST)
        while at + _HEAD.size <= len(data):
            length, key, check = _HEAD.unpack_from(data, at)
            answer = data[at + _HEAD.size : at + _HEAD.size + length]
            if len(answer) < length or zlib.crc32(key + answer) != check:
                break
            self._known[key].append(answer)
            at += _HEAD.size + length
        return at

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
