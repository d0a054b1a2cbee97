"""A vLLM of our own: started, waited for, logged, and stopped whatever happens to this process."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import sys
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Sequence
from pathlib import Path

import httpx

from fedbpt_api.errors import BackendError

_FLAGS = (
    "--max-logprobs", "200", "--enable-prompt-tokens-details", "--enable-prompt-embeds",
    "--generation-config", "vllm",
)  # fmt: skip
_SETTINGS = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class VllmProcess:
    """A running server; `url` is where it listens."""

    def __init__(self, process: Process, url: str, log: Path) -> None:
        self._process, self.url, self.log = process, url, log

    @classmethod
    async def start(
        cls, model: str, *, python: str | None, context: int, flags: Sequence[str], log: Path, wait: float
    ) -> VllmProcess:
        """Start ``vllm`` on a free port of the loopback and wait until it is healthy.

        Args:
            model: Folder or name of the model.
            python: Interpreter that has vLLM installed; this one where None.
            context: Longest input in tokens.
            flags: More flags; they win over the usual ones.
            log: Where its output goes.
            wait: Seconds that it may take.

        Raises:
            BackendError: vLLM is not installed, ended, or was not healthy in time; with its last words.
        """
        if python is None and importlib.util.find_spec("vllm") is None:
            raise BackendError(
                "backend 'vllm' without base_url starts vLLM itself, which is not installed here",
                "pip install 'fedbpt-api[vllm]', give backend.python of an environment that has it, or "
                "give base_url of a server that runs",
            )
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        command = [
            sys.executable, "-m", "fedbpt_backends.leash",
            python or sys.executable, "-m", "vllm.entrypoints.openai.api_server",
            "--model", model, "--host", "127.0.0.1", "--port", str(port),
            "--max-model-len", str(context), *_FLAGS, *flags,
        ]  # fmt: skip
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=output, stderr=STDOUT, env=_SETTINGS | os.environ
            )
        self = cls(process, f"http://127.0.0.1:{port}", log)
        try:
            await self._healthy(wait)
        except BaseException:
            await self.stop()
            raise
        return self

    async def stop(self) -> None:
        """End it. May be called twice."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()

    async def _healthy(self, wait: float) -> None:
        end = time.monotonic() + wait
        async with httpx.AsyncClient(timeout=5.0) as client:
            while time.monotonic() < end and self._process.returncode is None:
                try:
                    if (await client.get(f"{self.url}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass  # not listening yet
                await asyncio.sleep(0.5)
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        words = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
        how = "was not healthy in time" if self._process.returncode is None else "ended"
        raise BackendError(f"vLLM {how}: {words.strip()[:300]}", f"its whole output is in {self.log}")
