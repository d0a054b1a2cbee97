"""Any server with OpenAI's interface that gives log-probabilities: hosted, Azure, or behind a gateway.

Such servers take text and answer with the k most probable first tokens as text. So text is given ids here
(`TextVocabulary`), named words are read from the lists (`FirstTokens`), and a word outside a list is only
bounded. What the server can do is decided by asking when the backend is opened (`Pilot`), and never changes.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.scoring.backend import Backend, BackendInfo, Prompt, Scores, TokenTable, Usage
from fedbpt_backends.batching import Batcher
from fedbpt_backends.first_tokens import FirstTokens
from fedbpt_backends.http_json import SHAPE_ERRORS
from fedbpt_backends.openai_client import Client
from fedbpt_backends.openai_pilot import Pilot
from fedbpt_backends.openai_route import Api, Route, used
from fedbpt_backends.pacing import Pacer, Trouble
from fedbpt_backends.text_vocabulary import TextVocabulary
from fedbpt_backends.ways import NEVER, SPOILED, Reading, checked, spoiled

_LIST = 20  # prompts in a request; OpenAI took no more
_CENSORED = 0.01  # share of words outside the lists from which on people are told
_OWN = frozenset(  # fields that are this module's own affair
    {
        "model", "prompt", "messages", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "n",
        "best_of", "stream", "echo",
    }
)  # fmt: skip
_APIS = ("auto", "chat", "completions")
# Fingerprints that name a configuration (vLLM's, llama.cpp's). Others change whenever another of the
# provider's machines answers, which does not make two scores incomparable.
_CONFIGURATION = re.compile(r"vllm-.+|b\d+-\w+")

Answer = tuple[dict[str, float], Usage]


async def open_backend(
    *,
    base_url: str | None = None,
    model: str | None = None,
    api: str = "auto",
    api_key_env: str | None = "OPENAI_API_KEY",
    headers: Mapping[str, str] | None = None,
    azure_version: str | None = None,
    organization: str | None = None,
    project: str | None = None,
    system: str | None = None,
    prefill: bool | str = "auto",
    top_k: int | str = "auto",
    context: int = 4096,
    concurrency: int = 8,
    timeout: float = 120.0,
    strict_fingerprint: bool | str = "auto",
    extra: Mapping[str, object] | None = None,
    known: BackendInfo | None = None,
) -> Backend:
    """Open a server with OpenAI's interface.

    Args:
        base_url: Its address, ``/v1`` included; OpenAI's where not given. For Azure the resource's address.
        model: The model's name there; for Azure the deployment's.
        api: "completions", "chat", or "auto": completions where they come with log-probabilities, else chat.
        api_key_env: Environment variable that holds the key; an empty text for a server that wants none.
        headers: More headers, for gateways; ``${NAME}`` in a value is the environment variable NAME.
        azure_version: Version of Azure's interface (``api-version``); makes the server one of Azure's.
        organization: OpenAI's organization that pays.
        project: Its project.
        system: System message of a chat.
        prefill: Whether the input's last line ("Sentiment:") begins the chat's answer; "auto": where the
            server can do it.
        top_k: Length of the lists; "auto": the longest that the server allows, at most 200.
        context: Longest input, in pieces of text (a word, or another character). A piece is about one
            token; a server refuses what is too long for it.
        concurrency: Most requests under way; what the server can take is found out by asking.
        timeout: Seconds after which a request counts as stalled.
        strict_fingerprint: Whether another ``system_fingerprint`` than at the opening ends the run; "auto":
            where it names a configuration (vLLM, llama.cpp), else people are told.
        extra: More fields of every request, such as ``reasoning_effort``.
        known: What it was when the run began: nothing is found out again by requests that cost.

    Raises:
        ConfigError: An option has no such value, or a variable of the environment is not set.
        BackendError: The server gives no log-probabilities.
    """
    problems = _problems(model, api, prefill, top_k, context, concurrency, timeout, strict_fingerprint, extra)
    if problems:
        raise ConfigError(problems, "correct the [backend] table")
    most = int(concurrency)
    client = Client(
        base_url,
        Pacer(min(4, most), most),
        api_key_env=api_key_env or None,
        headers=headers,
        azure_version=azure_version,
        organization=organization,
        project=project,
        timeout=timeout,
    )
    if known is not None and known.kind == "openai" and known.model == model:
        details = {**known.details, "url": client.base_url}
        route = Route.from_json(known.details["route"], str(model), system, dict(extra or {}))
        return OpenAIBackend(client, route, replace(known, details=details), strict_fingerprint)
    try:
        pilot = Pilot(client, str(model))
        kinds: tuple[Api, ...] = ("completions", "chat") if api == "auto" else (cast(Api, api),)
        length = None if top_k == "auto" else int(top_k)
        begun = None if prefill == "auto" else bool(prefill)
        route = await pilot.route(kinds, length, begun, system, dict(extra or {}))
        noise = await pilot.noise(route)
    except BaseException:
        await client.aclose()
        raise
    return OpenAIBackend(client, route, _info(pilot, route, context, noise), strict_fingerprint)


class OpenAIBackend:
    """An open server with OpenAI's interface."""

    def __init__(self, client: Client, route: Route, info: BackendInfo, strict: bool | str) -> None:
        self._client, self._route, self._info = client, route, info
        self._strict = info.details["fingerprint names"] == "a configuration" if strict == "auto" else strict
        self._vocabulary = TextVocabulary()
        self._namable: frozenset[int] | None = None
        self._batcher: Batcher[str, Answer] = Batcher(
            client.pacer, self._request, _LIST if route.lists else 1
        )
        self._reader = lru_cache(8)(lambda words: FirstTokens(words, route.match))
        self._read = 0
        self._outside: Counter[str] = Counter()
        self._changed = ""

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def notice(self) -> str:
        return "; ".join(filter(None, (self._client.pacer.notice, self._censored(), self._changed)))

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return self._vocabulary.tokenize(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return self._vocabulary.detokenize(ids)

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        texts = tuple([self._vocabulary.detokenize([word]) for word in words])
        answers = await self._batcher.ask("first tokens", [self._text(prompt) for prompt in prompts])
        reader = self._reader(texts)
        readings: list[Reading] = [reader.read(found) for found, _ in answers]
        rows, exact = checked(readings, len(words), self._client.base_url)
        self._read += exact.size
        self._outside.update({text: int(n) for text, n in zip(texts, (~exact).sum(axis=0), strict=True) if n})
        mass = np.where(exact, np.exp(rows), 0.0).sum(axis=1)
        rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
        return Scores(rows, exact, mass, sum((cost for _, cost in answers), Usage()))

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        """Most probable tokens that are one piece of text, and a piece whose text can be said.

        Which pieces can be said is settled at the first call: packaged words, usual characters, and what
        the task's own texts hold. So a run that is resumed from its journal can say them too.
        """
        if self._namable is None:
            self._namable = self._vocabulary.known()
        answers = await self._batcher.ask("first tokens", [self._text(prompt) for prompt in prompts])
        lists = [self._pieces(found, k) for found, _ in answers]
        return lists, sum((cost for _, cost in answers), Usage())

    async def token_table(self) -> TokenTable | None:
        return None

    async def aclose(self) -> None:
        await self._batcher.aclose()
        await self._client.aclose()

    # ------------------------------------------------------------------------------------------

    def _text(self, prompt: Prompt) -> str:
        if prompt.soft is not None:
            raise BackendError(
                f"{self._client.base_url} takes no continuous prompts", "use backend.kind = 'vllm'"
            )
        return self._vocabulary.detokenize(prompt.ids)

    def _pieces(self, found: Mapping[str, float], k: int) -> dict[int, float]:
        assert self._namable is not None
        ranked = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[: min(k, self._route.top_k)]
        numbers = [(self._vocabulary.piece(text), value) for text, value in ranked if value > NEVER]
        return {i: value for i, value in numbers if i is not None and i in self._namable}

    async def _request(self, kind: Hashable, texts: Sequence[str]) -> list[Answer]:
        """The lists of some prompts in one request, in their order."""
        route = self._route

        def read(answer: Any) -> list[Answer]:
            self._same(answer.get("system_fingerprint"))
            found = route.lists_of(answer, len(texts))
            if any(spoiled(one, route.top_k) for one in found):
                raise Trouble(f"{self._client.base_url} sent {SPOILED}", chance=True)
            cost = used(answer, [len(self._vocabulary.tokenize(text)) for text in texts])
            return list(zip(found, cost, strict=True))

        try:
            return await self._client.ask(route.path, route.body(texts), read)
        except SHAPE_ERRORS as error:
            failed = self._client.strange(route.path, error)
        raise failed  # not with the other as its context: that may hold what the server sent

    def _same(self, fingerprint: object) -> None:
        """Tell, or refuse, answers of another configuration than the one the run began with."""
        began = self._info.details["system_fingerprint"]
        if not began or not fingerprint or fingerprint == began:
            return
        what = self._client.masked(
            f"{self._client.base_url} has changed in mid-run: it was {began}, it is {fingerprint}"
        )
        if self._strict:
            raise BackendError(
                what, "its scores cannot be compared with the earlier ones; what was paid for is kept"
            )
        self._changed = what

    def _censored(self) -> str:
        outside = self._outside.total()
        if outside <= _CENSORED * self._read:
            return ""
        word, _ = self._outside.most_common(1)[0]
        return (
            f"{outside / self._read:.0%} of the words' scores are only bounds, because the server lists "
            f"{self._route.top_k} tokens; most often that of {word!r}"
        )


def _info(pilot: Pilot, route: Route, context: int, noise: float) -> BackendInfo:
    client = pilot.client
    seen = set(pilot.fingerprints)
    fingerprint = pilot.fingerprints[-1] if seen else ""
    stable = len(seen) == 1 and _CONFIGURATION.fullmatch(fingerprint) is not None
    # Where it names no configuration it changes from hour to hour, and would make no two runs the same.
    identity = [client.base_url, route.model, fingerprint if stable else "", route.api, route.prefill.name]
    details = {
        "url": client.base_url,
        "way": f"{route.api}, top-{route.top_k}, {route.match.value}",
        "prefill": route.prefill.name,
        "route": route.to_json(),
        "list prompts": str(_LIST if route.lists else 1),
        "system_fingerprint": fingerprint,
        "fingerprint names": "a configuration" if stable else "a machine" if seen else "nothing",
        "noise": f"{noise:.2g}",
        "requests of the probe": str(pilot.requests),
    }
    return BackendInfo(
        kind="openai",
        model=route.model,
        fingerprint=hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16],
        context=context,
        max_words=route.top_k,  # more can be named, but no list would hold them
        details=details,
        parallel=8,
        complete=False,
        noise=noise,
        learns=True,
        continues=route.continues,
    )


