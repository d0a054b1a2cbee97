"""Which server it is: by its own marks, through gateways, and not by anything else."""

from __future__ import annotations

import pytest

from fedbpt_api.errors import BackendError
from fedbpt_backends.http_json import Http
from fedbpt_backends.identify import Identity, by_fingerprint, identify
from fedbpt_backends.pacing import Pacer
from liar import Json, Liar

PROPS = {
    "default_generation_settings": {"n_ctx": 512},
    "total_slots": 2,
    "model_path": "m",
    "build_info": "b7",
}
Pages = dict[str, object]


async def identified(
    pages: Pages, model: str | None = None, *, other: tuple[int, object] = (404, {})
) -> Identity:
    def lie(path: str, body: Json, answer: Json) -> tuple[int, object]:
        return (200, pages[path]) if path in pages else other

    async with Liar(lie).serve() as url:
        http = Http(url, Pacer(1, 1), timeout=10)
        try:
            return await identify(http, model)
        finally:
            await http.aclose()


def listed(owner: str) -> Json:
    return {"data": [{"id": "m", "owned_by": owner}]}


@pytest.mark.parametrize(
    ("pages", "server", "version"),
    [
        ({"/v1/models": listed("vllm"), "/version": {"version": "0.32.0"}}, "vLLM", "0.32.0"),
        ({"/v1/models": listed("vllm")}, "vLLM", ""),
        ({"/v1/models": listed("llamacpp"), "/props": PROPS}, "llama.cpp", "b7"),
        ({"/props": PROPS}, "llama.cpp", "b7"),
        (
            {"/v1/models": listed("sglang"), "/server_info": {"version": "0.5", "model_path": "m"}},
            "SGLang",
            "0.5",
        ),
        ({"/info": {"model_id": "m", "version": "3.3", "max_input_tokens": 99}}, "TGI", "3.3"),
        ({"/v1/models": listed("library"), "/api/version": {"version": "0.35"}}, "Ollama", "0.35"),
        ({"/v1/models": listed("me"), "/version": {"version": "1"}}, "OpenAI-compatible", ""),
    ],
)
async def test_a_server_is_known_by_its_marks(pages: Pages, server: str, version: str) -> None:
    seen = await identified(pages)
    assert (seen.server, seen.version, seen.model) == (server, version, "m")


@pytest.mark.parametrize("status", [401, 404, 405, 500])
async def test_hidden_marks_mean_nothing(status: int) -> None:
    seen = await identified({"/v1/models": listed("openai")}, other=(status, {"error": "no"}))
    assert seen.server == "OpenAI-compatible"
    assert by_fingerprint(seen, "vllm-0.32.0-tp2-bf441c02").server == "vLLM"
    assert by_fingerprint(seen, "vllm-0.32.0-tp2-bf441c02").version == "0.32.0"
    assert by_fingerprint(seen, "fp_44709d6fcb") == seen


@pytest.mark.parametrize("page", [b"<html>hello</html>", {"version": "1"}, [], 3])
async def test_a_server_that_answers_everything_alike_says_nothing(page: object) -> None:
    assert (await identified({}, "m", other=(200, page))).server == "OpenAI-compatible"
    with pytest.raises(BackendError, match="which models") as caught:
        await identified({}, other=(200, page))
    assert "--model" in caught.value.hint


async def test_a_model_that_is_not_served_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(BackendError, match="'other' but m"):
        await identified({"/v1/models": listed("vllm")}, "other")


async def test_a_server_that_loads_is_said_to_load() -> None:
    with pytest.raises(BackendError) as caught:
        await identified({}, other=(503, {"error": {"message": "Loading model"}}))
    assert "Loading model" in caught.value.message
    assert "later" in caught.value.hint


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedbpt_backends.pacing._backoff", lambda state: 0.0)
