"""An append-only file of records that survives whatever ends the process: journals are made of it.

A header line (JSON), then records: length and CRC-32 of the payload (two u32, little-endian), the payload.
Space is set aside before it is needed (`make_room`), so that an answer that has been paid for finds room on a
disk that is full by then; behind the last record the file may hold zeros. What a dying process left half
written is recognised by its checksum, and dropped.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from fedbpt_api.errors import RunFolderError

try:
    import resource
except ImportError:  # only Unix has limits that a process can raise
    resource = None  # type: ignore[assignment]

ROOM: Final = 1 << 20
"""Bytes that are set aside at a time."""

_FRAME = struct.Struct("<II")
_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_ADVICE = "make room, then go on with `fedbpt resume`; what is in it is kept"
_MANY = "allow more open files (ulimit -n): each party's journal is one, and so is each connection"
_OTHERS = 256  # files that a process has open beside journals: connections, libraries


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds.

    Attributes:
        header: Its first line.
        payloads: The records, in order, as views of one buffer.
        whole: Bytes of the header and of the whole records.
    """

    header: Mapping[str, Any]
    payloads: tuple[memoryview, ...]
    whole: int


class RecordFile:
    """A file of records open for appending.

    Args:
        path: The file. It is made where it does not exist; else what is half written at its end is cut off.
        header: Its first line; the same as the one that is there.
        whole: Bytes that are whole records (`read_records`); None for a new file.

    Raises:
        RunFolderError: It cannot be written, or is there already and should be new.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], whole: int | None = None) -> None:
        self._path = path
        self._whole = whole or 0
        self._end = self._whole  # bytes of the file, those that are set aside included
        try:
            if whole is None:
                first = orjson.dumps(header) + b"\n"
                _create(path, first)
                self._whole = self._end = len(first)
            self._file = path.open("r+b", buffering=0)
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._cut()
        except RunFolderError:
            self._file.close()
            raise

    def append(self, payload: bytes, *, sync: bool = True) -> None:
        """Add a record; with `sync` it is on disk when this returns.

        Raises:
            RunFolderError: The disk is full, or gone.
        """
        self._write(_FRAME.pack(len(payload), zlib.crc32(payload)) + payload, sync=sync)

    def make_room(self, size: int = ROOM // 2) -> None:
        """See to it that `size` more bytes can be written.

        Raises:
            RunFolderError: The disk is full, or gone.
        """
        if self._end - self._whole >= size or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._file.fileno(), self._end, size + ROOM)
        except OSError as error:
            if error.errno in _CANNOT:
                return  # this file system sets nothing aside
            raise self._failed(error) from error
        self._end += size + ROOM

    def close(self) -> None:
        """Give back what was set aside."""
        if not self._file.closed:
            try:
                self._cut()
            finally:
                self._file.close()

    def _write(self, data: bytes, *, sync: bool) -> None:
        try:
            self._file.seek(self._whole)
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._cut()  # what a failed write has left
            raise self._failed(error) from error
        self._whole += len(data)
        self._end = max(self._end, self._whole)

    def _cut(self) -> None:
        try:
            self._file.truncate(self._whole)
        except OSError as error:
            raise self._failed(error) from error
        self._end = self._whole

    def _failed(self, error: OSError) -> RunFolderError:
        advice = _MANY if error.errno in (errno.EMFILE, errno.ENFILE) else _ADVICE
        return RunFolderError(f"{self._path} cannot be written: {error.strerror}", advice)


def _create(path: Path, first: bytes) -> None:
    """Make a file with its first line, or none at all."""
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(first)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def allow_open(files: int) -> None:
    """Raise this process's own limit of open files to what so many journals take, where the system lets it.

    Many systems begin with 1,024, and allow far more to whoever asks.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files + _OTHERS if hard == resource.RLIM_INFINITY else min(files + _OTHERS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def read_records(path: Path, kind: str, version: int) -> Contents:
    """The header and the whole records of a file. A half-written last record is left out.

    Args:
        path: The file.
        kind: What its header must say under "format".
        version: The latest version that can be read.

    Raises:
        RunFolderError: It cannot be read, is something else, of a later version, or damaged before its end.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}", "is this a run folder?") from error
    line, newline, _ = data.partition(b"\n")
    try:
        header = orjson.loads(line)
    except orjson.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or header.get("format") != kind or not newline:
        raise RunFolderError(f"{path} is no {kind}", "is it the file that it is named after?")
    found = header.get("version")
    if not isinstance(found, int) or not 1 <= found <= version:
        raise RunFolderError(f"{path} is of version {found!r}", "use a newer fedbpt_api")
    view, at = memoryview(data), len(line) + 1
    payloads = []
    for payload, end in _frames(view, at, path):
        payloads.append(payload)
        at = end
    return Contents(header, tuple(payloads), at)


def _frames(view: memoryview, at: int, path: Path) -> Iterator[tuple[memoryview, int]]:
    """Payloads and where each record ends, up to the last whole one."""
    while at + _FRAME.size <= len(view):
        length, crc = _FRAME.unpack_from(view, at)
        end = at + _FRAME.size + length
        payload = view[at + _FRAME.size : end]
        if not length and not crc:
            if bytes(view[at:]).strip(b"\0"):
                raise RunFolderError(f"{path} is damaged at byte {at}", "restore it from a copy")
            return
        if len(payload) < length:
            return
        if zlib.crc32(payload) != crc:
            if bytes(view[end:]).strip(b"\0"):
                raise RunFolderError(f"{path} is damaged at byte {at}", "restore it from a copy")
            return
        yield payload, end
        at = end
