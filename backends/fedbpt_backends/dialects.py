"""How servers' routes are asked for a list of probable next tokens, and how they answer.

One class a route: OpenAI's completions and chat, llama.cpp's ``/completion``, SGLang's ``/generate``. The
questions of `probe` are written once, for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedbpt_backends.llama_http import LIFT
from fedbpt_backends.ways import NamedTokens, Reading, merged

Text = str | Sequence[int]
Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one prompt.

    Attributes:
        top: Log-probabilities of the first generated token, by text or ``token_id:N``; empty where none came.
        text: What was generated.
        counted: Tokens of the prompt, as the server counts them; None where it does not say.
        cached: Tokens of the prompt that it had in its cache; None where it does not say.
        name: Name of the answer; two answers of one name are copies.
    """

    top: dict[str, float]
    text: str
    counted: int | None = None
    cached: int | None = None
    name: str = ""


class Dialect(Protocol):
    """One route."""

    @property
    def path(self) -> str: ...

    @property
    def takes_ids(self) -> bool:
        """Whether a prompt may be a list of token ids."""

    @property
    def keyed(self) -> bool:
        """Whether its lists are always keyed by id."""

    @property
    def most(self) -> int:
        """The longest list worth asking for."""

    @property
    def named_field(self) -> str:
        """What it calls naming tokens; empty where it knows no such thing."""

    def body(self, model: str, prompts: Sequence[Text], k: int, temperature: float) -> dict[str, Any]: ...

    def replies(self, answer: Any) -> list[Reply]:
        """In the prompts' order.

        Raises:
            AttributeError, KeyError, IndexError, TypeError, ValueError: It has another form.
        """

    def bias(self, word: int, by: float) -> Fields: ...

    def grammar(self, choices: Sequence[str]) -> Fields: ...

    def named(self, words: Sequence[int]) -> Fields: ...

    def read_named(self, answer: Any, words: Sequence[int]) -> Reading: ...


@dataclass(frozen=True, slots=True)
class Completions:
    """``/v1/completions``. Strict servers refuse fields they do not know, so only OpenAI's own are sent."""

    path: str = "/v1/completions"
    takes_ids: bool = True
    keyed: bool = False
    most: int = 1000
    named_field: str = "logprob_token_ids"

    def body(self, model: str, prompts: Sequence[Text], k: int, temperature: float) -> dict[str, Any]:
        return {
            "model": model, "prompt": _one_or_all(prompts), "max_tokens": 1,
            "temperature": temperature, "logprobs": k,
        }  # fmt: skip

    def replies(self, answer: Any) -> list[Reply]:
        choices = _ordered(answer["choices"])
        alone = len(choices) == 1
        counted, cached = _usage(answer) if alone else (None, None)
        name = str(answer.get("id") or "")
        return [
            Reply(_completions_top(c.get("logprobs")), str(c["text"]), counted, cached, name) for c in choices
        ]

    def bias(self, word: int, by: float) -> Fields:
        return {"logit_bias": {str(word): by}}

    def grammar(self, choices: Sequence[str]) -> Fields:
        return {"structured_outputs": {"choice": list(choices)}}

    def named(self, words: Sequence[int]) -> Fields:
        return NamedTokens().fields(words)

    def read_named(self, answer: Any, words: Sequence[int]) -> Reading:
        return NamedTokens().read(answer["choices"][0], words)


@dataclass(frozen=True, slots=True)
class Chat:
    """``/v1/chat/completions``: one prompt, as text, wrapped in the model's chat template."""

    path: str = "/v1/chat/completions"
    takes_ids: bool = False
    keyed: bool = False
    most: int = 100
    named_field: str = ""

    def body(self, model: str, prompts: Sequence[Text], k: int, temperature: float) -> dict[str, Any]:
        return {
            "model": model, "messages": [{"role": "user", "content": prompts[0]}], "max_tokens": 1,
            "temperature": temperature, "logprobs": True, "top_logprobs": k,
        }  # fmt: skip

    def replies(self, answer: Any) -> list[Reply]:
        counted, cached = _usage(answer)
        name = str(answer.get("id") or "")
        return [
            Reply(_chat_top(c.get("logprobs")), str(c["message"].get("content") or ""), counted, cached, name)
            for c in _ordered(answer["choices"])
        ]

    def bias(self, word: int, by: float) -> Fields:
        return {"logit_bias": {str(word): by}}

    def grammar(self, choices: Sequence[str]) -> Fields:
        return {"structured_outputs": {"choice": list(choices)}}

    def named(self, words: Sequence[int]) -> Fields:
        return {}

    def read_named(self, answer: Any, words: Sequence[int]) -> Reading:
        raise ValueError("chat routes are not asked for named tokens")


