"""The two routes of OpenAI's interface: what a request for first tokens looks like, and its answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedbpt_api.scoring.backend import Usage
from fedbpt_backends.first_tokens import Match
from fedbpt_backends.ways import merged

Api = Literal["completions", "chat"]


@dataclass(frozen=True, slots=True)
class Prefill:
    """How a server is told that the answer has begun already.

    Attributes:
        name: For people.
        fields: What the request needs beside a last message of the assistant; None where there is no way.
    """

    name: str
    fields: Mapping[str, object] | None


NO_PREFILL = Prefill("none", None)
PREFILLS = (
    Prefill("automatic", {}),  # llama.cpp
    Prefill("continue_final_message", {"add_generation_prompt": False, "continue_final_message": True}),
)


@dataclass(frozen=True, slots=True)
class Route:
    """How first tokens are asked for.

    Attributes:
        api: Which route.
        model: The model's name there.
        top_k: Length of the list.
        limit: What the field for the answer's length is called.
        temperature: Whether that field is sent.
        lists: Whether several prompts may be in a request.
        blanks: Whether tokens come with their leading blank.
        prefill: How an answer is begun.
        system: The system message of a chat.
        extra: More fields.
    """

    api: Api
    model: str
    top_k: int
    limit: str = "max_tokens"
    temperature: bool = True
    lists: bool = False
    blanks: bool = True
    prefill: Prefill = NO_PREFILL
    system: str | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> str:
        """What was found out about the server, for `from_json`; neither system message nor more fields."""
        found = [
            self.api,
            self.top_k,
            self.limit,
            self.temperature,
            self.lists,
            self.blanks,
            self.prefill.name,
        ]
        return json.dumps(found)

    @classmethod
    def from_json(cls, text: str, model: str, system: str | None, extra: Mapping[str, object]) -> Route:
        """The same route again."""
        api, top_k, limit, temperature, lists, blanks, name = json.loads(text)
        prefill = next(way for way in (NO_PREFILL, *PREFILLS) if way.name == name)
        return cls(api, model, top_k, limit, temperature, lists, blanks, prefill, system, extra)

    @property
    def path(self) -> str:
        return "/chat/completions" if self.api == "chat" else "/completions"

    @property
    def match(self) -> Match:
        """Which tokens mean a word."""
        if self.api == "chat":
            return Match.FOLDED
        return Match.EXACT if self.blanks else Match.STRIPPED

    @property
    def continues(self) -> bool:
        """Whether an answer can be begun, so that its second token is asked for as the first is."""
        return self.api == "completions" or self.prefill.fields is not None

    def body(self, texts: Sequence[str]) -> dict[str, object]:
        """A request for the first token after each of `texts`; a chat takes only one."""
        fields: dict[str, object] = {"model": self.model, self.limit: 1}
        if self.temperature:
            fields["temperature"] = 0
        if self.api == "completions":
            prompt: object = list(texts) if self.lists else texts[0]
            return fields | {"prompt": prompt, "logprobs": self.top_k} | dict(self.extra)
        fields |= {"logprobs": True, "top_logprobs": self.top_k}
        return fields | self._messages(texts[0]) | dict(self.extra)

    def lists_of(self, answer: Any, n: int) -> list[dict[str, float]]:
        """For each of n prompts the list {text: log-probability}, in the prompts' order.

        Raises:
            AttributeError, KeyError, IndexError, TypeError, ValueError: The answer has another form.
        """
        choices = {int(choice["index"]): choice for choice in answer["choices"]}
        if len(answer["choices"]) != n or set(choices) != set(range(n)):
            raise ValueError(f"{len(answer['choices'])} answers to {n} prompts, or the same one twice")
        return [_list(choices[i]["logprobs"]) for i in range(n)]

    def _messages(self, text: str) -> dict[str, object]:
        """Chat messages: the text is the user's; with prefill its last line is the answer's beginning."""
        asked, _, begun = text.rpartition("\n")
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        if self.prefill.fields is None or not asked.strip() or not begun.strip():
            return {"messages": [*messages, {"role": "user", "content": text}]}
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": begun.rstrip()}]
        return {"messages": messages, **self.prefill.fields}


def used(answer: Any, pieces: Sequence[int]) -> list[Usage]:
    """What a request for n prompts cost, shared among them so that the sum is what the server counted.

    Args:
        answer: The server's.
        pieces: Pieces of each prompt, which stand for tokens where the server counts none.
    """
    counted = answer.get("usage") or {}
    tokens, n = counted.get("prompt_tokens"), len(pieces)
    if tokens is None:
        shares = [Usage(1, count) for count in pieces]
    else:
        details = counted.get("prompt_tokens_details") or {}
        cached = min(int(details.get("cached_tokens") or 0), int(tokens))
        shares = [
            Usage(1, own, warm) for own, warm in zip(_shared(int(tokens), n), _shared(cached, n), strict=True)
        ]
    shares[0] = shares[0] + Usage(requests=1)
    return shares


def _shared(total: int, n: int) -> list[int]:
    return [total // n + (i < total % n) for i in range(n)]


def _list(logprobs: Any) -> dict[str, float]:
    """The first token's list, in the form of a chat (llama.cpp: of both routes) or of completions."""
    if logprobs.get("content"):
        return merged((entry["token"], entry["logprob"]) for entry in logprobs["content"][0]["top_logprobs"])
    return merged(logprobs["top_logprobs"][0].items())
