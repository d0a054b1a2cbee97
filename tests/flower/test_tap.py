"""What the wire capture hears: everything, as it is on the wire and inside TLS."""

from __future__ import annotations

import asyncio
import http.client
import io
import ssl
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fedbpt_api.flower.certificates import certify
from tap import HOST, Tap, contents, in_thread, unzipped


def archive(name: str, text: bytes) -> bytes:
    """A zip of one file."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, text)
    return data.getvalue()


@asynccontextmanager
async def echo(folder: Path) -> AsyncIterator[int]:
    """A server with TLS that sends what it gets back, half of it in chunks; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                parts = (body[: length // 2], body[length // 2 :], b"")
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for part in parts:
                    writer.write(b"%x\r\n" % len(part) + part + b"\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # they have gone
        finally:
            writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    async with await asyncio.start_server(answer, HOST, 0, ssl=context) as server:
        yield int(server.sockets[0].getsockname()[1])


def test_what_is_said_is_heard_inside_tls_and_not_on_the_wire(tmp_path: Path) -> None:
    certify(tmp_path)
    said = [b"a secret of some length " * 1000, archive("app/task.toml", b"parties = 3 " * 100)]
    with in_thread(echo(tmp_path)) as port:
        inside = Tap(port, tmp_path)
        with in_thread(inside.listen()) as through:
            wire = Tap(through)
            with in_thread(wire.listen()) as dialled:
                trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
                caller = http.client.HTTPSConnection(HOST, dialled, context=trusted, timeout=20)
                for body in said:
                    caller.request("POST", "/", body)
                    assert caller.getresponse().read() == body
                caller.close()
    carried = contents(inside)
    assert [carried.count(body) for body in said] == [2, 2]  # there and back
    assert [file for part in carried for file in unzipped(part)] == [b"parties = 3 " * 100] * 2
    assert b"secret" in inside.bytes and b"secret" not in wire.bytes and b"POST" not in wire.bytes
    assert len(wire.bytes) > len(inside.bytes)
