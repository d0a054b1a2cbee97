"""A small server with vLLM's routes that tells the truth, or one chosen lie, for tests of the probe."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Json = dict[str, Any]
Lie = Callable[[str, Json, Json], tuple[int, object] | None]
"""From path, body and the true answer to what is answered instead; None for the true answer."""

_WORDS = 400
_CAP = 20


@dataclass
class Liar:
    """The server; `lie` may change any answer, in place or altogether."""

    lie: Lie = lambda path, body, answer: None
    owner: str = "vllm"
    known: frozenset[str] = frozenset(
        {"logprob_token_ids", "return_tokens_as_token_ids", "structured_outputs"}
    )
    heads: list[str] = field(default_factory=list)
    vocabulary: dict[str, int] = field(default_factory=dict)
    cached: set[tuple[int, ...]] = field(default_factory=set)

    def ids(self, text: str) -> list[int]:
        return [
            self.vocabulary.setdefault(word, len(self.vocabulary))
            for word in re.findall(r" ?[^ ]{1,9}", text)
        ]

    def truth(self, path: str, body: Json) -> tuple[int, Json]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "tiny", "owned_by": self.owner, "max_model_len": 512}]}
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path == "/tokenize" and "prompt" in body:
            return 200, {"tokens": self.ids(body["prompt"])}
        if path == "/v1/completions" and "prompt_embeds" in body:
            return 400, {
                "error": {"message": "You must set `--enable-prompt-embeds` to input `prompt_embeds`."}
            }
        if path == "/v1/completions":
            return self._complete({k: v for k, v in body.items() if k in self.known or k in _OPENAI})
        if path == "/v1/chat/completions":
            top = self._top(self.ids(str(body["messages"])), body["top_logprobs"])
            rows = [{"token": f"<{i}>", "logprob": value} for i, value in top.items()]
            content = [{"top_logprobs": rows}]
            return 200, {
                "choices": [{"index": 0, "message": {"content": "a"}, "logprobs": {"content": content}}]
            }
        return 404, {"detail": "Not Found"}

    def _complete(self, body: Json) -> tuple[int, Json]:
        given = body["prompt"]
        prompts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
        rows = [self.ids(p) if isinstance(p, str) else p for p in prompts]
        for field_, most, asked in (
            ("prompts", 1024, len(rows)),
            ("logprobs", _CAP, body.get("logprobs", 0)),
        ):
            if asked > most:
                return 400, {
                    "error": {"message": f"{asked} {field_} is greater than max allowed: {most}", "code": 400}
                }
        if body["max_tokens"] < 1:
            return 400, {"error": {"message": "max_tokens must be at least 1, got 0."}}
        choices = [self._choice(i, ids, body) for i, ids in enumerate(rows)]
        before = len(rows[0]) if tuple(rows[0]) in self.cached else 0
        self.cached.add(tuple(rows[0]))
        usage = {"prompt_tokens": sum(map(len, rows)), "prompt_tokens_details": {"cached_tokens": before}}
        return 200, {"choices": choices, "usage": usage, "system_fingerprint": "vllm-0.32.0-abc"}

    def _choice(self, index: int, ids: Sequence[int], body: Json) -> Json:
        allowed = [self.ids(c)[0] for c in body.get("structured_outputs", {}).get("choice", ())]
        top = self._top(ids, body.get("logprobs", 1), body.get("logprob_token_ids"), allowed)
        key = "token_id:{}" if body.get("return_tokens_as_token_ids") else "<{}>"
        found = {key.format(i): value for i, value in top.items()}
        return {"index": index, "text": next(iter(found)), "logprobs": {"top_logprobs": [found]}}

    def _top(
        self, ids: Sequence[int], k: int, named: Sequence[int] | None = None, allowed: Sequence[int] = ()
    ) -> dict[int, float]:
        values = np.random.default_rng([1, *ids]).normal(size=_WORDS) * 2.0
        if allowed:
            values += np.where(np.isin(np.arange(_WORDS), allowed), 0.0, -math.inf)
        values -= np.logaddexp.reduce(values)
        order = np.argsort(-values)[:k]
        chosen = order if named is None else [*named, order[0]]
        return {int(i): float(max(values[i], -9999.0)) for i in chosen}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        sent = await reader.readexactly(int(length[1])) if length else b"{}"
        path, body = head.split()[1], json.loads(sent)
        status, true = self.truth(path, body)
        status, content = self.lie(path, body, true) or (status, true)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        start = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        writer.write(start.encode() + data)
        writer.close()
        await writer.wait_closed()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self.answer, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    @contextmanager
    def in_a_thread(self) -> Iterator[str]:
        """The same for tests that are not asynchronous."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        context = self.serve()
        try:
            yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(10)
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(10)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


_OPENAI = {"model", "prompt", "max_tokens", "temperature", "logprobs", "logit_bias", "echo"}


def only(path: str, status: int, content: object) -> Lie:
    """This answer on one route, the truth elsewhere."""
    return lambda at, body, answer: (status, content) if at == path else None


def always(status: int, content: object) -> Lie:
    return lambda path, body, answer: (status, content)


def same_value(value: float) -> Lie:
    """Lists in which every token has one and the same value."""

    def lie(path: str, body: Json, answer: Json) -> None:
        for choice in answer.get("choices", ()):
            logprobs = choice["logprobs"]
            for top in logprobs.get("top_logprobs", ()):
                top.update(dict.fromkeys(top, value))
            for row in (row for place in logprobs.get("content", ()) for row in place["top_logprobs"]):
                row["logprob"] = value

    return lie
