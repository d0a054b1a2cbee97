"""vLLM by URL, or started by us: token ids in, log-probabilities of up to 128 named words out.

Discrete prompts go as lists of token ids, continuous ones as ``prompt_embeds``. Which way of scoring is
used is decided by asking, when the backend is opened, and never changes (`ways`, `probe`). Inputs that
begin alike are sent together, because vLLM's prefix cache works in whole blocks, first come, first served.
"""

from __future__ import annotations

import base64
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.scoring.backend import (
    Backend,
    BackendInfo,
    Bools,
    Floats,
    Prompt,
    Scores,
    Soft,
    TokenTable,
    Usage,
)
from fedbpt_backends.batching import Batcher
from fedbpt_backends.checkpoint import read_table
from fedbpt_backends.headers import bearer
from fedbpt_backends.http_json import Http
from fedbpt_backends.pacing import Pacer
from fedbpt_backends.probe import Probe, served_model
from fedbpt_backends.tensor_file import torch_bytes
from fedbpt_backends.vllm_process import VllmProcess
from fedbpt_backends.ways import SPOILED, Choice, NamedTokens, Spoiled, TopK, Way, checked, spoiled, way_named

_LIST = 128  # inputs in a request; vLLM takes 1,024, but a list fails or waits as a whole
_DOUBTS = 2  # times that an inability is asked about again
_WAYS = ("auto", "logprob_token_ids", "choice", "top-k")

Row = tuple[Floats, Bools]  # values and exactness of T words
Answer = tuple[Row | dict[int, float], Usage]


async def open_backend(
    *,
    base_url: str | None = None,
    model: str | None = None,
    api_key_env: str | None = None,
    headers: Mapping[str, str] | None = None,
    weights: str | None = None,
    way: str = "auto",
    concurrency: int = 8,
    timeout: float = 120.0,
    context: int = 1024,
    python: str | None = None,
    flags: Sequence[str] = (),
    start_timeout: float = 600.0,
    log_folder: Path | None = None,
    known: BackendInfo | None = None,
) -> Backend:
    """Open vLLM.

    Args:
        base_url: A server that runs, such as ``http://127.0.0.1:8000``; without it one is started.
        model: The served model's name; with no URL the model to serve (a folder or a name).
        api_key_env: Environment variable that holds the key.
        headers: More headers, for gateways; ``${NAME}`` in a value is the environment variable NAME.
        weights: Folder with the model's own files, for its embeddings; what the server names, if that is
            a folder here, where not given.
        way: "auto", "logprob_token_ids", "choice" or "top-k".
        concurrency: Most requests under way; what the server can take is found out by asking.
        timeout: Seconds after which a request counts as stalled.
        context: Longest input in tokens, for a server that is started.
        python: Interpreter with vLLM, for a server that is started.
        flags: More flags of vLLM, for a server that is started.
        start_timeout: Seconds that starting may take.
        log_folder: Where a server that is started writes its log; the run folder in a run.
        known: What it was when the run began: nothing is found out again by requests that cost.
    """
    if way not in _WAYS:
        raise ConfigError(f"backend.way: expected one of {', '.join(_WAYS)}, got {way!r}")
    if base_url is None and model is None:
        raise ConfigError("backend: expected base_url of a running server, or model to start one with")
    process = None
    if base_url is None:
        assert model is not None
        log = (log_folder or Path.cwd()) / "vllm.log"
        process = await VllmProcess.start(
            model, python=python, context=context, flags=flags, log=log, wait=start_timeout
        )
        base_url, weights, model = process.url, weights or _folder(model), None
    try:
        most = max(concurrency, 1)
        http = Http(base_url, Pacer(min(4, most), most), bearer(api_key_env, headers), timeout)
        return await Vllm.connect(http, model, weights, way, process, known)
    except BaseException:
        if process is not None:
            await process.stop()
        raise


