"""A party's process: it holds texts, keys and model server, and answers at a socket of its own user.

Flower starts an app anew for every message, and keeps what it says and reads; so the app only carries
envelopes (`flower.client`), and the party stays here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.flower.bundle import pack, unpack
from fedbpt_api.flower.carry import LENGTH

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
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            if length > _LIMIT:
                raise MessageError(f"a bundle of {length:,} bytes")
            data = pack([await answer(one) for one in unpack(await reader.readexactly(length))])
            writer.write(LENGTH.pack(len(data)) + data)
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
