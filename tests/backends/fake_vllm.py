"""A server with vLLM's routes that fails on demand.

It exists only to inject faults that a real server cannot be asked for: a reset connection, half an
answer, choices out of order, another model behind the same address. What vLLM itself does is tested
against a real one (``tests/servers/vllm_cpu.py``). Its numbers are the toy model's (``tests/toy.py``).
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedbpt_api.scoring.backend import Prompt
from toy import TEXTS, ToyBackend

Fault = Literal[
    "", "429", "429 at once", "500", "503", "reset", "hang-up", "stall", "truncated", "shuffled",
    "other ids", "missing", "spoiled", "changed", "400", "401", "quota",
]  # fmt: skip
Script = Callable[[int, int], Fault]
"""From the number of a completions request (from 1) and how often its body came so far, to what happens."""

PASSING: tuple[Fault, ...] = (
    "429", "429 at once", "500", "503", "reset", "hang-up", "stall", "truncated", "shuffled", "other ids",
    "missing",
)  # fmt: skip
"""Faults that another try, or a careful reader, gets over."""

_REFUSALS: Mapping[Fault, tuple[int, dict[str, str], object]] = {
    "429": (429, {}, {"error": {"message": "slow down", "type": "rate_limit_error", "code": 429}}),
    "429 at once": (429, {"Retry-After": "0"}, {"error": {"message": "slow down"}}),
    "500": (500, {}, {"error": {"message": "EngineCore encountered an issue", "code": 500}}),
    "503": (503, {}, {"error": {"message": "overloaded", "type": "ServiceUnavailable", "code": 503}}),
    "400": (
        400,
        {},
        {"error": {"message": "logits processor is broken", "type": "BadRequestError", "code": 400}},
    ),
    "401": (401, {}, {"error": "Unauthorized"}),
    "quota": (
        429,
        {},
        {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}},
    ),
}
_BYTE_PIECES = {  # byte-level tokenisers' stand-ins for bytes
    byte: chr(byte) if byte in (*range(33, 127), *range(161, 173), *range(174, 256)) else ""
    for byte in range(256)
}
_BYTE_PIECES |= {b: chr(256 + n) for n, b in enumerate(b for b, char in _BYTE_PIECES.items() if not char)}


def healthy(number: int, repeat: int) -> Fault:
    """Nothing goes wrong."""
    return ""


def always(fault: Fault) -> Script:
    """It goes wrong from now on."""
    return lambda number, repeat: fault


def now_and_then(faults: Sequence[Fault], share: float = 0.3, seed: int = 0) -> Script:
    """Each request fails with probability `share`, but the same one at most twice."""

    def script(number: int, repeat: int) -> Fault:
        rng = np.random.default_rng((seed, number))
        fails = repeat <= 2 and rng.random() < share
        return faults[int(rng.integers(len(faults)))] if fails else ""

    return script


def at(numbers: Mapping[int, Fault]) -> Script:
    """The requests of these numbers fail."""
    return lambda number, repeat: numbers.get(number, "")


class FakeVllm:
    """The toy model behind vLLM's routes.

    Args:
        toy: Who answers.
        named: Whether it knows ``logprob_token_ids``; unknown fields are ignored, as vLLM ignores them.
        grammar: Whether it knows ``structured_outputs``.
        longest: Most entries of a list of probable tokens.
        key: What it wants as a bearer token.
        metrics: What it says at ``/metrics``; there is no such route without it.

    Attributes:
        script: What goes wrong; may be replaced at any time.
        completions: Completions requests so far, failed ones included.
        faults: How often what went wrong.
        bodies: How often the same was asked.
    """

    def __init__(
        self,
        toy: ToyBackend | None = None,
        *,
        named: bool = True,
        grammar: bool = True,
        longest: int = 200,
        key: str | None = None,
        metrics: str | None = None,
    ) -> None:
        self.toy = toy or ToyBackend()
        self.script: Script = healthy
        self.completions = 0
        self.faults: Counter[Fault] = Counter()
        self._named, self._grammar, self._longest, self._key = named, grammar, longest, key
        self._metrics = metrics
        self.bodies: Counter[bytes] = Counter()
        self._handlers: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Listen on a free port; gives the base URL. Stalled requests are dropped at the end."""
        async with await asyncio.start_server(self._connected, "127.0.0.1", 0) as server:
            try:
                yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            finally:
                self._closing.set()
                await asyncio.gather(*self._handlers)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()
            self._handlers.discard(task)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = lines[0].split()[1]
        fault: Fault = ""
        if path == "/v1/completions":
            self.completions += 1
            self.bodies[body] += 1
            fault = self.script(self.completions, self.bodies[body])
            self.faults[fault] += 1
        if self._key is not None and headers.get("authorization") != f"Bearer {self._key}":
            fault = "401"
        await self._answer(writer, path, json.loads(body or b"{}"), fault)

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: Any, fault: Fault) -> None:
        if fault == "stall":
            await self._closing.wait()
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if fault in ("stall", "reset", "hang-up"):
            return
        more: dict[str, str] = {}
        if fault in _REFUSALS:
            status, more, answer = _REFUSALS[fault]
        else:
            status, answer = await self._route(path, body, fault)
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", "Connection: close"]
        if fault == "truncated":  # the length is right, the content is not
            content = content[: len(content) // 2]
            head[1] = f"Content-Length: {len(content)}"
        head += [f"{name}: {value}" for name, value in more.items()]
        writer.write("\r\n".join([*head, "", ""]).encode() + content)
        await writer.drain()

    async def _route(self, path: str, body: Any, fault: Fault) -> tuple[int, object]:
        match path:
            case "/v1/models":
                entry = {"id": "toy", "owned_by": "vllm", "root": "toy", "max_model_len": self.toy.context}
                return 200, {"object": "list", "data": [entry]}
            case "/metrics" if self._metrics is not None:
                return 200, self._metrics
            case "/version":
                return 200, {"version": "0.32.0"}
            case "/tokenize":
                tokens = list(await self.toy.tokenize(body["prompt"]))
                return 200, {"tokens": tokens, "count": len(tokens), "max_model_len": self.toy.context}
            case "/detokenize":
                return 200, {"prompt": await self.toy.detokenize(body["tokens"])}
            case "/v1/completions":
                return await self._complete(body, fault)
        return 404, {"detail": "Not Found"}

    async def _complete(self, body: Any, fault: Fault) -> tuple[int, object]:
        if "prompt_embeds" in body:
            return _bad("You must set --enable-prompt-embeds to input prompt_embeds")
        asked = body.get("logprobs")
        named = body.get("logprob_token_ids") if self._named else None
        if named is None and asked is not None and asked > self._longest:
            return _bad(
                f"Requested sample logprobs of {asked}, which is greater than max allowed: {self._longest}"
            )
        if named is not None and (len(named) > 128 or max(named) >= len(TEXTS)):
            return _bad("logprob_token_ids: too many, or out of the vocabulary")
        prompts = [Prompt(tuple(ids)) for ids in await self._ids(body["prompt"])]
        if any(len(prompt) >= self.toy.context for prompt in prompts):
            return _bad(f"This model's maximum context length is {self.toy.context} tokens.")
        choices = [
            {"index": i, "text": "", "finish_reason": "length", "logprobs": logprobs}
            for i, logprobs in enumerate(await self._logprobs(prompts, body, named))
        ]
        if fault == "shuffled":
            choices.reverse()
        if fault == "missing":
            choices.pop()
        if fault == "other ids" and named is not None:  # in a list of probable tokens nobody could tell
            for choice in choices:
                choice["logprobs"] = _renamed(choice["logprobs"])
        if fault == "spoiled" and named is None:  # as beside a request that names tokens
            for choice in choices:
                choice["logprobs"] = _spoiled(choice["logprobs"])
        tokens = sum(map(len, prompts))
        return 200, {
            "id": "cmpl-1", "object": "text_completion", "model": "toy", "choices": choices,
            "system_fingerprint": "vllm-0.33.0-other" if fault == "changed" else "vllm-0.32.0-toy",
            "usage": {"prompt_tokens": tokens, "completion_tokens": len(prompts),
                      "prompt_tokens_details": {"cached_tokens": 0}},
        }  # fmt: skip

    async def _ids(self, prompt: Any) -> list[tuple[int, ...]]:
        """One text or one list of ids, or several of them."""
        several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        prompts = prompt if several else [prompt]
        return [await self.toy.tokenize(p) if isinstance(p, str) else tuple(p) for p in prompts]

    async def _logprobs(self, prompts: Sequence[Prompt], body: Any, named: list[int] | None) -> list[Any]:
        if body.get("logprobs") is None:
            return [None] * len(prompts)
        lists, _ = await self.toy.top_words(prompts, len(TEXTS))
        choices = body.get("structured_outputs", {}).get("choice") if self._grammar else None
        if choices:
            lists = [_masked(found, choices) for found in lists]
        by_id = body.get("return_tokens_as_token_ids")
        answers = []
        for found in lists:
            top = list(found)
            kept = [*named, top[0]] if named is not None else top[: max(body["logprobs"], 1)]
            entries = {(f"token_id:{i}" if by_id else TEXTS[i]): found[i] for i in kept}
            answers.append({"top_logprobs": [entries], "token_logprobs": [found[top[0]]]})
        return answers


def _bad(message: str) -> tuple[int, object]:
    return 400, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


def _masked(found: Mapping[int, float], choices: Sequence[str]) -> dict[int, float]:
    """What a grammar leaves: first tokens of the choices, whole or in part; vLLM writes -9999 for others."""
    legal = {i for i in found if TEXTS[i] and any(choice.startswith(TEXTS[i]) for choice in choices)}
    total = np.logaddexp.reduce([found[i] for i in legal])
    left = {i: float(value - total) if i in legal else -9999.0 for i, value in found.items()}
    return dict(sorted(left.items(), key=lambda item: -item[1]))


def _renamed(logprobs: Any) -> Any:
    """The same numbers under the numbers of other tokens."""
    (top,) = logprobs["top_logprobs"]
    shifted = {f"token_id:{int(key.removeprefix('token_id:')) + 1}": v for key, v in top.items()}
    return logprobs | {"top_logprobs": [shifted]}


def _spoiled(logprobs: Any) -> Any:
    """All but the most probable token as if they were impossible."""
    (top,) = logprobs["top_logprobs"]
    best = max(top, key=top.__getitem__)
    return logprobs | {"top_logprobs": [{key: v if key == best else -9999.0 for key, v in top.items()}]}


def piece(text: str) -> str:
    """A text as byte-level tokenisers write it in tokenizer.json."""
    return "".join(_BYTE_PIECES[byte] for byte in text.encode())


def write_safetensors(path: Path, name: str, kind: str, shape: Sequence[int], raw: bytes) -> None:
    """A file of two tensors, the second of which is `name`."""
    header = json.dumps({
        "__metadata__": {"format": "pt"},
        "lm_head.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        name: {"dtype": kind, "shape": list(shape), "data_offsets": [4, 4 + len(raw)]},
    }).encode()  # fmt: skip
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4) + raw)


async def write_weights(folder: Path, toy: ToyBackend | None = None) -> Path:
    """The toy's vocabulary and embeddings as a model folder."""
    table = await (toy or ToyBackend()).token_table()
    assert table is not None
    rows = table.embeddings.astype("<f4")
    write_safetensors(
        folder / "model.safetensors", "model.embed_tokens.weight", "F32", rows.shape, rows.tobytes()
    )
    vocabulary = {_BYTE_PIECES[i] if i < 256 else piece(text): i for i, text in enumerate(TEXTS)}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary}, "decoder": {"type": "ByteLevel"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder
