"""A real vLLM for the tests of this folder: started once, or the one that FEDBPT_VLLM_URL names."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedbpt_api.scoring.registry import open_backend
from servers import vllm_cpu


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM that serves the default model on the CPU."""
    if given := os.environ.get("FEDBPT_VLLM_URL"):
        yield given
        return
    with vllm_cpu.serve(log=tmp_path_factory.mktemp("vllm") / "server.log") as url:
        yield url


@pytest.fixture(scope="session")
def vllm_noise(vllm_url: str) -> float:
    """Nats by which this server's answers vary: 0 on most processors, .05 on those with AMX."""

    async def measured() -> float:
        backend = await open_backend("vllm", base_url=vllm_url)
        try:
            return backend.info.noise
        finally:
            await backend.aclose()

    return asyncio.run(measured())


@pytest.fixture(scope="session")
def vllm_weights() -> Path:
    """The folder of the served model."""
    return vllm_cpu.weights()
