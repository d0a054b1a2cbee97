"""A real llama.cpp server with the default model, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedbpt_backends import models

_SERVER = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port = sys.argv[1], 0
p.n_parallel, p.n_ctx, p.n_batch, p.n_ubatch = 2, 2 * int(sys.argv[2]), 256, 256
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.verbosity, p.warmup, p.cache_ram_mib, p.cache_idle_slots = -1, False, 0, False
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def serve(context: int = 256) -> Iterator[str]:
    """Its address, on a port of its choice; two slots of `context` tokens each."""
    command = [sys.executable, "-c", _SERVER, str(models.find(models.DEFAULT)), str(context)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield child.stdout.readline().strip()
        child.stdin.close()
