"""The openai backend on a real vLLM: both routes keep what backends promise and rank as native scoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from fedbpt_api.scoring.backend import Backend
from fedbpt_api.scoring.conformance import BackendConformance
from fedbpt_api.scoring.registry import open_backend
from ranking import Messages, ranks_as_native
from servers import vllm_cpu

pytestmark = pytest.mark.servers


class TestConformance(BackendConformance):
    NOISE = BATCH_NOISE = 2 * vllm_cpu.STEP

    @pytest.fixture(autouse=True, params=["completions", "chat"])
    def _server(self, request: pytest.FixtureRequest, vllm_url: str) -> None:
        self._options = {"base_url": f"{vllm_url}/v1", "api": request.param}

    async def open(self) -> Backend:
        options: dict[str, Any] = self._options
        return await open_backend("openai", model=vllm_cpu.NAME, api_key_env=None, **options)


@pytest.mark.parametrize("api", ["completions", "chat"])
async def test_both_routes_rank_texts_as_token_ids_do(vllm_url: str, api: str) -> None:
    backend = await open_backend(
        "openai", base_url=f"{vllm_url}/v1", model=vllm_cpu.NAME, api=api, api_key_env=None
    )
    native = await open_backend("vllm", base_url=vllm_url)
    async with httpx.AsyncClient(base_url=vllm_url, timeout=60) as http:

        async def templated(asked: str | Messages) -> Sequence[int]:
            body: dict[str, Any] = {"model": vllm_cpu.NAME}
            if isinstance(asked, str):
                body |= {"prompt": asked}
            else:
                body |= {"messages": asked, "add_generation_prompt": False, "continue_final_message": True}
            ids: list[int] = (await http.post("/tokenize", json=body)).json()["tokens"]
            return ids

        try:
            # The native route repeats its answers from the prefix cache; the other's move by up to a step.
            noise = vllm_cpu.STEP / 2
            assert await ranks_as_native(backend, native, api, templated, noise) >= 25
            if api == "chat":
                assert backend.info.details["prefill"] == "continue_final_message"
        finally:
            await backend.aclose()
            await native.aclose()
