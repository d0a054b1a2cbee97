"""The probe against a server that does what it says, and against servers that only look like it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import llama_server
from fedbpt_api.errors import BackendError
from fedbpt_backends import pacing
from fedbpt_backends.survey import Survey, as_data, survey
from liar import Json, Liar, Lie, always, only, same_value

HTML = b"<html><title>Welcome</title></html>"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_backoff", lambda state: 0.0)


async def probed(server: Liar, model: str | None = None, labels: tuple[str, ...] = (" yes", " no")) -> Survey:
    async with server.serve() as url:
        done = await survey(url, model, labels=labels)
    assert done.requests == len(server.heads)
    return done


async def test_an_honest_server_is_believed() -> None:
    done = await probed(Liar())
    found = {name: (f.found, f.value) for name, f in done.findings.items()}
    assert found["token-id prompts"] == (True, "")
    assert found["list prompts"] == (True, "up to 1024")
    assert found["named-token logprobs"] == (True, "up to 128")
    assert found["top-k list"] == (True, "20")
    assert found["lists keyed by id"][0] is found["grammar changes logprobs"][0] is True
    assert found["prefix cache"][0] is True
    assert found["noise"] == (False, "0")
    for absent in ("soft prompts", "echo logprobs", "prompt_logprobs", "temperature changes logprobs"):
        assert found[absent][0] is False, absent
    assert (done.advice.way, done.backend["kind"]) == ("logprob_token_ids", "vllm")
    assert (done.identity.server, done.identity.version, done.identity.context) == ("vLLM", "0.32.0", 512)
    assert len(as_data(done)["findings"]) == len(found)  # type: ignore[arg-type]


async def test_fields_that_are_ignored_with_a_200_are_seen_through() -> None:
    done = await probed(Liar(known=frozenset()))
    for name in ("named-token logprobs", "lists keyed by id", "grammar changes logprobs", "echo logprobs"):
        assert done.findings[name].found is False, name
    assert (done.advice.way, done.backend["kind"]) == ("top-20", "openai")


async def test_without_named_tokens_a_grammar_is_next() -> None:
    done = await probed(Liar(known=frozenset({"return_tokens_as_token_ids", "structured_outputs"})))
    assert done.advice.way == "structured choice"
    assert any("0.32 or newer" in step for step in done.advice.steps)


@pytest.mark.parametrize("value", [0.0, -9999.0, -0.01, 0.5])
async def test_numbers_that_cannot_be_log_probabilities_are_none(value: float) -> None:
    """All 0, all -9999, and sums above 1: each has been seen at hosted servers."""
    done = await probed(Liar(same_value(value)))
    assert not any(done.findings[name].found for name in ("named-token logprobs", "top-k list", "noise"))
    assert done.advice.way == ""
    assert "log-probabilities" in done.advice.why


async def test_named_values_must_agree_with_the_server_s_own_list() -> None:
    def lie(path: str, body: Json, answer: Json) -> None:
        if "logprob_token_ids" in body:
            for top in answer["choices"][0]["logprobs"]["top_logprobs"]:
                top.update({key: -7.0 - i for i, key in enumerate(top)})

    done = await probed(Liar(lie))
    assert done.findings["named-token logprobs"].found is False
    assert "contradict" in done.findings["named-token logprobs"].how


async def test_keys_that_collapse_make_a_shorter_list() -> None:
    def lie(path: str, body: Json, answer: Json) -> None:
        for choice in answer.get("choices", ()) if path == "/v1/completions" else ():
            top = choice["logprobs"]["top_logprobs"][0]
            merged = {key[:2]: value for key, value in top.items()}
            top.clear()
            top.update(merged)

    done = await probed(Liar(lie, known=frozenset()))
    assert int(done.findings["top-k list"].value) < 20
    assert "one entry" in done.findings["top-k list"].how


def _fewer(path: str, body: Json, answer: Json) -> None:
    answer["choices"] = answer.get("choices", [])[:1]


def _copies(path: str, body: Json, answer: Json) -> None:
    for choice in answer.get("choices", ()):
        choice["logprobs"] = answer["choices"][0]["logprobs"]


def _unnumbered(path: str, body: Json, answer: Json) -> None:
    for choice in answer.get("choices", ()):
        choice["index"] = 0


@pytest.mark.parametrize("lie", [_fewer, _copies, _unnumbered])
async def test_a_list_whose_prompts_have_no_answers_of_their_own_is_none(lie: Lie) -> None:
    done = await probed(Liar(lie))
    assert done.findings["list prompts"].found is False
    assert done.findings["token-id prompts"].found is True


async def test_ids_that_are_taken_for_text_are_counted_wrong() -> None:
    def lie(path: str, body: Json, answer: Json) -> None:
        if "usage" in answer:
            answer["usage"]["prompt_tokens"] += 7

    assert (await probed(Liar(lie))).findings["token-id prompts"].found is False


async def test_a_chat_only_server_is_asked_by_chat() -> None:
    def lie(path: str, body: Json, answer: Json) -> tuple[int, object] | None:
        hidden = path in ("/v1/completions", "/tokenize", "/version")
        return (404, {"detail": "Not Found"}) if hidden else None

    done = await probed(Liar(lie, owner="somebody"))
    assert done.identity.server == "OpenAI-compatible"
    assert done.findings["completions route"].found is False
    assert done.findings["label ' yes'"].found is None
    assert (done.advice.way, done.backend["kind"]) == ("top-100 of chat", "openai")
    assert done.backend["base_url"].endswith("/v1")


async def test_web_pages_at_200_are_no_answers() -> None:
    done = await probed(Liar(always(200, HTML)), model="tiny")
    assert done.advice.way == ""
    assert not any(f.found for f in done.findings.values())
    assert "Welcome" in done.findings["completions route"].how


async def test_a_server_that_wants_a_key_says_so_and_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    locked = Liar(always(401, {"error": "Unauthorized"}))
    with pytest.raises(BackendError, match="401: Unauthorized") as caught:
        await probed(locked)
    assert "--api-key-env" in caught.value.hint
    monkeypatch.setenv("PROBE_KEY", "s3cret")
    open_ = Liar()
    async with open_.serve() as url:
        done = await survey(url, api_key_env="PROBE_KEY")
    assert all("authorization: bearer s3cret" in head.lower() for head in open_.heads)
    assert done.backend["api_key_env"] == "PROBE_KEY"
    assert "s3cret" not in repr(done)


async def test_a_key_that_only_the_routes_want_is_asked_for() -> None:
    def lie(path: str, body: Json, answer: Json) -> tuple[int, object] | None:
        return (401, {"error": "Unauthorized"}) if path.endswith("completions") else None

    with pytest.raises(BackendError, match="401"):
        await probed(Liar(lie))


async def test_a_server_that_is_too_busy_leaves_things_open() -> None:
    def lie(path: str, body: Json, answer: Json) -> tuple[int, object] | None:
        return (503, {"error": "busy"}) if "logprob_token_ids" in body else None

    async with Liar(lie).serve() as url:
        done = await survey(url)
    assert done.findings["named-token logprobs"].found is None


async def test_label_words_are_looked_at_alone_and_within_a_text() -> None:
    done = await probed(Liar(), labels=(" good", "good", " unfathomably", " good"))
    found = {f.name: f for f in done.topics["Label words"]}
    assert found["label ' good'"].found is True
    assert found["label 'good'"].found is False  # it is the end of the word before it
    assert found["label ' unfathomably'"].found is False
    assert len(found) == 3


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("You must set `--enable-prompt-embeds` to input `prompt_embeds`.", False),
        ("`prompt_embeds` could not be deserialized as a torch tensor: EOFError", True),
        ("prompt: field required; the request's size and shape are hidden", False),
        ("prompt_embeds: something went wrong", None),
    ],
)
async def test_soft_prompts_are_told_by_the_words_of_the_refusal(words: str, found: bool | None) -> None:
    """The first two are vLLM 0.32's (renderers/embed_utils.py), without and with its flag."""

    def lie(path: str, body: Json, answer: Json) -> tuple[int, object] | None:
        return (400, {"error": {"message": words}}) if "prompt_embeds" in body else None

    assert (await probed(Liar(lie))).findings["soft prompts"].found is found


