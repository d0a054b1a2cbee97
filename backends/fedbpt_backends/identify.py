"""Which server answers at an address, from what it says about itself; nothing is believed about abilities.

The marks (``/v1/models`` ``owned_by``, ``/version``, ``/props``, ``/server_info``, ``/info``,
``/api/version``) are hidden by gateways, so their absence means nothing, and a web page at 200 is no mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedbpt_api.errors import BackendError
from fedbpt_backends.http_json import SHAPE_ERRORS, Http, error_words, expected

VLLM, LLAMA, SGLANG, TGI, OLLAMA = "vLLM", "llama.cpp", "SGLang", "TGI", "Ollama"
UNKNOWN = "OpenAI-compatible"
_OWNERS = {"vllm": VLLM, "llamacpp": LLAMA, "llama.cpp": LLAMA, "sglang": SGLANG, "library": OLLAMA}


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server says about itself.

    Attributes:
        server: Its name; `UNKNOWN` where it does not say.
        version: Its version; empty where it does not say.
        model: The model that is asked.
        models: Every model it serves; empty where it does not say.
        context: Longest input in tokens; None where it does not say.
        root: The model's folder or name, where the server tells it.
        vocabulary: Size of the model's vocabulary; None where it does not say.
        slots: Requests that llama.cpp's server works on at the same time; None elsewhere.
        how: How it was recognised.
        requests: Requests that this took.
    """

    server: str
    version: str
    model: str
    models: tuple[str, ...] = ()
    context: int | None = None
    root: str = ""
    vocabulary: int | None = None
    slots: int | None = None
    how: str = ""
    requests: int = 0


async def identify(http: Http, model: str | None = None) -> Identity:
    """Ask a server who it is.

    Args:
        http: The server.
        model: The model that is meant; the first one that is served where None.

    Raises:
        BackendError: Nothing answers, it wants a key, or it cannot be told which model to ask.
    """
    status, listed = await http.peek("GET", "/v1/models")
    requests = 1
    if status == 0:
        raise BackendError(
            f"no answer from {http.base_url}: {listed}", "is the server running, and is this its address?"
        )
    if status in (401, 403):
        raise wants_key(http.base_url, status, listed)
    entries = _entries(status, listed)
    if entries and model is not None and model not in entries:
        raise BackendError(
            f"{http.base_url} does not serve {model!r} but {', '.join(entries)}", "correct --model"
        )
    entry = entries[model or next(iter(entries))] if entries else {}
    owner = _OWNERS.get(str(entry.get("owned_by", "")).lower())
    seen: Identity | None = None
    before: list[object] = [listed]
    for server, path in _MARKS:
        if owner != server and (owner is not None or server == VLLM):
            continue  # any server may have /version
        status_of, answer = await http.peek("GET", path)
        requests += 1
        # A server that answers everything alike has said nothing about itself.
        if status_of == 200 and isinstance(answer, dict) and answer not in before:
            seen = _READERS[server](answer)
        before.append(answer)
        if seen is not None:
            break
    if seen is None and owner is not None:
        seen = Identity(owner, "", "", how="it says so in /v1/models")
    if seen is None:
        seen = Identity(UNKNOWN, "", "", how="it does not say which server it is")
    named = model or str(entry.get("id") or seen.model)
    if not named:
        loading = status == 503
        raise BackendError(
            f"{http.base_url}/v1/models does not say which models are served "
            f"(status {status}: {_short(listed)})",
            "it may still be loading: ask again later" if loading else
            "is it the address of a model's API? if so, name the model with --model",
        )  # fmt: skip
    meta = entry.get("meta") if isinstance(entry.get("meta"), dict) else {}
    return replace(
        seen,
        model=named,
        models=tuple(entries),
        context=_int(entry.get("max_model_len")) or seen.context,
        root=str(entry.get("root") or ""),
        vocabulary=_int(meta.get("n_vocab")) if isinstance(meta, dict) else None,
        requests=requests,
    )


async def served_model(http: Http, model: str | None) -> Mapping[str, Any]:
    """The entry of ``/v1/models`` for `model`, or the only or first one.

    Raises:
        BackendError: The server does not answer, or does not serve it.
    """
    answer = await http.get("/v1/models")
    try:
        entries = {str(entry["id"]): entry for entry in answer["data"]}
        first = next(iter(entries))
    except (*SHAPE_ERRORS, StopIteration) as error:
        raise expected(f"{http.base_url}/v1/models", error) from error
    if model is not None and model not in entries:
        raise BackendError(
            f"{http.base_url} does not serve {model!r} but {', '.join(entries)}", "correct backend.model"
        )
    found: Mapping[str, Any] = entries[model or first]
    return found


def by_fingerprint(identity: Identity, fingerprint: str) -> Identity:
    """What an answer's ``system_fingerprint`` adds: vLLM's passes through most gateways."""
    name, dash, rest = fingerprint.partition("-")
    if identity.server != UNKNOWN or name != "vllm" or not dash:
        return identity
    return replace(identity, server=VLLM, version=rest.split("-")[0], how="its answers' system_fingerprint")


def wants_key(place: str, status: int, answer: object) -> BackendError:
    """What to say of a server that refuses for want of a key."""
    return BackendError(
        f"{place} answered {status}: {_short(answer)}",
        "it wants a key: put it in an environment variable and name that with --api-key-env",
    )


def _vllm(answer: Mapping[str, Any]) -> Identity | None:
    return Identity(VLLM, str(answer["version"]), "", how="/version") if answer.get("version") else None


def _sglang(answer: Mapping[str, Any]) -> Identity | None:
    if not {"version", "model_path"} <= set(answer):
        return None
    return Identity(
        SGLANG,
        str(answer["version"]),
        str(answer.get("served_model_name") or answer["model_path"]),
        context=_int(answer.get("context_length")),
        how="/server_info",
    )


def _llama(answer: Mapping[str, Any]) -> Identity | None:
    settings = answer.get("default_generation_settings")
    if not isinstance(settings, dict) or "total_slots" not in answer:
        return None
    return Identity(
        LLAMA,
        str(answer.get("build_info") or ""),
        str(answer.get("model_alias") or answer.get("model_path") or ""),
        context=_int(settings.get("n_ctx")),
        slots=_int(answer["total_slots"]),
        how="/props",
    )


def _tgi(answer: Mapping[str, Any]) -> Identity | None:
    if not {"version", "model_id"} <= set(answer):
        return None
    context = _int(answer.get("max_input_tokens") or answer.get("max_input_length"))
    return Identity(TGI, str(answer["version"]), str(answer["model_id"]), context=context, how="/info")


def _ollama(answer: Mapping[str, Any]) -> Identity | None:
    if set(answer) != {"version"}:
        return None
    return Identity(OLLAMA, str(answer["version"]), "", how="/api/version")


_MARKS = (
    (LLAMA, "/props"),
    (SGLANG, "/server_info"),
    (TGI, "/info"),
    (OLLAMA, "/api/version"),
    (VLLM, "/version"),
)
_READERS = {LLAMA: _llama, SGLANG: _sglang, TGI: _tgi, OLLAMA: _ollama, VLLM: _vllm}


def _entries(status: int, listed: Any) -> dict[str, dict[str, Any]]:
    rows = listed.get("data") if status == 200 and isinstance(listed, dict) else None
    if not isinstance(rows, list):
        return {}
    return {str(row["id"]): row for row in rows if isinstance(row, dict) and row.get("id")}


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _short(answer: object) -> str:
    return " ".join(error_words(answer)[0].split())[:120] or "nothing"