class Vllm:
    """An open vLLM server."""

    def __init__(
        self,
        http: Http,
        info: BackendInfo,
        way: Way,
        table: TokenTable | None,
        process: VllmProcess | None,
    ) -> None:
        self._http, self._info, self._way, self._table, self._process = http, info, way, table, process
        self._texts: dict[int, str] = {}
        # vLLM's older model runner spoils top-k lists that share a batch with named tokens (its PR 51789).
        self._batcher: Batcher[Prompt, Answer] = Batcher(
            http.pacer, self._request, _LIST, alone=lambda a, b: a != b and _top_k(a) != _top_k(b)
        )

    @classmethod
    async def connect(
        cls,
        http: Http,
        model: str | None,
        weights: str | None,
        way: str,
        process: VllmProcess | None,
        known: BackendInfo | None = None,
    ) -> Vllm:
        """Find out what the server is and can do.

        Raises:
            BackendError: It is no vLLM, does not serve the model, or has no way of scoring words.
        """
        try:
            served = await served_model(http, model)
            _, version = await http.peek("GET", "/version")
            release = str(version.get("version", "")) if isinstance(version, dict) else ""
            if known is not None and known.kind == "vllm":
                table = _table(weights, str(served.get("root", "")))
                return cls._again(http, served, release, known, table, process)
            probe = Probe(http, str(served["id"]))
            if not (await probe.tokenizer()).found:
                raise BackendError(
                    f"{http.base_url}/tokenize does not answer as vLLM's does",
                    "behind a gateway that hides it, use backend.kind = 'openai'",
                )
            chosen, texts = await _choose(probe, way)
            table = _table(weights, str(served.get("root", "")))
            soft = bool((await probe.vectors(table)).found) if table is not None else False
            noise = float((await probe.noise()).value)
            block = await probe.block_size()
        except BaseException:
            await http.aclose()
            raise
        top = probe.findings["top-k list"].value
        details = {
            "url": http.base_url if process is None else "started for the run",  # with a port of its own
            "version": release, "way": chosen.name, "top-k": top,
            "system_fingerprint": probe.system_fingerprint, "noise": f"{noise:.2g}",
            "cache block": str(block),
            "requests of the probe": str(probe.requests),
        }  # fmt: skip
        info = BackendInfo(
            kind="vllm",
            model=str(served["id"]),
            fingerprint=probe.system_fingerprint or f"vllm-{release}",
            context=_context(served),
            max_words=chosen.words,
            details=details,
            batch=_LIST,
            parallel=32,  # what is there at the same time goes as few lists
            soft=soft,
            complete=not isinstance(chosen, TopK),
            noise=noise,
            block=block,
        )
        self = cls(http, info, chosen, table, process)
        self._texts = texts
        return self

    @classmethod
    def _again(
        cls,
        http: Http,
        served: Mapping[str, Any],
        release: str,
        known: BackendInfo,
        table: TokenTable | None,
        process: VllmProcess | None,
    ) -> Vllm:
        """As it was when the run began, but for what it says of itself; answers show their fingerprint."""
        same = release == known.details.get("version")
        info = replace(
            known,
            model=str(served["id"]),
            context=_context(served),
            fingerprint=known.fingerprint if same else f"vllm-{release}",
            details={**known.details, "url": http.base_url, "version": release},
        )
        texts: dict[int, str] = {}
        way = way_named(known.details["way"], int(known.details["top-k"] or 0), texts)
        self = cls(http, info, way, table, process)
        self._texts = texts
        return self

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
        if len(ids) == 1 and ids[0] in self._texts:
            return self._texts[ids[0]]
        body = {"model": self._info.model, "tokens": list(ids)}
        text = await self._http.post("/detokenize", body, lambda a: str(a["prompt"]))
        if len(ids) == 1:
            self._texts[ids[0]] = text
        return text

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        if isinstance(self._way, Choice):
            for word in words:
                await self.detokenize([word])
        soft = any(prompt.soft is not None for prompt in prompts)
        answers = await self._batcher.ask((tuple(words), soft), prompts)
        found = [row for row, _ in answers if isinstance(row, tuple)]
        rows = np.array([values for values, _ in found]).reshape(-1, len(words))
        exact = np.array([exact for _, exact in found], dtype=np.bool_).reshape(-1, len(words))
        mass = np.full(len(prompts), np.nan) if self._way.relative else np.exp(rows).sum(axis=1)
        rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
        return Scores(rows, exact, mass, sum((used for _, used in answers), Usage()))

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        top = min(k, int(self._info.details["top-k"] or 0))
        if not top:
            raise BackendError(f"{self._http.base_url} gives no lists of probable words")
        answers = await self._batcher.ask((top, any(p.soft is not None for p in prompts)), prompts)
        lists = [found for found, _ in answers if isinstance(found, dict)]
        return lists, sum((used for _, used in answers), Usage())

    async def token_table(self) -> TokenTable | None:
        return self._table

    async def aclose(self) -> None:
        await self._batcher.aclose()
        await self._http.aclose()
        if self._process is not None:
            await self._process.stop()

    async def _request(self, kind: Hashable, prompts: Sequence[Prompt]) -> list[Answer]:
        """One list, answered in its order."""
        assert isinstance(kind, tuple)
        asked, soft = kind
        top = TopK(asked) if isinstance(asked, int) else None
        words: tuple[int, ...] = () if top else asked
        body = {"model": self._info.model, "max_tokens": 1, "temperature": 0.0}
        body |= (top or self._way).fields(words)
        body |= {"prompt_embeds": [self._vectors(p) for p in prompts]} if soft else {}
        body |= {} if soft else {"prompt": [p.ids for p in prompts]}
        place = f"{self._http.base_url}/v1/completions"

        def read(answer: Any) -> tuple[object, list[Row | dict[int, float]], int]:
            choices = by_index(answer["choices"], len(prompts), place)
            details = answer["usage"].get("prompt_tokens_details") or {}
            cached = int(details.get("cached_tokens") or 0) if len(prompts) == 1 else 0
            if top:
                return answer.get("system_fingerprint"), [_listed(c, top.k, place) for c in choices], cached
            rows, exact = checked([self._way.read(c, words) for c in choices], len(words), place)
            return answer.get("system_fingerprint"), list(zip(rows, exact, strict=True)), cached

        fingerprint, found, cached = await self._http.post("/v1/completions", body, read)
        self._same(fingerprint)
        used = [Usage(1, len(p), 0, 0) for p in prompts]
        used[0] = used[0] + Usage(0, 0, cached, 1)
        return list(zip(found, used, strict=True))

    def _same(self, fingerprint: object) -> None:
        """Refuse answers of another configuration than the one the run began with."""
        began = self._info.details["system_fingerprint"]
        if began and fingerprint and fingerprint != began:
            raise BackendError(
                f"{self._http.base_url} has changed in mid-run: it was {began}, it is {fingerprint}",
                "its scores cannot be compared with the earlier ones; what was paid for is kept",
            )

    def _vectors(self, prompt: Prompt) -> str:
        """The whole input as a tensor: the ids' own embeddings around the continuous prompt."""
        if self._table is None or not self._info.soft:
            raise BackendError(
                f"{self._http.base_url} takes no continuous prompts",
                "start vLLM with --enable-prompt-embeds, and name the model's folder in backend.weights",
            )
        own = self._table.embeddings[list(prompt.ids)]
        soft = prompt.soft.vectors if isinstance(prompt.soft, Soft) else own[:0]
        return base64.b64encode(
            torch_bytes(np.concatenate([own[: prompt.at], soft, own[prompt.at :]]))
        ).decode()


