"""Bringing a bundle to the party's process and its answers back.

Flower starts a process for every message; so this imports next to nothing.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final

from fedbpt_api.errors import FedbptError

LENGTH: Final = struct.Struct("<Q")
"""In front of a bundle: its bytes."""


def ask(path: Path, data: bytes) -> bytes:
    """Bring a bundle to the party at a socket, and its answers back.

    Raises:
        FedbptError: Nobody is there, or it ended before it had answered.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(LENGTH.pack(len(data)) + data)
            (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
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
