"""What follows from the findings: how a run will score, and what to change on the server to do better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedbpt_backends.asking import Finding
from fedbpt_backends.identify import LLAMA, OLLAMA, SGLANG, TGI, VLLM, Identity

_BLOCK = 32  # tokens; prompts are often shorter than larger blocks, which are reused whole or not at all
_NOISY = 1e-3  # nats
_FEW = 50  # most probable words that make a poor choice of words for the verbalizer


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do.

    Attributes:
        way: The way of scoring that will be used; empty where there is none.
        why: Why this one, or why none.
        backend: ``backend.kind`` of a configuration for it; empty where there is none.
        steps: Changes that make it better, most useful first.
    """

    way: str
    why: str
    backend: str
    steps: tuple[str, ...] = ()


def advise(identity: Identity, findings: Mapping[str, Finding]) -> Advice:
    """The best way of scoring that was found, and what would make it better."""
    way, why, backend = _way(identity, findings)
    return Advice(way, why, backend, tuple(_steps(identity, findings, way)))


def backend_table(advice: Advice, url: str, model: str, api_key_env: str | None) -> dict[str, str]:
    """The ``[backend]`` table of a configuration for this server; empty where nothing can score."""
    if not advice.backend:
        return {}
    table = {"kind": advice.backend, "base_url": url}
    if advice.backend == "openai":
        table["base_url"] += "/v1"
        return table | {"model": model, "api_key_env": api_key_env or ""}
    if advice.backend == "vllm":
        table["model"] = model
    return table | ({"api_key_env": api_key_env} if api_key_env else {})


def _way(identity: Identity, findings: Mapping[str, Finding]) -> tuple[str, str, str]:
    named, tokenises = _yes(findings, "named-token logprobs"), _yes(findings, "tokenise route")
    k = _longest(findings)
    bounded = f"a word outside the list of {k} is only bounded"
    if identity.server == LLAMA and named:
        return "equal bias", "exact relative to each other, for any number of named words", "llamacpp"
    if identity.server == SGLANG and named and tokenises:
        why = "exact over the whole vocabulary; written to its documentation, not run on a server yet"
        return "token_ids_logprob", why, "sglang"
    if identity.server not in (LLAMA, SGLANG) and tokenises:
        if named:
            most = findings["named-token logprobs"].value
            return "logprob_token_ids", f"exact over the whole vocabulary, {most} words a request", "vllm"
        if k and identity.server == VLLM and _yes(findings, "lists keyed by id"):
            if _yes(findings, "grammar changes logprobs"):
                why = (
                    "it names no tokens, but a grammar leaves only label words: exact relative to each other"
                )
                return "structured choice", why, "vllm"
            return f"top-{k}", f"it names no tokens; {bounded}", "vllm"
    if k and _yes(findings, "completions route"):
        return f"top-{k}", f"all that /v1/completions gives; {bounded}", "openai"
    if k:
        return f"top-{k} of chat", f"all that the chat route gives; {bounded}", "openai"
    reasons = [
        f"{name}: {findings[name].how}"
        for name in ("top-k list", "completions route", "chat route")
        if name in findings and not (name.endswith("route") and findings[name].found)
    ]
    return "", f"no log-probabilities that can be used ({'; '.join(reasons)})", ""


def _steps(identity: Identity, findings: Mapping[str, Finding], way: str) -> Iterator[str]:
    steps = {VLLM: _vllm, LLAMA: _llama, SGLANG: _sglang, OLLAMA: _ollama, TGI: _tgi}.get(identity.server)
    if steps is not None:
        yield from steps(identity, findings)
    elif not way:
        yield "use a server that reports log-probabilities: vLLM, llama.cpp, or a hosted API that does"
    elif way.endswith("of chat"):
        yield "if it is a gateway, let it pass /v1/completions and /tokenize: token ids, exact words"
    words = [
        n.removeprefix("label ") for n, f in findings.items() if n.startswith("label ") and f.found is False
    ]
    if words:
        yield f"{', '.join(words)}: better a word that is one token here (its first one stands for it)"


def _vllm(identity: Identity, findings: Mapping[str, Finding]) -> Iterator[str]:
    if _no(findings, "named-token logprobs"):
        yield "vLLM 0.32 or newer: it names tokens (logprob_token_ids), exact however unlikely a word is"
    if _no(findings, "tokenise route"):
        yield "a gateway hides /tokenize: ask vLLM itself, or let it pass"
    if _yes(findings, "temperature changes logprobs") or _yes(findings, "bias changes logprobs"):
        yield "--logprobs-mode raw_logprobs: the numbers are those after temperature and bias"
    if _no(findings, "soft prompts"):
        yield "--enable-prompt-embeds: continuous prompts too (only for users whom you trust)"
    cache = findings.get("prefix cache")
    if cache is not None and cache.found is None:
        yield "--enable-prompt-tokens-details: answers say how much of a prompt was cached"
    if cache is not None and cache.found is False:
        yield "--enable-prefix-caching: a prompt's tokens are computed once, not once a text"
    block = int(cache.value.rpartition(" ")[2] or 0) if cache is not None and cache.value else 0
    if block > _BLOCK:
        yield f"--block-size {_BLOCK}: only whole blocks are reused, and few prompts have {block} tokens"
    if 0 < _longest(findings) < _FEW:
        yield "--max-logprobs 200: the words of the weighted verbalizer are chosen from this list"
    if _noise(findings) > _NOISY:
        yield "VLLM_BATCH_INVARIANT=1 in its environment: repeats give the same numbers, a little slower"


def _llama(identity: Identity, findings: Mapping[str, Finding]) -> Iterator[str]:
    if identity.slots == 1:
        yield "--parallel 4 (and --ctx-size 4 times as large): it works on one request at a time"
    if _no(findings, "soft prompts"):
        yield "continuous prompts need vLLM (--enable-prompt-embeds): llama.cpp has no route for them"
    if _noise(findings) > _NOISY:
        yield "--parallel 1: repeats give the same numbers, but one request at a time"


def _sglang(identity: Identity, findings: Mapping[str, Finding]) -> Iterator[str]:
    if _yes(findings, "temperature changes logprobs"):
        yield "SGLANG_RETURN_ORIGINAL_LOGPROB=1 in its environment: numbers without the temperature"
    yield "--schedule-policy lpm: requests that begin alike are worked on together"
    if _noise(findings) > _NOISY:
        yield "--enable-deterministic-inference: repeats give the same numbers"


def _ollama(identity: Identity, findings: Mapping[str, Finding]) -> Iterator[str]:
    yield "serve the same model file with llama.cpp's llama-server: token ids, exact words, a tokenise route"


def _tgi(identity: Identity, findings: Mapping[str, Finding]) -> Iterator[str]:
    yield "--max-top-n-tokens 20: longer lists; or serve the model with vLLM, which names tokens"


def _yes(findings: Mapping[str, Finding], name: str) -> bool:
    return name in findings and findings[name].found is True


def _no(findings: Mapping[str, Finding], name: str) -> bool:
    return name in findings and findings[name].found is False


def _longest(findings: Mapping[str, Finding]) -> int:
    return int(findings["top-k list"].value) if _yes(findings, "top-k list") else 0


def _noise(findings: Mapping[str, Finding]) -> float:
    return float(findings["noise"].value) if "noise" in findings else 0.0
