"""Servers with OpenAI's interface: what they can do is found out, their lists are read, keys stay secret."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

import llama_server
from fedbpt_api.errors import BackendError, ConfigError, QuotaError
from fedbpt_api.scoring.backend import Backend, Prompt, Scores, Soft
from fedbpt_api.scoring.conformance import BackendConformance
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.trie import label_trie
from fedbpt_api.task import LabelWords
from fedbpt_backends import pacing
from fedbpt_backends.first_tokens import FirstTokens, Match
from ranking import WORDS, Messages, ranks_as_native

KEY = "sk-very-secret-0123456789"
Lists = Mapping[str, float]  # {token: probability}


def probabilities(text: str) -> Lists:
    """What the fake model says after a text (a chat's messages are lines)."""
    if text.endswith("four, five, six,"):
        return {" seven": 0.9, " eight": 0.05}
    filler = {f" word{i}": 0.01 for i in range(20)}
    good = 0.2 + 0.1 * text.count("good")
    return {" positive": good, " negative": 0.6 - good, " neutral": 0.1, **filler}


@dataclass
class FakeOpenAI:
    """A server with OpenAI's interface: `says` is its model, `faults` are given before any answer."""

    says: Callable[[str], Lists] = probabilities
    completions: bool = True
    chat: bool = True
    most: int = 20
    takes_lists: bool = True
    counts: bool = True
    newer_fields: bool = True  # max_completion_tokens
    prefill: str = "continue_final_message"  # or "automatic", "none"
    key: str | None = None
    fingerprint: str | None = None
    faults: list[tuple[int, object, str]] = field(default_factory=list)
    spoil: int = 0
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        path = lines[0].split()[1]
        self.seen.append((path, headers, body))
        status, answer, more = self.faults.pop(0) if self.faults else (*self.answer(path, headers, body), "")
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n{more}Connection: close".encode()
        )
        writer.write(b"\r\n\r\n" + content)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def answer(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> tuple[int, object]:
        sent = headers.get("authorization", headers.get("api-key", ""))
        if self.key is not None and not sent.endswith(self.key):
            return 401, _refusal(
                f"Incorrect API key provided: {sent.removeprefix('Bearer ')}", "invalid_api_key"
            )
        route = path.split("?")[0].rpartition("/v1")[2]
        if route.endswith("/chat/completions") and self.chat:
            return self._chat(body)
        if route.endswith("/completions") and not route.endswith("/chat/completions") and self.completions:
            return self._complete(body)
        return 404, _refusal("This model is not supported on this route", "model_not_found")

    def _complete(self, body: Mapping[str, Any]) -> tuple[int, object]:
        if body["logprobs"] > self.most:
            return 400, _refusal(
                f"logprobs of {body['logprobs']}, which is greater than max allowed: {self.most}"
            )
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        if not self.takes_lists and len(prompts) > 1:
            return 400, _refusal("prompt must be a text")
        choices = [
            {"index": i, "logprobs": {"top_logprobs": [dict(self._top(p, body["logprobs"]))]}}
            for i, p in enumerate(prompts)
        ]
        return 200, self._counted(choices[::-1], prompts)

    def _chat(self, body: Mapping[str, Any]) -> tuple[int, object]:
        if "max_completion_tokens" in body and not self.newer_fields:
            return 400, _refusal("Unsupported parameter: 'max_completion_tokens'. Use 'max_tokens' instead.")
        if body["top_logprobs"] > self.most:
            return 400, _refusal(f"Invalid 'top_logprobs': must be less than or equal to {self.most}.")
        text = "\n".join(message["content"] for message in body["messages"])
        begun = body["messages"][-1]["role"] == "assistant"
        if begun and not (self.prefill == "automatic" or body.get(self.prefill)):
            text += "\n"  # a new answer
        top = [{"token": t, "logprob": v} for t, v in self._top(text, body["top_logprobs"])]
        return 200, self._counted([{"index": 0, "logprobs": {"content": [{"top_logprobs": top}]}}], [text])

    def _top(self, text: str, k: int) -> list[tuple[str, float]]:
        if self.spoil:
            self.spoil -= 1
            return [(" the", -1.0), ("<|endoftext|>", -9999.0)]
        ranked = sorted(self.says(text).items(), key=lambda pair: -pair[1])[:k]
        return [(token, math.log(p)) for token, p in ranked]

    def _counted(self, choices: list[Any], prompts: Sequence[str]) -> dict[str, Any]:
        tokens = sum(len(p) for p in prompts)
        usage = {
            "prompt_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens": 1,
        }
        answer = {"choices": choices, "usage": usage if self.counts else None}
        return answer | ({"system_fingerprint": self.fingerprint} if self.fingerprint else {})

    @asynccontextmanager
    async def serve(self, **options: object) -> AsyncIterator[Backend]:
        """The backend of this server, opened."""
        async with await asyncio.start_server(self.serve_one, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            given: dict[str, Any] = {"base_url": url, "model": "fake", "api_key_env": None} | options
            backend = await open_backend("openai", **given)
            try:
                yield backend
            finally:
                await backend.aclose()


def _refusal(message: str, code: str = "invalid_request_error") -> dict[str, object]:
    return {"error": {"message": message, "type": code, "code": code}}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_backoff", lambda state: 0.0)
    monkeypatch.setenv("THE_KEY", KEY)
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)


async def scores(backend: Backend, *texts: str, words: Sequence[str] = WORDS) -> Scores:
    prompts = [Prompt(await backend.tokenize(text)) for text in texts]
    return await backend.score(prompts, [(await backend.tokenize(word))[0] for word in words])


# What a server can do --------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "length"), [(20, 20), (5, 5), (1000, 23)])
async def test_the_longest_list_that_the_server_allows_is_asked_for(most: int, length: int) -> None:
    """23 is what the fake's model knows: servers that clip silently are believed."""
    fake = FakeOpenAI(most=most)
    async with fake.serve() as backend:
        assert backend.info.max_words == length
        assert "completions" in backend.info.details["way"]
        assert backend.info.noise == 0.0
        assert not backend.info.complete
    assert len(fake.seen) <= 10


async def test_where_completions_have_no_log_probabilities_chat_is_taken() -> None:
    async with FakeOpenAI(completions=False).serve() as backend:
        assert backend.info.details["way"].startswith("chat")
    with pytest.raises(BackendError, match="not supported on this route"):
        async with FakeOpenAI(completions=False, chat=False).serve():
            pass


async def test_a_server_that_does_not_know_the_newer_field_is_asked_with_the_older() -> None:
    fake = FakeOpenAI(newer_fields=False)
    async with fake.serve(api="chat") as backend:
        await scores(backend, "good")
    assert fake.seen[-1][2]["max_tokens"] == 1
    assert "max_completion_tokens" not in fake.seen[-1][2]


@pytest.mark.parametrize("way", ["automatic", "continue_final_message", "none"])
async def test_prefill_is_used_where_the_server_goes_on_with_the_answer(way: str) -> None:
    fake = FakeOpenAI(prefill=way)
    async with fake.serve(api="chat", system="Be brief.") as backend:
        assert backend.info.details["prefill"] == way
        await scores(backend, "Tweet: so good\nSentiment:")
    sent = [(m["role"], m["content"]) for m in fake.seen[-1][2]["messages"]]
    assert sent == [
        ("system", "Be brief."),
        *(
            [("user", "Tweet: so good\nSentiment:")]
            if way == "none"
            else [("user", "Tweet: so good"), ("assistant", "Sentiment:")]
        ),
    ]


async def test_lists_that_come_out_of_order_are_put_into_it() -> None:
    fake = FakeOpenAI()
    texts = ["so good", "bad", "good good good", "nothing"]
    async with fake.serve() as backend:
        before = len(fake.seen)
        found = await scores(backend, *texts)
        assert len(fake.seen) == before + 1
        assert found.usage.scored == 4
        assert found.usage.requests == 1
        assert found.usage.prompt_tokens == sum(map(len, texts))
        assert found.usage.cached_tokens == 3
    expected = np.array([[probabilities(t)[w] for w in WORDS] for t in texts])
    np.testing.assert_allclose(np.exp(found.logprobs), expected / expected.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.mass, expected.sum(axis=1))
    assert found.exact.all()


async def test_a_server_that_takes_one_prompt_is_asked_one_by_one() -> None:
    fake = FakeOpenAI(takes_lists=False, counts=False)
    async with fake.serve() as backend:
        found = await scores(backend, "so good", "bad")
        assert found.usage.requests == 2
        assert found.usage.prompt_tokens == 3  # pieces, where the server counts nothing


async def test_lists_that_another_s_request_has_spoiled_are_asked_for_again() -> None:
    fake = FakeOpenAI(spoil=8)
    async with fake.serve() as backend:
        assert backend.info.max_words == 20
        fake.spoil = 3
        assert (await scores(backend, "good")).exact.all()


# Reading lists ---------------------------------------------------------------------------------


async def test_words_outside_the_list_are_bounded_counted_and_told() -> None:
    async with FakeOpenAI(most=5).serve() as backend:
        assert backend.notice == ""
        found = await scores(backend, "good", words=(*WORDS, " terrible"))
        assert found.exact.tolist() == [[True, True, True, False]]
        values = np.log([0.3, 0.1, 0.3, 0.01])  # the least of the list bounds it
        np.testing.assert_allclose(found.logprobs[0], values - np.logaddexp.reduce(values))
        np.testing.assert_allclose(found.mass, 0.7)
        assert "25%" in backend.notice
        assert "' terrible'" in backend.notice


async def test_a_chat_s_variants_of_a_word_are_added() -> None:
    said = {"Positive": 0.2, " positive": 0.1, "positive": 0.1, "NEGATIVE": 0.3, "Neut": 0.05, "The": 0.2}
    fake = FakeOpenAI(says=lambda text: said if "good" in text else probabilities(text))
    async with fake.serve(api="chat") as backend:
        found = await scores(backend, "good")
        np.testing.assert_allclose(np.exp(found.logprobs[0]), np.array([0.3, 0.05, 0.4]) / 0.75)
        assert found.exact.all()


def begun(text: str) -> Lists:
    """Says " very good" or " very bad", with other beginnings in the list."""
    if text.endswith(" very"):
        return {" bad": 0.6, " good": 0.2, " long": 0.1}
    return {" very": 0.4, " fine": 0.2, " the": 0.1} if "Sentiment" in text else probabilities(text)


@pytest.mark.parametrize("api", ["completions", "chat"])
async def test_words_that_begin_alike_are_asked_on_after_their_beginning(api: str) -> None:
    words = LabelWords(("bad", "good"), ((" very bad",), (" very good", " fine")))
    async with FakeOpenAI(says=begun).serve(api=api) as served:
        trie = await label_trie(served, words)
        backend = trie.over(served)
        prompts = [Prompt(await backend.tokenize("Tweet: so good\nSentiment:"))]
        found = await backend.score(prompts, trie.tokens)
        expected = [0.4 / 0.6 * 0.75, 0.4 / 0.6 * 0.25, 0.2 / 0.6]
        np.testing.assert_allclose(np.exp(found.logprobs[0]), expected)
        assert found.exact.all() and found.usage.scored == 2


async def test_words_that_begin_alike_are_refused_where_a_chat_begins_a_new_answer_always() -> None:
    words = LabelWords(("bad", "good"), ((" very bad",), (" very good",)))
    async with FakeOpenAI(says=begun, prefill="none").serve(api="chat") as served:
        with pytest.raises(ConfigError, match="cannot be asked on from there"):
            await label_trie(served, words)


def test_a_token_counts_for_one_word_at_most() -> None:
    def read(words: Sequence[str], match: Match, **found: float) -> list[float | None]:
        reading = FirstTokens(words, match).read({k.replace("_", " "): math.log(v) for k, v in found.items()})
        return [
            round(math.exp(v), 9) if e else None for v, e in zip(reading.logprobs, reading.exact, strict=True)
        ]

    folded, exact = Match.FOLDED, Match.EXACT
    assert read((" May", " may"), folded, _May=0.1, _may=0.2, May=0.05, MAY=0.4) == [0.15, 0.2]
    assert read((" art", " artist"), folded, art=0.1, arti=0.2, artis=0.1) == [0.1, 0.3]
    assert read((" positive", " possible"), folded, pos=0.3) == [None, None]  # the beginning of both
    assert read((" positive", " negative"), folded, po=0.3, _Neg=0.1) == [None, 0.1]  # too short to say
    assert read((" positive",), folded, positive=0.1, posit=0.2) == [0.1]  # there is a whole one
    assert read((" positive",), exact, positive=0.1, Positive=0.2) == [None]
    assert read((" positive",), exact, positive=0.1, _posit=0.2) == [0.2]
    assert read((" positive",), Match.STRIPPED, positive=0.1, Positive=0.2) == [0.1]


async def test_lists_of_words_hold_only_what_every_process_can_say() -> None:
    said = {" good": 0.3, "\n\n": 0.2, " xylophonist": 0.1, " (": 0.1, ".": 0.05, " positive": 0.02}
    fake = FakeOpenAI(says=lambda text: said if text == "x" else probabilities(text))
    async with fake.serve() as backend:
        ids = await backend.tokenize("x")
        (found,), usage = await backend.top_words([Prompt(ids)], 2000)
        assert [await backend.detokenize([i]) for i in found] == [" good", ".", " positive"]
        assert usage.scored == 1
        (short,), _ = await backend.top_words([Prompt(ids)], 1)
        assert [await backend.detokenize([i]) for i in short] == [" good"]


async def test_continuous_prompts_and_a_vocabulary_are_not_there() -> None:
    async with FakeOpenAI().serve() as backend:
        assert await backend.token_table() is None
        with pytest.raises(BackendError, match="continuous"):
            await backend.score([Prompt((), soft=Soft(np.zeros((2, 4), dtype=np.float32)))], ())


# Keys, headers, failures -----------------------------------------------------------------------


def everything_of(error: BaseException | None) -> str:
    """All that an error may show: its text, its causes, their fields."""
    parts: list[str] = []
    while error is not None:
        parts += [*traceback.format_exception(error), repr(error), repr(error.args), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


@pytest.mark.parametrize(
    "fault",
    [
        (401, _refusal(f"Incorrect API key provided: {KEY}"), ""),
        (400, f"<html>{KEY}</html>".encode(), ""),
        (429, _refusal(f"{KEY} has no quota", "insufficient_quota"), ""),
        (500, {"detail": {"headers": {"authorization": f"Bearer {KEY}"}}}, ""),
        (200, f"not json {KEY}".encode(), ""),
        (200, {"choices": KEY, "system_fingerprint": KEY}, ""),
        (307, KEY.encode(), "Location: http://127.0.0.1:9/v1\r\n"),
    ],
)
@pytest.mark.parametrize("opened", [True, False])
async def test_no_error_log_or_info_holds_the_key(
    fault: tuple[int, object, str], opened: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeOpenAI(key=KEY, fingerprint=f"fp_{KEY}")
    caplog.set_level(logging.DEBUG)
    shown = ""
    with pytest.raises(BackendError) as caught:
        if not opened:
            fake.faults = [fault] * 100
        async with fake.serve(
            api_key_env="THE_KEY", headers={"X-Gateway": "for ${THE_KEY}"}, concurrency=1
        ) as backend:
            shown = f"{backend.info} {backend!r} {backend.notice}"
            fake.faults = [fault] * 100
            await scores(backend, "good")
    assert fake.seen[0][1]["authorization"] == f"Bearer {KEY}"
    assert fake.seen[0][1]["x-gateway"] == f"for {KEY}"
    assert KEY not in everything_of(caught.value) + shown + caplog.text


async def test_where_nothing_listens_the_key_stays_secret_too() -> None:
    with pytest.raises(BackendError, match="no answer") as caught:
        await open_backend("openai", base_url="http://127.0.0.1:9", model="m", api_key_env="THE_KEY")
    assert KEY not in everything_of(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key_env": "NOT_SET"}, "NOT_SET is not set"),
        ({"api_key_env": "BROKEN"}, "BROKEN holds characters"),
        ({"headers": {"X-Api-Key": "abc"}}, "X-Api-Key to name an environment variable"),
        ({"headers": {"X-Team": "${BROKEN}"}}, "value of X-Team"),
        ({"headers": {"bad header": "1"}}, "'bad header'"),
        ({"base_url": f"http://me:{KEY}@127.0.0.1/v1"}, "no user, password"),
        ({"base_url": f"http://127.0.0.1/v1?key={KEY}"}, "no user, password or query"),
        ({"base_url": "127.0.0.1:8000"}, "not an address"),
        ({"base_url": "http://[::1"}, "not an address"),
        ({"base_url": None, "azure_version": "2024-10-21"}, "address of the Azure resource"),
        ({"model": None}, "backend.model"),
        ({"api": "responses"}, "one of auto, chat, completions"),
        ({"prefill": "yes"}, "backend.prefill"),
        ({"prefill": True, "api": "completions"}, "no prefill with completions"),
        ({"top_k": 0}, "backend.top_k"),
        ({"top_k": True}, "backend.top_k"),
        ({"timeout": 0}, "backend.timeout"),
        ({"extra": {"prompt": "x", "n": 2}}, "backend.extra: .*n, prompt"),
    ],
)
async def test_options_that_cannot_be_used_are_refused_with_what_was_expected(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", f"{KEY}\nX-Injected: 1")
    given: dict[str, Any] = {"base_url": "http://127.0.0.1:9", "model": "m", "api_key_env": "THE_KEY"}
    with pytest.raises(ConfigError, match=message) as caught:
        await open_backend("openai", **given | options)
    assert KEY not in everything_of(caught.value)


async def test_a_gateway_gets_its_own_headers_and_no_key_that_was_not_meant_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "sk-another")
    fake = FakeOpenAI()
    headers = {"Authorization": "Basic ${THE_KEY}", "X-Team": "nlp"}
    async with fake.serve(headers=headers, extra={"seed": 7}, organization="org-1", project="p-1"):
        pass
    _, sent, body = fake.seen[0]
    assert sent["authorization"] == f"Basic {KEY}"
    assert (sent["x-team"], sent["openai-organization"], sent["openai-project"]) == ("nlp", "org-1", "p-1")
    assert body["seed"] == 7
    assert "sk-another" not in str(fake.seen)


async def test_azure_is_asked_by_deployment_and_version() -> None:
    fake = FakeOpenAI(completions=False, key=KEY)
    async with fake.serve(
        azure_version="2024-10-21", model="my deployment", api_key_env="THE_KEY"
    ) as backend:
        assert (await scores(backend, "good")).exact.all()
    path, sent, _ = fake.seen[-1]
    assert path == "/openai/deployments/my%20deployment/chat/completions?api-version=2024-10-21"
    assert sent["api-key"] == KEY


async def test_too_many_requests_are_tried_again_and_an_empty_account_is_not() -> None:
    fake = FakeOpenAI()
    async with fake.serve() as backend:
        fake.faults = [(429, _refusal("slow down", "rate_limit"), "Retry-After: 0.01\r\n")] * 2
        before = len(fake.seen)
        assert (await scores(backend, "good")).exact.all()
        assert len(fake.seen) == before + 3

        fake.faults = [(429, _refusal("You exceeded your current quota", "insufficient_quota"), "")] * 9
        with pytest.raises(QuotaError, match="exceeded"):
            await scores(backend, "bad")
        assert len(fake.seen) == before + 4


async def test_keys_do_not_follow_a_redirection_to_another_server() -> None:
    other, fake = FakeOpenAI(), FakeOpenAI()
    async with await asyncio.start_server(other.serve_one, "127.0.0.1", 0) as server:
        place = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/completions"
        async with fake.serve(headers={"X-Gateway": "${THE_KEY}"}) as backend:
            fake.faults = [(307, b"", f"Location: {place}\r\n")]
            with pytest.raises(BackendError, match="307"):
                await scores(backend, "good")
    assert not other.seen


async def test_a_refused_key_ends_the_opening_at_once() -> None:
    fake = FakeOpenAI(key="another")
    with pytest.raises(BackendError, match="401") as caught:
        async with fake.serve(api_key_env="THE_KEY"):
            pass
    assert "api_key_env" in caught.value.hint
    assert len(fake.seen) == 1


@pytest.mark.parametrize(
    ("first", "strict", "ends"),
    [
        ("vllm-0.32.0-ab", "auto", True),
        ("vllm-0.32.0-ab", False, False),
        ("fp_1", "auto", False),
        ("fp_1", True, True),
    ],
)
async def test_another_configuration_ends_the_run_where_the_fingerprint_names_one(
    first: str, strict: bool | str, ends: bool
) -> None:
    fake = FakeOpenAI(fingerprint=first)
    async with fake.serve(strict_fingerprint=strict) as backend:
        fake.fingerprint = f"{first}2"
        if ends:
            with pytest.raises(BackendError, match="changed in mid-run"):
                await scores(backend, "good")
        else:
            await scores(backend, "good")
            assert "changed in mid-run" in backend.notice


async def test_the_identity_is_the_model_s_and_not_the_machine_s() -> None:
    async def identity(fake: FakeOpenAI, **options: object) -> str:
        async with fake.serve(base_url=url, **options) as backend:
            return backend.info.fingerprint

    fake = FakeOpenAI()
    async with await asyncio.start_server(fake.serve_one, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        plain = await identity(fake)
        fake.fingerprint = "fp_123"
        assert await identity(fake) == plain
        fake.fingerprint = "vllm-0.32.0-ab"
        assert await identity(fake) != plain
        fake.fingerprint = None
        assert len({plain, await identity(fake, model="m2"), await identity(fake, api="chat")}) == 3


# A real server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A llama.cpp server in a process of its own, on a port of its choice."""
    with llama_server.serve() as address:
        yield address


@pytest.mark.model
class TestConformance(BackendConformance):
    """Both routes keep what every backend promises."""

    @pytest.fixture(autouse=True, params=["completions", "chat"])
    def _server(self, request: pytest.FixtureRequest, url: str) -> None:
        self._options = {"base_url": url, "api": request.param}

    async def open(self) -> Backend:
        options: dict[str, Any] = self._options
        return await open_backend("openai", model="any", api_key_env=None, **options)


@pytest.mark.model
@pytest.mark.parametrize("api", ["completions", "chat"])
async def test_a_real_server_s_routes_rank_texts_as_its_token_ids_do(url: str, api: str) -> None:
    backend = await open_backend(
        "openai", base_url=url, model="any", api=api, api_key_env=None, top_k=2000, concurrency=2
    )
    native = await open_backend("llamacpp", base_url=url)
    async with httpx.AsyncClient(base_url=url) as http:

        async def templated(asked: str | Messages) -> Sequence[int]:
            if not isinstance(asked, str):
                asked = (await http.post("/apply-template", json={"messages": asked})).json()["prompt"]
            body = {"content": asked, "add_special": api == "completions", "parse_special": True}
            ids: list[int] = (await http.post("/tokenize", json=body)).json()["tokens"]
            return ids

        try:
            assert await ranks_as_native(backend, native, api, templated, noise=0.02) >= 45
            if api == "chat":
                assert backend.info.details["prefill"] == "automatic"
        finally:
            await backend.aclose()
            await native.aclose()
