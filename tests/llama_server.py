"""A real llama.cpp server with the default model, in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedbpt_backends import models

_SERVER = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port = sys.argv[1], int(sys.argv[3])
p.n_parallel, p.n_ctx, p.n_batch, p.n_ubatch = 2, 2 * int(sys.argv[2]), 256, 256
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.verbosity, p.warmup, p.cache_ram_mib, p.cache_idle_slots = -1, False, 0, False
p.endpoint_metrics = sys.argv[4] == "True"
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def start(context: int = 256, *, metrics: bool = False, port: int = 0) -> subprocess.Popen[str]:
    """The server's process, listening; it ends when its standard input is closed."""
    path = str(models.find(models.DEFAULT))
    command = [sys.executable, "-c", _SERVER, path, str(context), str(port), str(metrics)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def address(child: subprocess.Popen[str]) -> str:
    """Where it listens, once it does."""
    assert child.stdout is not None
    return child.stdout.readline().strip()


@contextmanager
def serve(context: int = 256, *, metrics: bool = False) -> Iterator[str]:
    """Its address, on a port of its choice; two slots of `context` tokens each."""
    with start(context, metrics=metrics) as child:
        assert child.stdin is not None
        yield address(child)
        child.stdin.close()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