async def test_answers_out_of_a_cache_say_nothing_about_noise() -> None:
    def lie(path: str, body: Json, answer: Json) -> None:
        answer["id"] = "one"

    finding = (await probed(Liar(lie))).findings["noise"]
    assert finding.found is None
    assert "copies" in finding.how


async def test_tokenisers_with_another_answer_are_left_alone() -> None:
    done = await probed(Liar(only("/tokenize", 200, {"tokens": ["The", "weather"]})))
    assert done.findings["tokenise route"].found is False
    assert done.findings["token-id prompts"].found is None


# A real server ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_url() -> Iterator[str]:
    with llama_server.serve(context=512) as address:
        yield address


@pytest.mark.model
async def test_llama_cpp_is_what_its_documentation_says(llama_url: str) -> None:
    done = await survey(llama_url)
    found = {name: f.found for name, f in done.findings.items()}
    for name in (
        "native route", "tokenise route", "token-id prompts", "list prompts", "named-token logprobs",
        "top-k list", "prefix cache", "label ' yes'",
    ):  # fmt: skip
        assert found[name] is True, done.findings[name]
    for name in (
        "soft prompts", "echo logprobs", "prompt_logprobs", "temperature changes logprobs",
        "bias changes logprobs", "grammar changes logprobs",
    ):  # fmt: skip
        assert found[name] is False, done.findings[name]
    assert done.findings["top-k list"].value == "49152"
    assert float(done.findings["noise"].value) < 0.05
    assert "obeys" in done.findings["bias changes logprobs"].how
    assert done.identity.server == "llama.cpp"
    assert done.advice.way == "equal bias"
    assert done.backend == {"kind": "llamacpp", "base_url": llama_url}
