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
        files: Folder with the certificates of `certificates.certify`, to end TLS here and begin it anew; None
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
    """What the calls of HTTP/1.1 on a line carried, heads and bodies, none of which is compressed."""
    return [part for data in tap.heard.values() for part in _messages(bytes(data))]


def _messages(data: bytes) -> Iterator[bytes]:
    """Heads and bodies of one connection and way; what is cut off at its end is left out."""
    while data:
        head, found, data = data.partition(b"\r\n\r\n")
        if not found:
            return
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        }
        assert head.startswith((b"HTTP/1.1 ", b"POST ", b"GET ")), head[:80]
        assert fields.get(b"content-encoding", b"identity") == b"identity", head
        yield head
        if fields.get(b"transfer-encoding") == b"chunked":
            body, data = _chunks(data)
        else:
            length = int(fields.get(b"content-length", b"0"))
            body, data = data[:length], data[length:]
        yield body


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    """A body in chunks, and what follows it."""
    parts = []
    while data:
        line, _, data = data.partition(b"\r\n")
        length = int(line.partition(b";")[0], 16)
        parts.append(data[:length])
        data = data[length + 2 :]
        if not length:
            break
    return b"".join(parts), data


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
