"""llama.cpp's own HTTP server, by URL: token ids in, label-relative probabilities out.

The server's sampler reports probabilities after a bias that is the same for every named token, so
their ratios are exact however unlikely they are (no top-k luck). Requests run side by side, one a slot,
each on the slot that holds its first tokens already; a server that batches them is free to differ in the
last digits from call to call.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import BackendInfo, Prompt, Scores, TokenTable, Usage
from fedbpt_api.scoring.encode import Ids
from fedbpt_backends.http_json import SHAPE_ERRORS, Http, expected
from fedbpt_backends.pacing import Pacer

LIFT = 50.0  # lifts words as unlikely as e^-50 above every other token, and keeps 6 digits in float32


class Slots:
    """Which slot takes an input: one that holds its stem (its first tokens, which others share).

    Args:
        n: Slots of the server; each keeps what it evaluated last.
    """

    def __init__(self, n: int) -> None:
        self._free = list(range(n))  # the one that has been free for longest is first
        self._stems: list[Ids] = [()] * n
        self._waiting: list[tuple[Ids, asyncio.Future[int]]] = []

    @contextlib.asynccontextmanager
    async def take(self, stem: Ids) -> AsyncIterator[int]:
        """Wait for a slot; where several inputs wait, one with the slot's own stem goes first."""
        slot = await self._slot(stem)
        self._stems[slot] = stem
        try:
            yield slot
        finally:
            self._give(slot)

    async def _slot(self, stem: Ids) -> int:
        if self._free:
            slot = next((i for i in self._free if self._stems[i] == stem), self._free[0])
            self._free.remove(slot)
            return slot
        given: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((stem, given))
        try:
            return await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self._give(given.result())  # it was handed over just now
            raise

    def _give(self, slot: int) -> None:
        self._waiting = [(stem, given) for stem, given in self._waiting if not given.done()]
        same = (i for i, (stem, _) in enumerate(self._waiting) if stem == self._stems[slot])
        if self._waiting:
            self._waiting.pop(next(same, 0))[1].set_result(slot)
        else:
            self._free.append(slot)


class LlamaServer:
    """A llama.cpp server that somebody else runs."""

    def __init__(self, http: Http, info: BackendInfo, slots: int, exact: bool) -> None:
        self._http = http
        self._info = info
        self._slots = Slots(slots)
        self._cached = not exact

    @classmethod
    async def connect(
        cls, base_url: str, context: int, timeout: float = 300.0, *, exact: bool = False
    ) -> LlamaServer:
        pacer = Pacer(1, 1)
        http = Http(base_url, pacer, timeout=timeout)
        try:
            props = await http.get("/props")
            try:
                settings = props.get("default_generation_settings", {})
                model = str(props.get("model_path") or props.get("model_alias") or "unknown")
                window = int(settings.get("n_ctx") or context)
                slots = int(props.get("total_slots") or 1)
            except SHAPE_ERRORS as error:
                raise expected(f"{http.base_url}/props", error) from error
        except BaseException:
            await http.aclose()
            raise
        slots = 1 if exact else slots
        http.pacer = Pacer(slots, slots)
        build = str(props.get("build_info", ""))
        identity = hashlib.sha256(f"{build} {model}".encode()).hexdigest()[:16]
        details = {"build": build, "url": http.base_url, "way": "equal bias" + ", each alone" * exact}
        name = model.rsplit("/", 1)[-1]
        info = BackendInfo(
            "llamacpp", name, identity, min(context, window), 128, details, batch=slots, parallel=2
        )
        return cls(http, info, slots, exact)

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def notice(self) -> str:
        return self._http.pacer.notice

    async def tokenize(self, text: str) -> tuple[int, ...]:
        body = {"content": text, "add_special": False, "parse_special": False}
        return await self._http.post("/tokenize", body, lambda a: tuple(int(t) for t in a["tokens"]))

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self._http.post("/detokenize", {"tokens": list(ids)}, lambda a: str(a["content"]))

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        body = {
            "logit_bias": [[word, LIFT] for word in words],
            "n_probs": len(words),
            "post_sampling_probs": True,
            "samplers": ["temperature"],
            "temperature": 1.0,
        }
        answers = await self._complete(prompts, body)
        try:
            rows = np.array([_row(answer, words) for answer, _ in answers]).reshape(-1, len(words))
        except SHAPE_ERRORS as error:
            raise expected(f"{self._http.base_url}/completion", error) from error
        exact = rows > -np.inf
        rows = np.where(exact, rows, np.log(np.finfo(np.float32).tiny))
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        usage = sum((used for _, used in answers), Usage())
        return Scores(rows, exact, np.full(len(prompts), np.nan), usage)

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        answers = await self._complete(prompts, {"n_probs": k, "temperature": 0.0})
        try:
            lists = [
                {int(t["id"]): float(t["logprob"]) for t in a["completion_probabilities"][0]["top_logprobs"]}
                for a, _ in answers
            ]
        except SHAPE_ERRORS as error:
            raise expected(f"{self._http.base_url}/completion", error) from error
        return lists, sum((used for _, used in answers), Usage())

    async def token_table(self) -> TokenTable | None:
        return None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _complete(
        self, prompts: Sequence[Prompt], extra: dict[str, Any]
    ) -> list[tuple[dict[str, Any], Usage]]:
        refuse_vectors(prompts)

        async def one(prompt: Prompt) -> tuple[dict[str, Any], Usage]:
            body = {"prompt": list(prompt.ids), "n_predict": 1, "cache_prompt": self._cached, **extra}
            body["response_fields"] = ["completion_probabilities", "tokens_cached", "timings"]
            async with self._slots.take(prompt.ids[: prompt.shared]) as slot:
                body["id_slot"] = slot
                return await self._http.post("/completion", body, lambda answer: _read(answer, prompt))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(prompt)) for prompt in prompts]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]


def _read(answer: Any, prompt: Prompt) -> tuple[dict[str, Any], Usage]:
    """The answer to one prompt, and what it cost."""
    if not answer.get("completion_probabilities"):
        raise KeyError("completion_probabilities")
    evaluated = int(answer.get("timings", {}).get("prompt_n", len(prompt.ids)))
    return answer, Usage(1, len(prompt.ids), max(len(prompt.ids) - evaluated, 0), 1)


def refuse_vectors(prompts: Sequence[Prompt]) -> None:
    """llama.cpp takes none over HTTP, and the embedded one is not asked for them."""
    if any(prompt.soft is not None for prompt in prompts):
        raise BackendError("llama.cpp takes no continuous prompts", "use search.space = 'codebook', or vLLM")


def _row(answer: dict[str, Any], words: Sequence[int]) -> list[float]:
    found = {t["id"]: t["prob"] for t in answer["completion_probabilities"][0]["top_probs"]}
    with np.errstate(divide="ignore"):
        return [float(np.log(found.get(word, 0.0))) for word in words]
