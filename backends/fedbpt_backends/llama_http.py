"""llama.cpp's own HTTP server, by URL: token ids in, label-relative probabilities out.

The server's sampler reports probabilities after a bias that is the same for every named token, so
their ratios are exact however unlikely they are (no top-k luck). Requests of one call run side by
side, one a slot; a server that batches them is free to differ in the last digits from call to call.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.scoring.backend import BackendInfo, Prompt, Scores, TokenTable, Usage

_BIAS = 50.0  # lifts words as unlikely as e^-50 above every other token, and keeps 6 digits in float32
_ATTEMPTS = 5


class LlamaServer:
    """A llama.cpp server that somebody else runs."""

    def __init__(self, client: httpx.AsyncClient, info: BackendInfo, slots: int) -> None:
        self._client = client
        self._info = info
        self._gate = asyncio.Semaphore(slots)

    @classmethod
    async def connect(cls, base_url: str, context: int) -> LlamaServer:
        try:
            client = httpx.AsyncClient(base_url=base_url, timeout=httpx.Timeout(300.0, connect=10.0))
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(f"backend.base_url: {base_url!r} is not an address: {error}") from error
        try:
            props = await _call(client, "GET", "/props", None)
            with _as_expected(base_url):
                settings = props.get("default_generation_settings", {})
                model = str(props.get("model_path") or props.get("model_alias") or "unknown")
                window = int(settings.get("n_ctx") or context)
                slots = int(props.get("total_slots") or 1)
        except BaseException:
            await client.aclose()
            raise
        build = str(props.get("build_info", ""))
        identity = hashlib.sha256(f"{build} {model}".encode()).hexdigest()[:16]
        details = {"build": build, "url": base_url, "way": "equal bias"}
        name = model.rsplit("/", 1)[-1]
        info = BackendInfo("llamacpp", name, identity, min(context, window), 128, details)
        return cls(client, info, slots)

    @property
    def info(self) -> BackendInfo:
        return self._info

    async def tokenize(self, text: str) -> tuple[int, ...]:
        body = {"content": text, "add_special": False, "parse_special": False}
        answer = await _call(self._client, "POST", "/tokenize", body)
        with _as_expected(self._client.base_url):
            return tuple(int(token) for token in answer["tokens"])

    async def detokenize(self, ids: Sequence[int]) -> str:
        answer = await _call(self._client, "POST", "/detokenize", {"tokens": list(ids)})
        with _as_expected(self._client.base_url):
            return str(answer["content"])

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        body = {
            "logit_bias": [[word, _BIAS] for word in words],
            "n_probs": len(words),
            "post_sampling_probs": True,
            "samplers": ["temperature"],
            "temperature": 1.0,
        }
        answers = await self._complete(prompts, body)
        with _as_expected(self._client.base_url):
            rows = np.array([_row(answer, words) for answer, _ in answers])
        exact = rows > -np.inf
        rows = np.where(exact, rows, np.log(np.finfo(np.float32).tiny))
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        usage = sum((used for _, used in answers), Usage())
        return Scores(rows, exact, np.full(len(prompts), np.nan), usage)

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        answers = await self._complete(prompts, {"n_probs": k, "temperature": 0.0})
        with _as_expected(self._client.base_url):
            lists = [
                {int(t["id"]): float(t["logprob"]) for t in a["completion_probabilities"][0]["top_logprobs"]}
                for a, _ in answers
            ]
        return lists, sum((used for _, used in answers), Usage())

    async def token_table(self) -> TokenTable | None:
        return None

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _complete(
        self, prompts: Sequence[Prompt], extra: dict[str, Any]
    ) -> list[tuple[dict[str, Any], Usage]]:
        async def one(prompt: Prompt) -> tuple[dict[str, Any], Usage]:
            body = {"prompt": list(prompt.ids), "n_predict": 1, "cache_prompt": True, **extra}
            body["response_fields"] = ["completion_probabilities", "tokens_cached", "timings"]
            async with self._gate:
                answer = await _call(self._client, "POST", "/completion", body)
            with _as_expected(self._client.base_url):
                if not answer.get("completion_probabilities"):
                    raise KeyError("completion_probabilities")
                evaluated = int(answer.get("timings", {}).get("prompt_n", len(prompt.ids)))
            return answer, Usage(1, len(prompt.ids), max(len(prompt.ids) - evaluated, 0), 1)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(prompt)) for prompt in prompts]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]


def _row(answer: dict[str, Any], words: Sequence[int]) -> list[float]:
    found = {t["id"]: t["prob"] for t in answer["completion_probabilities"][0]["top_probs"]}
    with np.errstate(divide="ignore"):
        return [float(np.log(found.get(word, 0.0))) for word in words]


@contextlib.contextmanager
def _as_expected(url: object) -> Iterator[None]:
    """An answer of another form is the server's error, not ours."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise BackendError(
            f"{url} gave an answer of an unknown form ({type(error).__name__}: {error})",
            "is it a llama.cpp server, and a recent one?",
        ) from error


def _may_succeed(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 429, 500, 502, 503, 504)
    return isinstance(error, httpx.TransportError)


async def _call(client: httpx.AsyncClient, method: str, path: str, body: Any) -> dict[str, Any]:
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_succeed),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.5, max=10),
            reraise=True,
        ):
            with attempt:
                response = await client.request(method, path, json=body)
                response.raise_for_status()
                answer = response.json()
                if not isinstance(answer, dict):
                    raise ValueError(f"expected a JSON object, got {str(answer)[:100]}")
                return answer
    except httpx.HTTPStatusError as error:
        text = error.response.text[:300]
        raise BackendError(
            f"{client.base_url}{path} answered {error.response.status_code}: {text}"
        ) from error
    except (httpx.TransportError, ValueError) as error:
        raise BackendError(
            f"no usable answer from {client.base_url}: {error or type(error).__name__}",
            "is the llama.cpp server running there?",
        ) from error
    raise BackendError(f"no answer from {client.base_url}")
