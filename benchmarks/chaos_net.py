"""Processes of a federation that can be killed, frozen and cut off, and the stub that answers its parties.

Part of `chaos.py`. A party's tree is its process, its SuperNode and what that has started. Between each
SuperNode and the SuperLink stands a proxy that can cut its connections, or hold what they carry.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedbpt_api.flower.certificates import HOST, free_port
from fedbpt_api.flower.link import NAME
from fedbpt_api.flower.loopback import Loopback

ROOT: Final = Path(__file__).resolve().parents[1]
_STUB = '''"""The toy model of the tests as a backend that takes its time, and writes down what it answers."""

import asyncio
import hashlib
import os
import sys

import fedbpt_api
from toy import ToyBackend


class Logged(ToyBackend):
    def __init__(self, log, wait):
        super().__init__()
        self._log, self._wait = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), wait
        self._write([f"package {fedbpt_api.__file__}"])

    def _write(self, lines):
        os.write(self._log, "".join(f"{line}\\n" for line in lines).encode())

    def _answered(self, kind, prompts):
        hashes = [hashlib.blake2b(repr((kind, p.ids)).encode(), digest_size=12).hexdigest() for p in prompts]
        self._write(f"pair {one}" for one in hashes)

    async def score(self, prompts, words):
        await asyncio.sleep(self._wait)
        scores = await super().score(prompts, words)
        self._answered(tuple(words), prompts)
        return scores

    async def top_words(self, prompts, k):
        await asyncio.sleep(self._wait)
        found = await super().top_words(prompts, k)
        self._answered(k, prompts)
        return found


async def open_backend(log="", wait=0.0):
    return Logged(log or os.devnull, wait)
'''


def write_stub(folder: Path) -> str:
    """The stub as an installed backend called ``stub``; PYTHONPATH of processes that are to have it."""
    info = folder / "chaos_stub-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (folder / "chaos_stub.py").write_text(_STUB)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos-stub\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fedbpt_api.backends]\nstub = chaos_stub:open_backend\n")
    return os.pathsep.join(map(str, (ROOT, ROOT / "backends", ROOT / "tests", folder)))


# Processes --------------------------------------------------------------------------------------


def environment_of(pid: int) -> bytes:
    """A process's environment; nothing where it has ended, or is another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def command_of(pid: int) -> str:
    """Its command line; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def marked(mark: str) -> list[int]:
    """Processes that have the mark in their environment."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and mark.encode() in environment_of(pid)]


def send(pids: list[int], how: signal.Signals) -> None:
    """A signal to processes, those that have ended by now left out."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)


@dataclass
class Net(Loopback):
    """A loopback federation whose parties can be struck.

    Attributes:
        proxies: Of each party.
        configs: Files of each party's settings and of its key.
        runs: How often the coordinator was started.
    """

    proxies: dict[str, Proxy] = field(default_factory=dict)
    configs: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    runs: int = 0

    def __post_init__(self) -> None:
        self.mark = f"CHAOS_RUN={self.folder}"
        self.environment = {**self.environment, "CHAOS_RUN": str(self.folder)}

    def __exit__(self, *error: object) -> None:
        try:
            super().__exit__(None, None, None)
        finally:
            for proxy in self.proxies.values():
                proxy.close()
            send(marked(self.mark), signal.SIGKILL)

    def join(self, name: str, config: Path) -> None:
        """Register a party, and start it behind a proxy."""
        self.configs[name] = config, self.register(name)
        self.proxies[name] = Proxy(self.port)
        self.begin(name)

    def begin(self, name: str) -> None:
        """Start a party, for the first time or again."""
        if name in self.processes:
            self.stop(name, signal.SIGKILL)
        before, self.environment = self.environment, {**self.environment, "CHAOS_PARTY": name}
        self.party(name, *self.configs[name], address=f"{HOST}:{self.proxies[name].port}")
        self.environment = before

    def tree(self, name: str) -> list[int]:
        """A party's processes."""
        ours = set(marked(self.mark))
        return [pid for pid in marked(f"CHAOS_PARTY={name}\0") if pid in ours]

    def supernode(self, name: str) -> list[int]:
        """A party's SuperNode and what it has started: all but the party's own process."""
        return [pid for pid in self.tree(name) if pid != self.processes[name].pid]

    def coordinate(self, app: Path) -> None:
        """Start the run, or go on with it; not waited for."""
        self.runs += 1
        self.start(f"run{self.runs}", "flwr", "run", str(app), NAME, "--stream")

    @property
    def coordinating(self) -> bool:
        """Whether the run that was started last is still there."""
        return self.processes[f"run{self.runs}"].poll() is None

    def end_run(self) -> None:
        """End what waits for the run's end."""
        if f"run{self.runs}" in self.processes:
            self.stop(f"run{self.runs}")

    def server_apps(self) -> list[int]:
        """The coordinator's own processes."""
        return [pid for pid in marked(self.mark) if "flwr-serverapp" in command_of(pid)]


# The network ------------------------------------------------------------------------------------


class Proxy:
    """Carries connections to a port of this machine, on a thread of its own.

    Args:
        target: The port.
    """

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._all: list[asyncio.StreamWriter] = []  # to the end, so that each is closed before its loop
        self._open, self._flowing = True, asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._carry, HOST, self.port)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()

    def cut(self) -> None:
        """End all connections, and take no more until `mend`."""
        self._loop.call_soon_threadsafe(self._cut)

    def stall(self) -> None:
        """Hold what the connections carry until `mend`."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def mend(self) -> None:
        """Carry everything again."""
        self._loop.call_soon_threadsafe(self._mend)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._all:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._all), return_exceptions=True)

    def _cut(self) -> None:
        self._open = False
        for writer in self._writers:
            writer.transport.abort()

    def _mend(self) -> None:
        self._open = True
        self._flowing.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._all.append(writer)
        if not self._open:
            await reader.read(1)  # the first of TLS's handshake, which then ends
            writer.close()
            return
        try:
            there, back = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        self._all.append(back)
        self._writers |= {writer, back}
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        self._writers -= {writer, back}

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side ended it, or `cut`
        finally:
            sink.close()


@contextlib.contextmanager
def nothing_left(mark: str) -> Iterator[None]:
    """See to it that no process with the mark outlives this.

    Raises:
        RuntimeError: One does.
    """
    try:
        yield
    finally:
        send(marked(mark), signal.SIGKILL)
        end = time.monotonic() + 10
        while (left := marked(mark)) and time.monotonic() < end:
            time.sleep(0.1)
        if left:
            raise RuntimeError(f"processes are left: {[command_of(pid) for pid in left]}")
