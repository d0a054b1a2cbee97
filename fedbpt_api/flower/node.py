"""A party's process: it holds texts, keys and model server, and answers at a socket of its own user.

Flower starts an app anew for every message, and keeps what it says and reads; so the app only carries
envelopes (`flower.apps`), and the party stays here.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.flower.bundle import pack, unpack

_LENGTH: Final = struct.Struct("<Q")
_LIMIT: Final = 1 << 30  # bytes of a bundle


async def listen(path: Path, answer: Callable[[bytes], Awaitable[bytes]]) -> asyncio.Server:
    """Answer bundles at a socket.

    Args:
        path: The socket's; whatever is left there by a process that died is removed.
        answer: Answers an envelope.

    Raises:
        FedbptError: There can be no socket there.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if length > _LIMIT:
                raise MessageError(f"a bundle of {length:,} bytes")
            data = pack([await answer(one) for one in unpack(await reader.readexactly(length))])
            writer.write(_LENGTH.pack(len(data)) + data)
            await writer.drain()
        except (MessageError, asyncio.IncompleteReadError, ConnectionError):
            pass  # whoever asks sees that there is no answer
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    try:
        server = await asyncio.start_unix_server(serve, path)
        path.chmod(0o600)
    except OSError as error:
        raise FedbptError(
            f"there can be no socket at {path}: {error}", "name a folder with a shorter path"
        ) from error
    return server


def ask(path: Path, data: bytes) -> bytes:
    """Bring a bundle to the party at a socket, and its answers back.

    Raises:
        FedbptError: Nobody is there, or it ended before it had answered.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(_LENGTH.pack(len(data)) + data)
            (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
            return _exactly(connection, length)
    except OSError as error:
        raise FedbptError(f"no party at {path}: {error}", "start it: fedbpt flower node NODE.toml") from error


def _exactly(connection: socket.socket, count: int) -> bytes:
    """So many bytes.

    Raises:
        ConnectionError: There are fewer.
    """
    parts: list[bytes] = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionError("it has ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
