"""SGLang's form of requests and answers, as documented. No server of it was at hand: not run live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import Backend, Prompt
from fedbpt_api.scoring.conformance import BackendConformance
from fedbpt_api.scoring.registry import open_backend
from fedbpt_backends import pacing
from toy import TEXTS, ToyBackend


class FakeSglang:
    """Answers from the toy, in SGLang's documented form; `spoil` changes an answer of ``/generate``."""

    def __init__(self) -> None:
        self.toy = ToyBackend()
        self.bodies: list[Any] = []
        self.spoil: Any = lambda answer: answer

    async def answer(self, path: str, body: Any) -> Any:
        match path:
            case "/v1/models":
                return {"data": [{"id": "toy", "owned_by": "sglang", "max_model_len": 512}]}
            case "/server_info":
                return {"version": "0.5.23"}
            case "/tokenize":
                return {"tokens": list(await self.toy.tokenize(body["prompt"]))}
            case "/detokenize":
                return {"text": await self.toy.detokenize(body["tokens"])}
        assert path == "/generate"
        self.bodies.append(body)
        assert body["return_logprob"] is True and body["sampling_params"]["temperature"] == 0
        lists, _ = await self.toy.top_words([Prompt(tuple(ids)) for ids in body["input_ids"]], len(TEXTS))
        answers = []
        for found in lists:
            meta: dict[str, Any] = {"prompt_tokens": 9, "cached_tokens": 3}
            if named := body.get("token_ids_logprob"):
                assert body["sampling_params"]["max_new_tokens"] == 0
                meta["output_token_ids_logprobs"] = [[[found[i], i, None] for i in sorted(named)]]
            else:
                top = list(found)[: body["top_logprobs_num"]]
                meta["output_top_logprobs"] = [[[found[i], i, TEXTS[i]] for i in top]]
            answers.append({"meta_info": meta})
        return self.spoil(answers)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next((int(x.split(":")[1]) for x in head.split("\r\n") if x.startswith("content-length")), 0)
        body = orjson.loads(await reader.readexactly(length)) if length else None
        content = orjson.dumps(await self.answer(head.split()[1], body))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(content))
        writer.write(content)
        writer.close()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Backend]:
        async with await asyncio.start_server(self.handle, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            backend = await open_backend("sglang", base_url=url)
            try:
                yield backend
            finally:
                await backend.aclose()


class TestConformance(BackendConformance):
    """The suite that every backend must pass, on a fake: it proves the reading, not the server."""

    TEXTS = ("great lovely wonderful day", "awful terrible night", "the day was")
    RARE = " tree"

    def run(self, test: Any) -> Any:
        async def work() -> Any:
            async with FakeSglang().open() as backend:
                return await test(backend)

        return asyncio.run(work())


async def test_named_words_are_the_toy_s_and_cached_tokens_are_counted() -> None:
    fake = FakeSglang()
    prompts, words = [Prompt((300, 301)), Prompt((302, 300))], (281, 270)
    async with fake.open() as backend:
        scores = await backend.score(prompts, words)
    ours = await ToyBackend().score(prompts, words)
    np.testing.assert_allclose(scores.logprobs, ours.logprobs)
    np.testing.assert_allclose(scores.mass, ours.mass)
    assert (scores.usage.scored, scores.usage.cached_tokens, scores.usage.requests) == (2, 6, 1)
    assert fake.bodies[0]["token_ids_logprob"] == list(words)


@pytest.mark.parametrize(
    "spoil", [lambda answer: answer[1:], lambda answer: [{"meta_info": {}}] * len(answer), lambda answer: {}]
)
async def test_an_answer_of_another_form_is_an_error(spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_backoff", lambda state: 0.0)
    fake = FakeSglang()
    async with fake.open() as backend:
        fake.spoil = spoil
        with pytest.raises(BackendError, match="generate"):
            await backend.score([Prompt((300,)), Prompt((301,))], (270, 281))
    assert len(fake.bodies) == pacing.ATTEMPTS
