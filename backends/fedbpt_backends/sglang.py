"""SGLang by URL: ``/generate`` with named tokens and nothing generated. NOT RUN LIVE.

Written to SGLang 0.5's documentation and source: no server of it was at hand, so only the form of
requests and answers is tested. `fedbpt probe` tells what a real one does; please report what differs.

Named tokens' log-probabilities come over the whole vocabulary; the temperature must be 0 or 1, because
SGLang divides by it before it reports.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import Backend, BackendInfo, Prompt, Scores, TokenTable, Usage
from fedbpt_backends.batching import Batcher
from fedbpt_backends.headers import bearer
from fedbpt_backends.http_json import Http
from fedbpt_backends.llama_http import refuse_vectors
from fedbpt_backends.pacing import Pacer
from fedbpt_backends.probe import served_model
from fedbpt_backends.ways import Reading, checked

_LIST = 64
_LONGEST = 1000  # words of a list


async def open_backend(
    *,
    base_url: str,
    model: str | None = None,
    api_key_env: str | None = None,
    headers: Mapping[str, str] | None = None,
    concurrency: int = 8,
    timeout: float = 120.0,
) -> Backend:
    """Open an SGLang server.

    Args:
        base_url: Where it is, such as ``http://127.0.0.1:30000``.
        model: The served model's name; the first one where not given.
        api_key_env: Environment variable that holds the key.
        headers: More headers, for gateways; ``${NAME}`` in a value is the environment variable NAME.
        concurrency: Most requests under way.
        timeout: Seconds after which a request counts as stalled.
    """
    most = max(concurrency, 1)
    http = Http(base_url, Pacer(min(4, most), most), bearer(api_key_env, headers), timeout)
    try:
        served = await served_model(http, model)
        _, server = await http.peek("GET", "/server_info")
    except BaseException:
        await http.aclose()
        raise
    version = str(server.get("version", "")) if isinstance(server, dict) else ""
    info = BackendInfo(
        kind="sglang",
        model=str(served["id"]),
        fingerprint=f"sglang-{version}-{served['id']}",
        context=int(served.get("max_model_len") or 1024),
        details={"url": http.base_url, "version": version, "way": "token_ids_logprob (not run live)"},
        batch=_LIST,
        parallel=32,
    )
    return Sglang(http, info)


class Sglang:
    """An open SGLang server."""

    def __init__(self, http: Http, info: BackendInfo) -> None:
        self._http, self._info = http, info
        self._batcher: Batcher[Prompt, tuple[Any, Usage]] = Batcher(http.pacer, self._request, _LIST)

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def notice(self) -> str:
        return self._http.pacer.notice

    async def tokenize(self, text: str) -> tuple[int, ...]:
        body = {"model": self._info.model, "prompt": text, "add_special_tokens": False}
        return await self._http.post("/tokenize", body, lambda a: tuple(int(t) for t in a["tokens"]))

    async def detokenize(self, ids: Sequence[int]) -> str:
        body = {"model": self._info.model, "tokens": list(ids), "skip_special_tokens": False}
        return await self._http.post("/detokenize", body, lambda a: str(a["text"]))

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        answers = await self._batcher.ask(tuple(words), prompts)
        rows = np.array([row for (row, _), _ in answers]).reshape(-1, len(words))
        exact = np.ones(rows.shape, dtype=np.bool_)
        mass = np.exp(rows).sum(axis=1)
        rows = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
        return Scores(rows, exact, mass, sum((used for _, used in answers), Usage()))

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        answers = await self._batcher.ask(min(k, _LONGEST), prompts)
        return [dict(found) for found, _ in answers], sum((used for _, used in answers), Usage())

    async def token_table(self) -> TokenTable | None:
        return None

    async def aclose(self) -> None:
        await self._batcher.aclose()
        await self._http.aclose()

    async def _request(self, kind: Hashable, prompts: Sequence[Prompt]) -> list[tuple[Any, Usage]]:
        """One list, answered in its order; `kind` is the named words, or the length of a list."""
        refuse_vectors(prompts)
        words = kind if isinstance(kind, tuple) else ()
        ask: dict[str, Any] = {"token_ids_logprob": list(words)} if words else {"top_logprobs_num": kind}
        body = {
            "input_ids": [prompt.ids for prompt in prompts],
            "sampling_params": {"max_new_tokens": 0 if words else 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": -1,
            **ask,
        }
        place = f"{self._http.base_url}/generate"

        def read(answer: Any) -> list[tuple[Any, Usage]]:
            if len(answer) != len(prompts):
                raise BackendError(f"{place} sent {len(answer)} answers to {len(prompts)} prompts")
            metas = [one["meta_info"] for one in answer]
            found: list[Any] = [_pairs(m["output_top_logprobs"][0]) for m in metas] if not words else []
            if words:
                named = [_pairs(m["output_token_ids_logprobs"][0]) for m in metas]
                readings = [Reading([row[w] for w in words], [True] * len(words)) for row in named]
                rows, exact = checked(readings, len(words), place)
                found = list(zip(rows, exact, strict=True))
            used = [
                Usage(1, len(p), int(m.get("cached_tokens") or 0))
                for p, m in zip(prompts, metas, strict=True)
            ]
            used[0] = used[0] + Usage(requests=1)
            return list(zip(found, used, strict=True))

        return await self._http.post("/generate", body, read)


def _pairs(triples: Any) -> dict[int, float]:
    """[[log-probability, token id, text], ...] by id."""
    return {int(token): float(value) for value, token, *_ in triples}