@dataclass(frozen=True, slots=True)
class LlamaNative:
    """llama.cpp's ``/completion``; words are named by lifting them all with one and the same bias."""

    most: int = 1000
    path: str = "/completion"
    takes_ids: bool = True
    keyed: bool = True
    named_field: str = "equal bias"

    def body(self, model: str, prompts: Sequence[Text], k: int, temperature: float) -> dict[str, Any]:
        wanted = ["index", "content", "completion_probabilities", "tokens_evaluated", "timings"]
        return {
            "prompt": _one_or_all(prompts), "n_predict": 1, "n_probs": k, "temperature": temperature,
            "cache_prompt": True, "response_fields": wanted,
        }  # fmt: skip

    def replies(self, answer: Any) -> list[Reply]:
        answers = _ordered(answer if isinstance(answer, list) else [answer])
        return [
            Reply(
                {f"token_id:{t['id']}": _number(t["logprob"]) for t in _first(a).get("top_logprobs", ())},
                str(a["content"]),
                a.get("tokens_evaluated"),
                (a.get("timings") or {}).get("cache_n"),
            )
            for a in answers
        ]

    def bias(self, word: int, by: float) -> Fields:
        return {"logit_bias": [[word, by]]}

    def grammar(self, choices: Sequence[str]) -> Fields:
        return {"grammar": "root ::= " + " | ".join(f'"{choice}"' for choice in choices)}

    def named(self, words: Sequence[int]) -> Fields:
        return {
            "logit_bias": [[word, LIFT] for word in words], "n_probs": len(words),
            "post_sampling_probs": True, "samplers": ["temperature"], "temperature": 1.0,
        }  # fmt: skip

    def read_named(self, answer: Any, words: Sequence[int]) -> Reading:
        found = {t["id"]: _number(t["prob"]) for t in _first(answer)["top_probs"]}
        exact = [found.get(word, 0.0) > 0.0 for word in words]
        values = [math.log(found[w]) if there else -9999.0 for w, there in zip(words, exact, strict=True)]
        return Reading(values, exact)


@dataclass(frozen=True, slots=True)
class SglangNative:
    """SGLang's ``/generate``, as documented for 0.5.23; not run live."""

    path: str = "/generate"
    takes_ids: bool = True
    keyed: bool = True
    most: int = 1000
    named_field: str = "token_ids_logprob"

    def body(self, model: str, prompts: Sequence[Text], k: int, temperature: float) -> dict[str, Any]:
        key = "text" if isinstance(prompts[0], str) else "input_ids"
        return {
            key: _one_or_all(prompts), "return_logprob": True, "logprob_start_len": -1,
            "top_logprobs_num": k, "sampling_params": {"max_new_tokens": 1, "temperature": temperature},
        }  # fmt: skip

    def replies(self, answer: Any) -> list[Reply]:
        found = []
        for one in answer if isinstance(answer, list) else [answer]:
            meta = one["meta_info"]
            top = {f"token_id:{t[1]}": _number(t[0]) for t in (meta.get("output_top_logprobs") or [()])[0]}
            name = str(meta.get("id") or "")
            found.append(
                Reply(top, str(one["text"]), meta.get("prompt_tokens"), meta.get("cached_tokens"), name)
            )
        return found

    def bias(self, word: int, by: float) -> Fields:
        return {"sampling_params": {"logit_bias": {str(word): by}}}

    def grammar(self, choices: Sequence[str]) -> Fields:
        return {"sampling_params": {"regex": f"({'|'.join(choices)})"}}

    def named(self, words: Sequence[int]) -> Fields:
        return {"token_ids_logprob": list(words), "sampling_params": {"max_new_tokens": 0}}

    def read_named(self, answer: Any, words: Sequence[int]) -> Reading:
        one = answer[0] if isinstance(answer, list) else answer
        found = {t[1]: _number(t[0]) for t in one["meta_info"]["output_token_ids_logprobs"][0]}
        return Reading([found[word] for word in words], [True] * len(words))


def combined(body: dict[str, Any], fields: Fields) -> dict[str, Any]:
    """`body` with `fields`; mappings in both are united, and None takes a field away."""
    result = dict(body)
    for key, value in fields.items():
        old = result.get(key)
        result[key] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    return {key: value for key, value in result.items() if value is not None}


def _one_or_all(prompts: Sequence[Text]) -> object:
    plain = [p if isinstance(p, str) else list(p) for p in prompts]
    return plain[0] if len(plain) == 1 else plain


def _ordered(choices: Any) -> list[Any]:
    found = {int(choice.get("index", 0)): choice for choice in choices}
    if len(found) != len(choices) or sorted(found) != list(range(len(found))):
        raise ValueError("its answers are not numbered one by one")
    return [found[i] for i in range(len(found))]


def _usage(answer: Any) -> tuple[int | None, int | None]:
    usage = answer.get("usage") or {}
    return usage.get("prompt_tokens"), (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


def _completions_top(logprobs: Any) -> dict[str, float]:
    if isinstance(logprobs, dict) and "top_logprobs" in logprobs:
        rows = logprobs["top_logprobs"]
        return {str(key): _number(value) for key, value in (rows[0] if rows else {}).items()}
    return _chat_top(logprobs)  # llama.cpp and some gateways answer so here too


def _chat_top(logprobs: Any) -> dict[str, float]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    rows = content[0].get("top_logprobs") or [] if content else []
    return merged((str(row["token"]), _number(row["logprob"])) for row in rows)


def _first(answer: Any) -> Any:
    return (answer.get("completion_probabilities") or [{}])[0]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} in the place of a log-probability")
    return float(value)
