"""A party's process from start to end: its socket, and beside it the SuperNode that dials out for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fedbpt_api.errors import RunFolderError
from fedbpt_api.federation.host import Host
from fedbpt_api.flower.node import listen
from fedbpt_api.flower.supernode import keep
from fedbpt_api.flower.switches import program_of
from fedbpt_api.run.node import NodeSettings, open_task

_LONGEST = 100  # bytes of a socket's path that every system takes


@dataclass(frozen=True, slots=True)
class Link:
    """How a SuperNode reaches the SuperLink.

    Attributes:
        address: The SuperLink's HOST:PORT.
        certificates: File of the authority that vouches for it; None for the system's.
        key: File of the node's private key; None where nodes need none.
        options: More of `flower-supernode`'s options, as they are.
    """

    address: str
    certificates: Path | None = None
    key: Path | None = None
    options: Sequence[str] = ()

    def command(self, party: Path) -> list[str]:
        """What starts the SuperNode of a party that listens there."""
        words = [program_of("flower-supernode"), "--superlink", self.address]
        if self.certificates is not None:
            words += ["--root-certificates", str(self.certificates)]
        if self.key is not None:
            words += ["--auth-supernode-private-key", str(self.key)]
        return [*words, "--node-config", f'party="{party}"', *self.options]


async def run_party(node: NodeSettings, link: Link | None, tell: Callable[[str], None]) -> None:
    """Answer for a party until the process is asked to end.

    Args:
        node: Its settings.
        link: How its SuperNode is started; None where that is somebody else's business.
        tell: Called with lines for people.

    Raises:
        FedbptError: Its SuperNode ended again and again.
        RunFolderError: Another process answers for it already.
    """
    node.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(node.folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunFolderError(f"{node.folder} is in use by another process", "end that one first") from None
    host = Host(node.name, lambda told: open_task(node, told))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    try:
        with contextlib.ExitStack() as stack:
            path = node.folder / "party.sock"
            if len(os.fsencode(path)) > _LONGEST:
                short = stack.enter_context(tempfile.TemporaryDirectory(prefix="fedbpt-"))
                path = Path(short) / "party.sock"
            server = await listen(path, host.answer)
            tell(f"{node.name} answers at {path}")
            try:
                if link is None:
                    await ended.wait()
                else:
                    await keep(link.command(path), node.folder / "supernode.pid", ended, tell)
            finally:
                server.close()
                path.unlink(missing_ok=True)
    finally:
        await host.aclose()
        lock.release()
