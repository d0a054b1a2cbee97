"""A coordinator's process: a SuperLink that only this machine reaches, and the gate that parties do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
import uvicorn

from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.flower.certificates import CERTIFICATES, HOST, certify, free_port, given, tls_options
from fedbpt_api.flower.gate import gate
from fedbpt_api.flower.supernode import keep
from fedbpt_api.flower.switches import program_of

_SECONDS = 300.0  # that the SuperLink may take for an answer
_LOOK = 0.1  # seconds between looks whether it listens

NAME: Final = "here"
"""Of the SuperLink in the folder's configuration of Flower."""


async def run_link(
    folder: Path, host: str, port: int, certificate: Path, key: Path, tell: Callable[[str], None]
) -> None:
    """Serve until the process is told to end.

    Args:
        folder: Where the SuperLink's state, its own certificate and Flower's configuration are.
        host: Address that the gate listens on.
        port: Its port.
        certificate: What it shows to parties: the certificate, and those between it and who vouches for it.
        key: The certificate's private key.
        tell: Called with lines for people.

    Raises:
        ConfigError: Certificate and key cannot be read, or do not belong together.
        FedbptError: The port is taken; the SuperLink cannot be started, or ended ten times in a row.
    """
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{certificate} and {key} are no certificate and its key: {error}", "both are PEM files"
        ) from error
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise FedbptError(
            f"nothing can listen on {host}:{port}: {error.strerror}",
            "another --port, or end what listens there",
        ) from error
    folder = folder.resolve()
    certify(folder / "inner")
    authority = folder / "inner" / CERTIFICATES["ca"]
    inner = free_port()
    write_connection(folder / "flwr", f"{HOST}:{inner}", authority)
    options = {
        "host": HOST,
        "port": inner,
        "database": folder / "superlink.db",
        **tls_options(folder / "inner"),
    }
    command = [program_of("flower-superlink"), "--enable-supernode-auth", *given(options)]
    trusted = ssl.create_default_context(cafile=str(authority))
    superlink = httpx.AsyncClient(
        base_url=f"https://{HOST}:{inner}", verify=trusted, timeout=_SECONDS, trust_env=False
    )
    server = uvicorn.Server(
        uvicorn.Config(
            gate(superlink),
            host=host,
            port=port,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
    )
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # while it serves, uvicorn's, which passes them on
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    environment = {**os.environ, "FLWR_HOME": str(folder / "flwr")}
    kept = asyncio.create_task(
        keep(command, folder / "superlink.pid", ended, tell, what="SuperLink", environment=environment)
    )
    try:
        if await _listens(inner, kept):
            kept.add_done_callback(lambda task: setattr(server, "should_exit", True))
            tell(f"parties are let in at {host}:{port}; on this machine: export FLWR_HOME={folder / 'flwr'}")
            with contextlib.suppress(SystemExit):  # uvicorn's, where the port is taken
                await server.serve()
            if not server.started:
                raise FedbptError(
                    f"nothing can listen on {host}:{port}", "is something else listening there?"
                )
    finally:
        ended.set()
        await kept


async def _listens(port: int, kept: asyncio.Task[None]) -> bool:
    """Wait until something on this machine listens on a port; False where nothing will."""
    while not kept.done():
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, port)
            writer.close()
            return True
        await asyncio.sleep(_LOOK)
    return False


def write_connection(home: Path, address: str, authority: Path) -> None:
    """Flower's configuration for its commands on this machine."""
    home.mkdir(exist_ok=True)
    lines = [
        "[superlink]",
        f'default = "{NAME}"',
        f"[superlink.{NAME}]",
        f'address = "{address}"',
        f'root-certificates = "{authority}"',
    ]
    (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
