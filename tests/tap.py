"""Listening on the line between a SuperNode and the SuperLink, and reading what was heard.

A `Tap` stands between the two and keeps every byte that passes: as it is on the wire, or, where it is given
the server's certificate, what is inside TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import threading
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

HOST = "127.0.0.1"
T = TypeVar("T")
_DATA, _PADDED = 0, 8  # HTTP/2's type of a frame with content, and the flag that it is padded
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FILE = struct.Struct("<4s2xHH8xI4xHH")  # a file's head in a zip: mark, flags, method, size, lengths of names


@contextmanager
def in_thread(manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Keep an async context manager open in a thread of its own, while this one waits for processes."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = contextlib.AsyncExitStack()
    try:
        yield asyncio.run_coroutine_threadsafe(stack.enter_async_context(manager), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass
class Tap:
    """A proxy that keeps what passes.

    Args:
        port: The server's.
        files: Folder with the certificates of `loopback.certify`, to end TLS here and begin it anew; None
            passes bytes as they are.

    Attributes:
        heard: What passed, for each connection and way ("up" to the server, "down" from it).
    """

    port: int
    files: Path | None = None
    heard: dict[tuple[int, str], bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    _connections: int = 0
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[int]:
        """Listen on a port of its own, which is given."""
        within, without = self._contexts()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._open.add(task)
            try:
                await self._pass_on(reader, writer, without)
            except (OSError, asyncio.CancelledError):
                pass  # one side has gone, or it is over
            finally:
                self._open.discard(task)

        async with await asyncio.start_server(connected, HOST, 0, ssl=within) as server:
            try:
                yield int(server.sockets[0].getsockname()[1])
            finally:
                tasks = list(self._open)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks)

    @property
    def bytes(self) -> bytes:
        """All of it, one connection and way after the other."""
        return b"\n".join(bytes(data) for data in self.heard.values())

    def _contexts(self) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
        """For those who connect here, and for the server."""
        if self.files is None:
            return None, None
        within = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        within.load_cert_chain(self.files / "server.pem", self.files / "server.key")
        without = ssl.create_default_context(cafile=str(self.files / "ca.pem"))
        for context in (within, without):
            context.set_alpn_protocols(["h2"])
        return within, without

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: ssl.SSLContext | None
    ) -> None:
        """Both ways, until one side ends."""
        self._connections += 1
        number, there = self._connections, None
        try:
            name = "localhost" if tls else None
            back, there = await asyncio.open_connection(HOST, self.port, ssl=tls, server_hostname=name)
            ways = ((reader, there, "up"), (back, writer, "down"))
            tasks = [asyncio.ensure_future(_copy(a, b, self.heard[number, way])) for a, b, way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: bytearray) -> None:
    while data := await reader.read(1 << 16):
        heard += data
        writer.write(data)
        await writer.drain()


def contents(tap: Tap) -> list[bytes]:
    """What the calls of gRPC on a decrypted line carried: for each stream and way its messages, as one."""
    found: dict[tuple[int, str, int], bytearray] = defaultdict(bytearray)
    for (connection, way), data in tap.heard.items():
        at = len(_PREFACE) if data.startswith(_PREFACE) else 0
        while at + 9 <= len(data):
            length, kind, flags = int.from_bytes(data[at : at + 3], "big"), data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            content, at = data[at + 9 : at + 9 + length], at + 9 + length
            if kind == _DATA:
                assert not flags & _PADDED
                found[connection, way, stream] += content
    return [_messages(bytes(data)) for data in found.values()]


def _messages(data: bytes) -> bytes:
    """The messages of a stream, which none of them compresses."""
    parts, at = [], 0
    while at + 5 <= len(data):
        assert data[at] == 0, "a compressed message"
        length = int.from_bytes(data[at + 1 : at + 5], "big")
        parts.append(data[at + 5 : at + 5 + length])
        at += 5 + length
    return b"".join(parts)


def unzipped(data: bytes) -> list[bytes]:
    """Files of zip archives that are somewhere in there: an app travels as one."""
    found, at = [], data.find(b"PK\x03\x04")
    while at >= 0:
        _, _, method, size, name, more = _FILE.unpack_from(data, at)
        begin = at + _FILE.size + name + more
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        found.append(inflate.decompress(data[begin:]) if method else data[begin : begin + size])
        at = data.find(b"PK\x03\x04", begin)
    return found