def _problems(
    model: str | None,
    api: str,
    prefill: bool | str,
    top_k: int | str,
    context: int,
    concurrency: int,
    timeout: float,
    strict_fingerprint: bool | str,
    extra: Mapping[str, object] | None,
) -> list[str]:
    """What is wrong with the options, each a sentence that says what was expected."""
    found: list[str] = []

    def expect(key: str, what: str, right: bool, got: object) -> None:
        if not right:
            found.append(f"backend.{key}: expected {what}, got {got!r}")

    expect("model", "the model's name", isinstance(model, str) and bool(model), model)
    expect("api", "one of " + ", ".join(_APIS), api in _APIS, api)
    expect("prefill", "true, false or 'auto'", prefill in (True, False, "auto"), prefill)
    expect("prefill", "no prefill with completions", not (prefill is True and api == "completions"), prefill)
    expect("top_k", "'auto' or a number of at least 2", top_k == "auto" or _number(top_k, 2), top_k)
    expect("context", "a number of at least 1", _number(context, 1), context)
    expect("concurrency", "a number of at least 1", _number(concurrency, 1), concurrency)
    expect("timeout", "seconds above 0", isinstance(timeout, int | float) and timeout > 0, timeout)
    right = strict_fingerprint in (True, False, "auto")
    expect("strict_fingerprint", "true, false or 'auto'", right, strict_fingerprint)
    own = sorted(_OWN & set(extra or {}))
    expect("extra", "no field that the backend sets itself", not own, ", ".join(own))
    return found


def _number(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
