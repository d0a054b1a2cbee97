"""What a completions server really does, found out by a handful of cheap requests.

Each question below is one or two requests and answers with a `Finding`: what was looked for, whether it
is there, and how that was seen. An answer with status 200 proves nothing (unknown fields are ignored),
so values are looked at: the named ids must be there, numbers must be numbers, a changed temperature must
change what it would change.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import TokenTable
from fedbpt_backends.http_json import Http, error_words, expected
from fedbpt_backends.tensor_file import torch_bytes
from fedbpt_backends.ways import NamedTokens, checked

SAMPLE = "The weather is fine today, and everybody in the town is"
_SHAPE_ERRORS = (AttributeError, KeyError, IndexError, TypeError, ValueError)
_ASKED = 100_000  # a list longer than any server allows, so that it says what it allows
_NUMBER = re.compile(r"\d+")
_REPEATS = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """One ability.

    Attributes:
        name: What was looked for.
        found: Whether it is there; None where it could not be told.
        value: More about it: a number, a name.
        how: How that was seen, in a few words.
    """

    name: str
    found: bool | None
    value: str = ""
    how: str = ""


@dataclass
class Probe:
    """Questions to the completions route of one model.

    Attributes:
        http: The server.
        model: The model's name there.
        ids: The sample text as token ids; empty where the server does not tokenise.
        system_fingerprint: What the server calls its configuration, from its latest answer.
        requests: Requests sent so far.
    """

    http: Http
    model: str
    ids: tuple[int, ...] = ()
    system_fingerprint: str = ""
    requests: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    async def tokenizer(self) -> Finding:
        """A tokenise route, in vLLM's, SGLang's or llama.cpp's form; fills in `ids`."""
        for body in (
            {"model": self.model, "prompt": SAMPLE, "add_special_tokens": False},
            {"content": SAMPLE},
        ):
            status, answer = await self.http.peek("POST", "/tokenize", body)
            self.requests += 1
            tokens = answer.get("tokens") if isinstance(answer, dict) else None
            if (
                status == 200
                and isinstance(tokens, list)
                and all(isinstance(t, int) for t in tokens)
                and tokens
            ):
                self.ids = tuple(tokens)
                return self._note("tokenise route", True, "/tokenize", f"{len(tokens)} ids for a sentence")
        return self._note("tokenise route", False, "", f"POST /tokenize: status {status}")

    async def id_prompts(self) -> Finding:
        """Token ids as a prompt: the server must count exactly as many."""
        if not self.ids:
            return self._note("token-id prompts", None, "", "no tokenise route to make ids with")
        answer = await self._complete({"prompt": list(self.ids)})
        counted = _at(answer, "usage", "prompt_tokens")
        return self._note(
            "token-id prompts", counted == len(self.ids), "", f"{len(self.ids)} ids sent, {counted} counted"
        )

    async def list_prompts(self, size: int = 64) -> Finding:
        """Several prompts in one request: as many choices, each with its index."""
        answer = await self._complete({"prompt": [self._prompt()] * size})
        choices = answer.get("choices") if isinstance(answer, dict) else None
        got = len(choices) if isinstance(choices, list) else 0
        if got != size:
            return self._note(
                "list prompts", False, "", f"{size} prompts sent, {got} answers: {_words(answer)}"
            )
        return self._note("list prompts", True, f"at least {size}", f"{size} prompts sent, {got} answers")

    async def named_tokens(self) -> Finding:
        """vLLM's ``logprob_token_ids``: ids that no list of the most probable would hold must be there."""
        name = "named-token logprobs"
        if not self.ids:
            return self._note(name, None, "", "no token ids to name")
        words = sorted(set(self.ids))
        way = NamedTokens()
        answer = await self._complete({"prompt": [list(self.ids)], **way.fields(words)})
        try:
            checked([way.read(answer["choices"][0], words)], len(words), "the server")
        except (*_SHAPE_ERRORS, BackendError) as error:
            why = error.message if isinstance(error, BackendError) else _words(answer)
            return self._note(name, False, "", f"logprob_token_ids: {why}")
        return self._note(name, True, f"up to {way.words}", f"all of {len(words)} unlikely ids came back")

    async def top_list(self, asked: int = _ASKED) -> Finding:
        """The longest list of probable tokens: a refusal says what is allowed, else what came is counted."""
        name = "top-k list"
        answer = await self._complete({"logprobs": asked})
        for _ in range(2):
            top = _top(answer)
            if top:
                try:
                    self._sane(top)
                except BackendError as error:
                    return self._note(name, False, "", error.message)
                return self._note(name, True, str(min(len(top), asked)), f"asked for {asked}, got {len(top)}")
            allowed = [int(n) for n in _NUMBER.findall(_words(answer)) if 0 < int(n) < asked]
            asked = min(allowed, default=5 if asked == 20 else 20)
            answer = await self._complete({"logprobs": asked})
        top = _top(answer)
        if not top:
            return self._note(name, False, "", f"logprobs: {asked}: {_words(answer) or 'no list came'}")
        return self._note(name, True, str(asked), "from the server's own refusal of more")

    async def keys_by_id(self) -> Finding:
        """``return_tokens_as_token_ids``: without it, tokens that decode alike collapse into one entry."""
        answer = await self._complete({"logprobs": 5, "return_tokens_as_token_ids": True})
        keys = list(_top(answer))
        by_id = bool(keys) and all(key.startswith("token_id:") for key in keys)
        return self._note(
            "lists keyed by id", by_id, "", f"keys like {keys[0]!r}" if keys else "no list came"
        )

    async def touched_by(self, what: str, fields: Mapping[str, object]) -> Finding:
        """Whether `fields` change the numbers that are reported for the most probable token."""
        name = f"{what} changes logprobs"
        plain = _top(await self._complete({"logprobs": 5, "temperature": 1.0}))
        answer = await self._complete({"logprobs": 5, "temperature": 1.0, **fields})
        other = _top(answer)
        if not plain or not other:
            return self._note(name, None, "", f"refused: {_words(answer)}"[:120])
        common = set(plain) & set(other)
        moved = max((abs(plain[key] - other[key]) for key in common), default=math.inf)
        return self._note(name, moved > 0.05, "", f"by {moved:.2f} nats" if common else "the list is another")

    async def echo(self) -> Finding:
        """``echo`` with log-probabilities: prompts' own tokens scored (teacher forcing)."""
        answer = await self._complete({"echo": True, "max_tokens": 0, "logprobs": 1})
        values = _at(answer, "choices", 0, "logprobs", "token_logprobs")
        found = isinstance(values, list) and len(values) > 2 and all(isinstance(v, float) for v in values[1:])
        return self._note(
            "echo logprobs", found, "", f"{len(values)} values" if found else _words(answer)[:100]
        )

    async def prompt_logprobs(self) -> Finding:
        """vLLM's ``prompt_logprobs``."""
        answer = await self._complete({"prompt_logprobs": 0})
        rows = _at(answer, "choices", 0, "prompt_logprobs")
        found = isinstance(rows, list) and len(rows) > 2
        return self._note(
            "prompt_logprobs", found, "", f"{len(rows)} rows" if found else _words(answer)[:100]
        )

    async def vectors(self, table: TokenTable | None) -> Finding:
        """``prompt_embeds``: the embeddings of a text must score as its token ids do."""
        name = "soft prompts"
        if table is None or not self.ids:
            payload = torch_bytes(np.zeros((2, 8), dtype=np.float32))
        else:
            payload = torch_bytes(table.embeddings[list(self.ids)])
        fields = {"prompt_embeds": [base64.b64encode(payload).decode()], "prompt": None}
        way = NamedTokens()
        words = sorted(set(self.ids)) or [0]
        answer = await self._complete({**fields, **way.fields(words)})
        refused = _words(answer)
        if table is None:
            # Vectors of a wrong width: a server that takes vectors complains about their width.
            takes = "hidden" in refused or "shape" in refused or "size" in refused
            return self._note(name, takes, "", refused[:100] or "prompt_embeds ignored")
        try:
            soft = checked([way.read(answer["choices"][0], words)], len(words), "the server")[0]
            plain = await self._complete({"prompt": [list(self.ids)], **way.fields(words)})
            hard = checked([way.read(plain["choices"][0], words)], len(words), "the server")[0]
        except (*_SHAPE_ERRORS, BackendError):
            return self._note(name, False, "", refused[:120] or "prompt_embeds ignored")
        apart = float(np.abs(soft - hard).max())
        return self._note(
            name, apart < 0.1, "", f"a text's embeddings score as its ids do, but for {apart:.1g}"
        )

    async def noise(self) -> Finding:
        """Standard deviation of a log-probability over repeats, alone and in a list, in nats."""
        fields = {"logprobs": 5}
        rows: list[dict[str, float]] = []
        for _ in range(_REPEATS):
            rows.append(_top(await self._complete(fields)))
        answer = await self._complete({"prompt": [self._prompt()] * 8, **fields})
        choices = answer.get("choices", ()) if isinstance(answer, dict) else ()
        rows += [_top({"choices": [choice]}) for choice in choices]
        common = set.intersection(*(set(row) for row in rows)) if all(rows) else set()
        if not common:
            return self._note("noise", None, "0", "no lists to compare")
        values = np.array([[row[key] for key in sorted(common)] for row in rows])
        spread = float(values.std(axis=0).max())
        return self._note("noise", spread > 0, f"{spread:.2g}", f"{len(rows)} repeats, alone and in a list")

    async def prefix_cache(self) -> Finding:
        """A long prompt twice: the second answer's usage must name cached tokens."""
        name = "prefix cache"
        long = [list(self.ids) * 24] if self.ids else [SAMPLE * 24]
        details: object = None
        for _ in range(2):
            answer = await self._complete({"prompt": long})
            details = _at(answer, "usage", "prompt_tokens_details", "cached_tokens")
        if details is None:
            return self._note(name, None, "", "usage does not say (vLLM: --enable-prompt-tokens-details)")
        return self._note(name, bool(details), str(details), "cached tokens when asked again")

    async def chat(self) -> Finding:
        """The chat route with a list of probable first tokens."""
        messages = [{"role": "user", "content": "Is water wet? Answer yes or no."}]
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": 5,
        }
        status, answer = await self._post("/v1/chat/completions", body)
        top = _at(answer, "choices", 0, "logprobs", "content", 0, "top_logprobs")
        if status == 200 and isinstance(top, list) and top:
            return self._note("chat logprobs", True, "", f"first token {top[0].get('token')!r}")
        return self._note("chat logprobs", False, "", f"status {status}: {_words(answer)}"[:120])

    # ------------------------------------------------------------------------------------------

    def _prompt(self) -> str | list[int]:
        return list(self.ids) if self.ids else SAMPLE

    async def _complete(self, fields: Mapping[str, object]) -> Any:
        body: dict[str, object] = {
            "model": self.model,
            "prompt": self._prompt(),
            "max_tokens": 1,
            "temperature": 0.0,
        }
        body.update(fields)
        _, answer = await self._post("/v1/completions", {k: v for k, v in body.items() if v is not None})
        return answer

    async def _post(self, path: str, body: Mapping[str, object]) -> tuple[int, Any]:
        self.requests += 1
        status, answer = await self.http.peek("POST", path, body)
        if status == 200 and isinstance(answer, dict) and answer.get("system_fingerprint"):
            self.system_fingerprint = str(answer["system_fingerprint"])
        return status, answer

    def _sane(self, top: Mapping[str, float]) -> None:
        """Raise where a list cannot be one of log-probabilities."""
        values = sorted(top.values(), reverse=True)[:20]
        way = [v for v in values if v > -9000.0]
        if not way or (len(way) > 1 and all(v == 0.0 for v in way)):
            raise BackendError("the list holds only zeros or -9999: they are not log-probabilities")
        if not all(math.isfinite(v) for v in way) or sum(math.exp(min(v, 1.0)) for v in way) > 1.01:
            raise BackendError("the list's probabilities sum to more than 1: they are not log-probabilities")

    def _note(self, name: str, found: bool | None, value: str, how: str) -> Finding:
        self.findings[name] = Finding(name, found, value, " ".join(how.split()))
        return self.findings[name]


