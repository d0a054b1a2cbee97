"""What a server of OpenAI's kind can do, found out by some ten cheap requests when it is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedbpt_api.errors import BackendError
from fedbpt_api.fanning import side_by_side
from fedbpt_backends.http_json import SHAPE_ERRORS
from fedbpt_backends.openai_client import Client, Refused
from fedbpt_backends.openai_route import NO_PREFILL, PREFILLS, Api, Prefill, Route
from fedbpt_backends.ways import Reading, checked, spoiled

MOST = 200  # longest list that is asked for
_SAMPLES = ("The weather is", "My brother and my sister went to the")
_COUNTING = "Count to ten in words.\none, two, three, four, five, six,"
_NEXT = " seven"  # a new answer never begins with a blank
_REPEATS = 3
_PATIENCE = 12  # times that a question is asked: beside a run that names words half of the lists are spoiled
_APART = 0.5  # nats between two answers to the same question, when one is in a list; batches differ a little
_NUMBER = re.compile(r"\d+")


@dataclass
class Pilot:
    """Questions to one model.

    Attributes:
        client: Where it is asked.
        model: Its name there.
        fingerprints: Every ``system_fingerprint`` that came.
        requests: Requests sent so far.
    """

    client: Client
    model: str
    fingerprints: list[str] = field(default_factory=list)
    requests: int = 0

    async def route(
        self,
        apis: Sequence[Api],
        top_k: int | None,
        prefill: bool | None,
        system: str | None,
        extra: Mapping[str, object],
    ) -> Route:
        """The first route that comes with log-probabilities, completed by what the server takes.

        Args:
            apis: Which are tried, in this order.
            top_k: Length of the lists; the longest that the server allows where not given.
            prefill: Whether an answer is begun; where the server can do it, where not given.
            system: System message of a chat.
            extra: More fields of every request.

        Raises:
            BackendError: No route gives log-probabilities.
        """
        most = MOST if top_k is None else top_k
        refusals: list[str] = []
        for kind in apis:
            first = Route(kind, self.model, most, system=system, extra=extra)
            if kind == "chat":
                first = replace(first, limit="max_completion_tokens")
            try:
                route, found = await self._longest(first, fixed=top_k is not None)
            except (Refused, _NoList) as error:
                if isinstance(error, Refused) and error.status == 401:
                    raise
                refusals.append(f"{kind}: {error.message}")
                continue
            if kind == "chat":
                return replace(route, prefill=await self._prefill(route, prefill))
            route = replace(route, blanks=any(text.startswith(" ") for text in found))
            return replace(route, lists=await self._takes_lists(route))
        raise BackendError(
            f"{self.client.base_url} gives no log-probabilities for {self.model!r}: {'; '.join(refusals)}",
            "take a model that gives them; reasoning models may with backend.extra.reasoning_effort = 'none'",
        )

    async def noise(self, route: Route) -> float:
        """Standard deviation of a log-probability when the same is asked again, alone and beside others."""
        alone = await self._ask(route, _SAMPLES[0])
        beside = await side_by_side([self._ask(route, _SAMPLES[0]) for _ in range(_REPEATS - 1)])
        found = [values for values, _ in (alone, *beside)]
        common = set.intersection(*(set(one) for one in found))
        if not common:
            raise BackendError(
                f"{self.client.base_url} answers the same question each time with quite another list"
            )
        values = np.array([[one[text] for text in sorted(common)] for one in found])
        return float(values.std(axis=0).max())

    async def _longest(self, route: Route, *, fixed: bool) -> tuple[Route, dict[str, float]]:
        """The route with the longest list that the server allows, and fields that it does not refuse."""
        while True:
            try:
                found, answer = await self._ask(route, _SAMPLES[0])
            except Refused as refused:
                milder = _milder(route, refused, fixed=fixed)
                if milder is None:
                    raise
                route = milder
                continue
            if _generated(answer) > 1 and route.limit == "max_completion_tokens":
                route = replace(route, limit="max_tokens")  # it does not know the newer field
                continue
            return replace(route, top_k=min(len(found), route.top_k)), found

    async def _takes_lists(self, route: Route) -> bool:
        """Whether two prompts in a request are answered, and counted, as they are alone."""
        lists = replace(route, lists=True)
        alone = [await self._ask(route, sample) for sample in _SAMPLES]
        try:
            answer = await self._answer(lists, _SAMPLES)
            found = lists.lists_of(answer, len(_SAMPLES))
            tokens = [_tokens(one) for _, one in alone]
            counted = _tokens(answer) == sum(tokens)  # llama.cpp counts the first prompt only
        except (Refused, *SHAPE_ERRORS):
            return False
        return counted and all(_alike(one, other) for one, (other, _) in zip(found, alone, strict=True))

    async def _prefill(self, route: Route, wanted: bool | None) -> Prefill:
        """The first way of prefill after which the model goes on counting; none where there is none."""
        if wanted is False:
            return NO_PREFILL
        taken: list[Prefill] = []
        for way in PREFILLS:
            try:
                found, _ = await self._ask(replace(route, prefill=way), _COUNTING)
            except (Refused, _NoList):
                continue
            taken.append(way)
            if max(found, key=lambda text: found[text]) == _NEXT:
                return way
        if wanted is True:  # a model that cannot count is no proof that the server cannot prefill
            if not taken:
                raise BackendError(f"backend.prefill: {self.client.base_url} refuses it")
            return taken[-1]
        return NO_PREFILL

    async def _ask(self, route: Route, text: str) -> tuple[dict[str, float], Any]:
        """The list of first tokens after a text, and the whole answer.

        Raises:
            Refused: The server wants something else.
            _NoList: It answers without a list, or with numbers that are no log-probabilities.
        """
        place = self.client.base_url + route.path
        for _ in range(_PATIENCE):
            answer = await self._answer(route, [text])
            try:
                (found,) = route.lists_of(answer, 1)
            except SHAPE_ERRORS:
                raise _NoList(f"{place} answers without log-probabilities") from None
            if not spoiled(found, route.top_k):
                break
        known = list(found.values())
        try:
            checked([Reading(known, [True] * len(known))], len(known), place)
        except BackendError as error:
            raise _NoList(error.message) from error
        if not found or spoiled(found, route.top_k):
            raise _NoList(f"{place} answers with lists that are empty or hold only -9999")
        return found, answer

    async def _answer(self, route: Route, texts: Sequence[str]) -> Any:
        self.requests += 1
        answer = await self.client.ask(route.path, route.body(texts), lambda answer: answer)
        if isinstance(answer, dict) and answer.get("system_fingerprint"):
            self.fingerprints.append(self.client.masked(str(answer["system_fingerprint"])))
        return answer


class _NoList(BackendError):
    """An answer without usable log-probabilities."""


def _milder(route: Route, refused: Refused, *, fixed: bool) -> Route | None:
    """A request for less, after what a refusal says; None where there is nothing left to change."""
    words = refused.words.lower()
    if refused.status not in (400, 422):
        return None
    if "max_completion_tokens" in words and route.limit == "max_completion_tokens":
        return replace(route, limit="max_tokens")
    if "temperature" in words and route.temperature:
        return replace(route, temperature=False)
    numbers = _NUMBER.findall(words) if "logprobs" in words else []
    allowed = [int(number) for number in numbers if 1 < int(number) < route.top_k]
    shorter = max(allowed, default=0) or next((k for k in (20, 5) if k < route.top_k), 0)
    return replace(route, top_k=shorter) if shorter and not fixed else None


def _generated(answer: Any) -> int:
    """Tokens of the answer; 0 where the server does not count them."""
    return int((answer.get("usage") or {}).get("completion_tokens") or 0)


def _tokens(answer: Any) -> int:
    return int((answer.get("usage") or {}).get("prompt_tokens") or 0)


def _alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether the more probable halves of two lists are the same but for noise."""
    likely = sorted(other, key=lambda text: -other[text])[: (len(other) + 1) // 2]
    return all(abs(one.get(text, -np.inf) - other[text]) < _APART for text in likely)
