"""JSON over HTTP: servers' words in every form, keys in no error, no address that is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_backends import pacing
from fedbpt_backends.headers import bearer
from fedbpt_backends.http_json import Http, error_words, refusal
from fedbpt_backends.pacing import ATTEMPTS, Pacer

SECRET = "sk-4f1d-secret"
Canned = tuple[int, bytes] | None  # status and body; None hangs up


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_backoff", lambda state: 0.0)


class Server:
    """Gives prepared answers in order, the last one again and again; remembers what it was asked."""

    def __init__(self, *answers: Canned) -> None:
        self.answers = list(answers)
        self.heads: list[str] = []

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if answer is not None:
                status, body = answer
                start = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(start.encode() + body)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # the client has gone
        finally:
            writer.close()

    @asynccontextmanager
    async def open(self, headers: dict[str, str] | None = None, user: str = "") -> AsyncIterator[Http]:
        async with await asyncio.start_server(self._answer, "127.0.0.1", 0) as server:
            http = Http(f"http://{user}127.0.0.1:{server.sockets[0].getsockname()[1]}/", Pacer(), headers)
            try:
                yield http
            finally:
                await http.aclose()


# Words of refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words", "code"),
    [
        (
            {"error": {"message": "no model", "type": "NotFoundError", "code": 404}},
            "no model",
            "NotFoundError",
        ),
        ({"error": {"message": "pay", "type": "x", "code": "no_quota"}}, "pay", "no_quota"),
        ({"error": {"message": "pay", "type": "no_quota", "code": "429"}}, "pay", "no_quota"),
        ({"error": "Unauthorized"}, "Unauthorized", ""),
        ({"detail": "Not Found"}, "Not Found", ""),
        ({"detail": [{"loc": ["body", "prompt"], "msg": "field required"}]}, "field required", ""),
        ({"object": "error", "message": "long", "type": "BadRequest", "code": 400}, "long", "BadRequest"),
        ({"message": "limit exceeded"}, "limit exceeded", ""),
        ("plain", "plain", ""),
        (["a", "list"], "list", ""),
    ],
)
def test_a_server_s_words_are_found_in_every_usual_form(body: object, words: str, code: str) -> None:
    found, name = error_words(body)
    assert words in found
    assert name == code


KEYS = st.sampled_from(["error", "message", "code", "type", "detail", "x"])
BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
)


@given(st.binary(max_size=300) | BODIES.map(lambda value: json.dumps(value).encode()))
def test_any_body_of_a_refusal_makes_words_and_no_crash(content: bytes) -> None:
    found = refusal(400, content, {})
    assert len(found.words) <= 600
    error = found.error("http://there")
    assert isinstance(error, BackendError)
    assert "http://there answered 400" in error.message


async def test_the_server_s_words_and_the_place_reach_whoever_asked() -> None:
    body = json.dumps({"error": {"message": "no such model"}}).encode()
    async with Server((404, body)).open() as http:
        with pytest.raises(BackendError, match=rf"{http.base_url}/v1/models answered 404: no such model"):
            await http.get("/v1/models")


# Keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [None, (401, b'{"error": "no"}'), (403, b""), (500, b"x"), (429, b"{}"), (200, b"{"), (302, b"")],
)
async def test_a_key_is_sent_and_is_in_no_error(answer: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", SECRET)
    server = Server(answer)
    async with server.open(bearer("A_KEY", {"X-Gateway": SECRET})) as http:
        with pytest.raises(BackendError) as caught:
            await http.post("/v1/completions", {"prompt": "x"}, dict)
        status, words = await http.peek("POST", "/v1/completions", {"prompt": "x"})
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error!s} {error!r}"
        error = error.__cause__ or error.__context__
    assert SECRET not in f"{status} {words}"
    assert all(f"authorization: bearer {SECRET}" in head.lower() for head in server.heads)


@pytest.mark.parametrize(
    "key", [f"{SECRET}\nX", f"{SECRET}\x00", f"{SECRET}\u00e9", f"{SECRET}\r\nHost: evil"]
)
def test_a_key_that_cannot_be_sent_is_a_config_error_that_does_not_show_it(key: str) -> None:
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"X-Key": key},
        {f"X-{key}": "x"},
        {"X-Key": f" {key}"},
    ):
        with pytest.raises(ConfigError, match=r"backend\.headers") as caught:
            Http("http://127.0.0.1:8000", Pacer(), headers)
        if SECRET not in next(iter(headers)):
            assert SECRET not in str(caught.value)


def test_blanks_around_a_key_in_the_environment_are_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", f" {SECRET}\n")
    assert bearer("A_KEY") == {"Authorization": f"Bearer {SECRET}"}
    assert bearer(None, {"X": "y"}) == {"X": "y"}
    for empty in ("", " \n"):
        monkeypatch.setenv("A_KEY", empty)
        with pytest.raises(ConfigError, match=r"backend\.api_key_env.*A_KEY is not set"):
            bearer("A_KEY")


async def test_a_password_in_the_address_is_used_and_never_shown() -> None:
    server = Server((401, b'{"error": "Unauthorized"}'))
    async with server.open(user=f"me:{SECRET}@") as http:
        with pytest.raises(BackendError) as caught:
            await http.get("/v1/models")
        assert SECRET not in str(caught.value) and SECRET not in http.base_url
    assert "authorization: basic" in server.heads[0].lower()
    with pytest.raises(ConfigError) as refused:
        Http(f"ftp://me:{SECRET}@there", Pacer())
    assert SECRET not in str(refused.value)


# Addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["", "x", "127.0.0.1:8000", "http://", "http:///x", "ftp://a", "http://[::1", "http://a:b", "http://\n"],
)
def test_an_address_that_is_none_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match=r"backend\.base_url") as caught:
        Http(url, Pacer())
    assert "http://127.0.0.1:8000" in caught.value.hint


@given(st.text(max_size=20) | st.text(max_size=20).map(lambda text: f"http://{text}"))
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    async def scenario() -> None:
        try:
            http = Http(text, Pacer())
        except ConfigError:
            return
        await http.aclose()

    asyncio.run(scenario())


# Answers that are cut off -----------------------------------------------------------------------


async def test_an_answer_that_is_cut_off_is_asked_for_again() -> None:
    server = Server((200, b'{"a": [1, 2'), (200, b""), (200, b'{"a": [1, 2]}'))
    async with server.open() as http:
        assert await http.post("/x", {}, dict) == {"a": [1, 2]}
        server.answers = [(200, b'{"a": [1, 2'), (503, b""), None, (200, b'{"a": 3}')]
        assert await http.peek("GET", "/x") == (200, {"a": 3})
    assert len(server.heads) == 3 + 4


async def test_an_answer_that_stays_cut_off_is_an_error_in_the_end() -> None:
    server = Server((200, b'{"a": [1, 2'))
    async with server.open() as http:
        with pytest.raises(BackendError, match="cut off or no JSON"):
            await http.get("/x")
    assert len(server.heads) == ATTEMPTS


@pytest.mark.parametrize(
    "answer", [(404, b'{"detail": "Not Found"}'), (400, b"no"), (200, b"<html>"), (401, b"{}")]
)
async def test_looking_at_a_page_gives_what_it_says_after_one_question(answer: tuple[int, bytes]) -> None:
    server = Server(answer)
    async with server.open() as http:
        status, content = await http.peek("GET", "/x")
    assert status == answer[0]
    assert content == (json.loads(answer[1]) if answer[1].startswith(b"{") else answer[1].decode())
    assert len(server.heads) == 1


async def test_looking_where_nothing_listens_says_so() -> None:
    async with Server(None).open() as http:
        pass
    http = Http(http.base_url, Pacer())
    status, words = await http.peek("GET", "/x")
    await http.aclose()
    assert status == 0 and "ConnectError" in words


async def test_an_answer_that_cannot_be_read_is_asked_for_again_and_then_told() -> None:
    server = Server((200, b'{"a": 1}'), (200, b'{"b": 2}'))
    async with server.open() as http:
        assert await http.post("/x", {}, lambda answer: int(answer["b"])) == 2
        server.answers = [(200, b'{"a": 1}')]
        with pytest.raises(BackendError, match=r"unknown form \(KeyError: 'b'\) \(6 times\)"):
            await http.post("/x", {}, lambda answer: int(answer["b"]))