async def served_model(http: Http, model: str | None) -> Mapping[str, Any]:
    """The entry of ``/v1/models`` for `model`, or the only or first one.

    Raises:
        BackendError: The server does not answer, or does not serve it.
    """
    answer = await http.get("/v1/models")
    try:
        entries = {str(entry["id"]): entry for entry in answer["data"]}
        first = next(iter(entries))
    except (*_SHAPE_ERRORS, StopIteration) as error:
        raise expected(f"{http.base_url}/v1/models", error) from error
    if model is not None and model not in entries:
        raise BackendError(
            f"{http.base_url} does not serve {model!r} but {', '.join(entries)}", "correct backend.model"
        )
    found: Mapping[str, Any] = entries[model or first]
    return found


def _top(answer: Any) -> dict[str, float]:
    found = _at(answer, "choices", 0, "logprobs", "top_logprobs", 0)
    if not isinstance(found, dict):
        return {}
    return {str(key): float(value) for key, value in found.items() if isinstance(value, int | float)}


def _at(answer: Any, *path: str | int) -> Any:
    """What lies at a path of keys and places; None where the way ends."""
    for step in path:
        try:
            answer = answer[step]
        except (KeyError, IndexError, TypeError):
            return None
    return answer


def _words(answer: Any) -> str:
    """What a refusal says; nothing for an answer."""
    if isinstance(answer, dict) and "choices" in answer:
        return ""
    if isinstance(answer, dict):
        return error_words(answer)[0]
    return str(answer)
