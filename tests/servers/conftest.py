"""A real vLLM for the tests of this folder: started once, or the one that FEDBPT_VLLM_URL names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

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
def vllm_weights() -> Path:
    """The folder of the served model."""
    return vllm_cpu.weights()
