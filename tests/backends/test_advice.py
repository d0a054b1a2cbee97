"""From findings to the way of scoring and the flags that would make it better."""

from __future__ import annotations

import pytest

from fedbpt_backends.advice import Advice, advise, backend_table
from fedbpt_backends.asking import Finding
from fedbpt_backends.identify import Identity

Facts = dict[str, tuple[bool | None, str]]
GOOD: Facts = {
    "completions route": (True, ""), "tokenise route": (True, ""),
    "named-token logprobs": (True, "up to 128"), "top-k list": (True, "200"),
    "lists keyed by id": (True, ""), "grammar changes logprobs": (True, ""),
    "soft prompts": (True, ""), "prefix cache": (True, "blocks of 16"), "noise": (False, "0"),
}  # fmt: skip


def advised(changes: Facts, server: str = "vLLM", slots: int | None = None) -> Advice:
    facts = GOOD | changes
    findings = {name: Finding(name, found, value) for name, (found, value) in facts.items()}
    return advise(Identity(server, "1", "m", slots=slots), findings)


NO_NAMES: Facts = {"named-token logprobs": (False, "")}
NO_IDS: Facts = NO_NAMES | {"lists keyed by id": (False, ""), "grammar changes logprobs": (False, "")}


@pytest.mark.parametrize(
    ("server", "changes", "way", "backend"),
    [
        ("vLLM", {}, "logprob_token_ids", "vllm"),
        ("OpenAI-compatible", {}, "logprob_token_ids", "vllm"),
        ("vLLM", NO_NAMES, "structured choice", "vllm"),
        ("vLLM", NO_NAMES | {"grammar changes logprobs": (False, "")}, "top-200", "vllm"),
        ("vLLM", {"tokenise route": (False, "")}, "top-200", "openai"),
        ("vLLM", NO_IDS, "top-200", "openai"),
        ("llama.cpp", {}, "equal bias", "llamacpp"),
        ("llama.cpp", NO_NAMES, "top-200", "openai"),
        ("SGLang", {}, "token_ids_logprob", "sglang"),
        ("OpenAI-compatible", NO_IDS | {"completions route": (False, "")}, "top-200 of chat", "openai"),
        ("OpenAI-compatible", NO_IDS | {"top-k list": (False, "")}, "", ""),
        ("OpenAI-compatible", NO_IDS | {"top-k list": (None, "")}, "", ""),
    ],
)
def test_the_most_exact_way_that_a_backend_can_use_is_taken(
    server: str, changes: Facts, way: str, backend: str
) -> None:
    advice = advised(changes, server)
    assert (advice.way, advice.backend) == (way, backend)
    assert advice.why


@pytest.mark.parametrize(
    ("server", "changes", "flag"),
    [
        ("vLLM", {"soft prompts": (False, "")}, "--enable-prompt-embeds"),
        ("vLLM", {"prefix cache": (None, "")}, "--enable-prompt-tokens-details"),
        ("vLLM", {"prefix cache": (False, "")}, "--enable-prefix-caching"),
        ("vLLM", {"prefix cache": (True, "blocks of 128")}, "--block-size 32"),
        ("vLLM", {"top-k list": (True, "20")}, "--max-logprobs 200"),
        ("vLLM", {"bias changes logprobs": (True, "")}, "--logprobs-mode raw_logprobs"),
        ("vLLM", {"noise": (True, "0.02")}, "VLLM_BATCH_INVARIANT=1"),
        ("SGLang", {"noise": (True, "0.02")}, "--enable-deterministic-inference"),
        ("Ollama", {}, "llama-server"),
        ("TGI", {}, "--max-top-n-tokens"),
        ("vLLM", {"label ' oops'": (False, "")}, "' oops': better a word"),
    ],
)
def test_what_is_missing_is_advised_and_only_that(server: str, changes: Facts, flag: str) -> None:
    assert any(flag in step for step in advised(changes, server).steps)
    assert advised({}, "vLLM").steps == ()


def test_a_llama_server_with_one_slot_is_told_of_more() -> None:
    assert any("--parallel" in step for step in advised({}, "llama.cpp", slots=1).steps)
    assert not any("--parallel" in step for step in advised({}, "llama.cpp", slots=4).steps)


def test_the_configuration_is_what_the_backends_take() -> None:
    openai = backend_table(Advice("top-5", "", "openai"), "http://a", "m", None)
    assert openai == {"kind": "openai", "base_url": "http://a/v1", "model": "m", "api_key_env": ""}
    vllm = backend_table(Advice("x", "", "vllm"), "http://a", "m", "KEY")
    assert vllm == {"kind": "vllm", "base_url": "http://a", "model": "m", "api_key_env": "KEY"}
    assert backend_table(Advice("", "", ""), "http://a", "m", None) == {}