async def _choose(probe: Probe, way: str) -> tuple[Way, dict[int, str]]:
    """The most exact way that the server really supports, or the one that was asked for."""
    named = await probe.named_tokens()
    for _ in range(_DOUBTS):  # an answer may be spoilt on its way; the way is chosen for the whole run
        if not named.found and way in ("auto", "logprob_token_ids"):
            named = await probe.named_tokens()
    top = await probe.top_list()
    if way in ("auto", "logprob_token_ids"):
        if named.found:
            return NamedTokens(), {}
        if way != "auto":
            raise BackendError(f"backend.way: {probe.http.base_url} has no logprob_token_ids: {named.how}")
    if not top.found or not (await probe.keys_by_id()).found:
        raise BackendError(
            f"{probe.http.base_url} gives no log-probabilities that can be used: {top.how}",
            "fedbpt probe says what the server can do",
        )
    if way in ("auto", "choice"):
        texts: dict[int, str] = {}
        choices = {"structured_outputs": {"choice": [" yes", " no"]}}
        changes = await probe.touched_by("a grammar", choices)
        if changes.found:
            return Choice(texts, int(top.value)), texts
        if way == "choice":
            raise BackendError(
                f"backend.way: {probe.http.base_url} ignores structured_outputs: {changes.how}"
            )
    return TopK(int(top.value)), {}


def _context(served: Mapping[str, Any]) -> int:
    return int(served.get("max_model_len") or 1024) - 1  # one token is generated


def by_index(choices: Any, n: int, place: str) -> list[Any]:
    """Choices in the order of the prompts, whatever order they came in.

    Raises:
        BackendError: Some are missing or come twice.
    """
    found = {int(choice["index"]): choice for choice in choices}
    if len(choices) != n or set(found) != set(range(n)):
        raise BackendError(f"{place} sent {len(choices)} answers to {n} prompts, or the same one twice")
    return [found[i] for i in range(n)]


def _listed(choice: Mapping[str, Any], k: int, place: str) -> dict[int, float]:
    top = choice["logprobs"]["top_logprobs"][0]
    found = {int(key.removeprefix("token_id:")): float(value) for key, value in top.items()}
    if spoiled(found, k):
        raise Spoiled(f"{place} sent {SPOILED}", "have the others use a server of their own")
    return found


def _top_k(kind: Hashable) -> bool:
    return isinstance(kind, tuple) and isinstance(kind[0], int)


def _table(weights: str | None, root: str) -> TokenTable | None:
    """Vocabulary and embeddings from the model's folder, if there is one here."""
    folder = Path(weights or root)
    if (folder / "tokenizer.json").is_file():
        return read_table(folder)
    if weights is not None:
        raise ConfigError(f"backend.weights: {weights} holds no tokenizer.json", "name the model's folder")
    return None


def _folder(model: str) -> str | None:
    return model if (Path(model) / "tokenizer.json").is_file() else None
