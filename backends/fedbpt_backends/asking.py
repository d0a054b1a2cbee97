"""Asking one route of a server, and looking at its answers before anything is believed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedbpt_api.errors import BackendError
from fedbpt_backends.dialects import Completions, Dialect, Fields, Reply, Text, combined
from fedbpt_backends.http_json import SHAPE_ERRORS, Http, error_words
from fedbpt_backends.ways import NEVER

SAMPLE = "The weather is fine today, and everybody in the town is"
APART = 0.3  # nats: more than the noise of any server, less than any of the changes that are made
_PASSING = frozenset({0, 408, 425, 429, 502, 503, 504, 529})  # says nothing about what a server can do
_TOKENIZE: tuple[dict[str, object], ...] = (  # the empty field is the text's
    {"prompt": "", "add_special_tokens": False},  # vLLM, SGLang
    {"content": "", "add_special": False, "parse_special": False},  # llama.cpp
    {"inputs": "", "add_special_tokens": False},  # TGI
)
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True, slots=True)
class Finding:
    """One ability.

    Attributes:
        name: What was looked for.
        found: Whether it is there; None where it could not be told.
        value: More about it: a number, a name.
        how: How that was seen, in a few words.
    """

    name: str
    found: bool | None
    value: str = ""
    how: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer.

    Attributes:
        replies: One a prompt; none where the request was refused or the answer is not to be trusted.
        words: Why there are none.
        passing: Whether the server was only too busy.
        status: HTTP status.
        raw: The answer itself.
    """

    replies: tuple[Reply, ...]
    words: str = ""
    passing: bool = False
    status: int = 200
    raw: Any = None

    @property
    def top(self) -> dict[str, float]:
        """The first prompt's list."""
        return self.replies[0].top if self.replies else {}


@dataclass
class Asker:
    """One route for one model.

    Attributes:
        http: The server.
        model: The model's name there.
        dialect: The route.
        server: Which server it is, where that is known; questions that only one knows are left out then.
        ids: The sample text as token ids; empty where the server does not tokenise.
        system_fingerprint: What the server calls its configuration, from its latest answer.
        requests: Requests sent so far.
    """

    http: Http
    model: str
    dialect: Dialect = field(default_factory=Completions)
    server: str = ""
    ids: tuple[int, ...] = ()
    system_fingerprint: str = ""
    requests: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)
    _tokenize: dict[str, object] = field(default_factory=dict)  # fields that /tokenize wants
    _longest: dict[str, float] = field(default_factory=dict)
    _plain: dict[str, Heard] = field(default_factory=dict)

    async def plain(self, temperature: float = 0.0) -> Heard:
        """The sample with nothing special, asked once."""
        key = f"{self.dialect.path} {temperature}"
        if key not in self._plain:
            self._plain[key] = await self.ask(temperature=temperature)
        return self._plain[key]

    async def ask(
        self,
        prompts: Sequence[Text] | None = None,
        *,
        k: int = 5,
        temperature: float = 0.0,
        fields: Fields | None = None,
        dialect: Dialect | None = None,
        sane: bool = True,
    ) -> Heard:
        """One request; lists that cannot be log-probabilities count as refusals where `sane`."""
        route = dialect or self.dialect
        asked = [self.prompt(route)] if prompts is None else prompts
        status, answer = await self.post(
            route.path, combined(route.body(self.model, asked, k, temperature), fields or {})
        )
        if status != 200:
            return Heard((), said(status, answer), status in _PASSING, status, answer)
        try:
            replies = route.replies(answer)
        except SHAPE_ERRORS:
            return Heard((), said(status, answer), False, status, answer)
        why = next((w for w in (nonsense(reply.top) for reply in replies) if w), "") if sane else ""
        if len(replies) != len(asked):
            why = f"{len(asked)} prompts sent, {len(replies)} answers"
        return Heard(() if why else tuple(replies), why, False, status, answer)

    async def find_tokenizer(self) -> tuple[tuple[int, ...], Heard]:
        """The sample's ids in the first form that the tokenise route takes; how it refused the last."""
        status, answer = 0, None
        for form in _TOKENIZE:
            status, answer = await self.post("/tokenize", {"model": self.model} | _with_text(form, SAMPLE))
            ids = _ids(answer) if status == 200 else []
            if ids:
                self._tokenize = form
                return tuple(ids), Heard(())
        return (), Heard((), f"POST /tokenize: {said(status, answer)}", status in _PASSING)

    async def tokenize(self, text: str) -> list[int]:
        """Ids of `text`; none where the route has failed."""
        status, answer = await self.post(
            "/tokenize", {"model": self.model} | _with_text(self._tokenize, text)
        )
        return _ids(answer) if status == 200 else []

    async def post(self, path: str, body: Mapping[str, object]) -> tuple[int, Any]:
        """Status and answer, whatever it is.

        Raises:
            BackendError: The server does not answer at all any more.
        """
        self.requests += 1
        status, answer = await self.http.peek("POST", path, body)
        if status == 0:
            raise BackendError(
                f"{self.http.base_url}{path} does not answer any more: {answer}", "is it well?"
            )
        if status == 200 and isinstance(answer, dict) and answer.get("system_fingerprint"):
            self.system_fingerprint = str(answer["system_fingerprint"])
        return status, answer

    def note(self, name: str, found: bool | None, value: str, how: str) -> Finding:
        self.findings[name] = Finding(name, found, value, " ".join(how.split())[:160])
        return self.findings[name]

    def refused(self, name: str, heard: Heard) -> Finding:
        return self.note(name, None if heard.passing else False, "", heard.words or "no list came")

    def prompt(self, dialect: Dialect | None = None) -> Text:
        return self.ids if self.ids and (dialect or self.dialect).takes_ids else SAMPLE


def at(answer: Any, *path: str | int) -> Any:
    """What lies at a path of keys and places; None where the way ends."""
    for step in path:
        try:
            answer = answer[step]
        except (KeyError, IndexError, TypeError):
            return None
    return answer


def said(status: int, answer: object) -> str:
    """Status and words of an answer that is not what was asked for, on one line."""
    if status == 200:
        shown = answer if isinstance(answer, str) else sorted(answer) if isinstance(answer, dict) else answer
        return f"200, but in no known form: {_line(shown)[:80] or 'nothing'}"
    return f"status {status}: {_line(error_words(answer)[0])[:120] or 'nothing more'}"


def nonsense(top: Mapping[str, float]) -> str:
    """Why a list cannot be one of log-probabilities; empty where it can."""
    values = [value for value in top.values() if not value <= NEVER]
    if not all(math.isfinite(value) for value in values):
        return "the list holds numbers that are not finite: they are not log-probabilities"
    if top and (not values or (len(values) > 1 and not any(values))):
        return "the list holds only zeros or -9999: they are not log-probabilities"
    if sum(math.exp(min(value, 1.0)) for value in values) > 1.01:
        return "the list's probabilities sum to more than 1: they are not log-probabilities"
    return ""


def apart(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The largest difference between two lists, in nats; infinite where they have nothing in common."""
    return max((abs(one[key] - other[key]) for key in set(one) & set(other)), default=math.inf)


def alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether two lists are the same but for noise."""
    return 2 * len(set(one) & set(other)) > len(one) and apart(one, other) <= APART


def _line(text: object) -> str:
    return " ".join(_TAG.sub(" ", str(text)).split())


def _with_text(form: Mapping[str, object], text: str) -> dict[str, object]:
    """The field that is empty in `form` is the text's."""
    return {key: text if value == "" else value for key, value in form.items()}


def _ids(answer: Any) -> list[int]:
    """Token ids from a tokenise route's answer; none where it holds something else."""
    tokens = answer.get("tokens") if isinstance(answer, dict) else answer
    if not isinstance(tokens, list):
        return []
    ids = [t.get("id") if isinstance(t, dict) else t for t in tokens]
    return [i for i in ids if isinstance(i, int)] if all(type(i) is int for i in ids) else []
