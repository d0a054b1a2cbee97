"""Several parties behind one exchange: a question reaches all, and the sum of their answers comes back.

To the rest of the server they are one `RemoteParty` that holds all texts. Their answers are masked
(`masks`): what is held here, and what is kept on disk, are rows of uniform numbers until all of them are
added up. In the open are what each party tells of itself first, what it has spent, which answers failed,
lines that models have written, and of CMA-ES searches losses, step sizes and counts.

All must answer, always the same set: a sum without one party would tell that party's numbers. A party that
fails is asked three times; then the run ends, to go on once it is back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Final, TypeVar

from fedbpt_api.errors import FedbptError
from fedbpt_api.fanning import side_by_side
from fedbpt_api.federation import plain
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.facts import Facts
from fedbpt_api.federation.masks import LEAST, added
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.federation.summable import unpacked
from fedbpt_api.scoring.backend import Floats

TOGETHER: Final = "together"
"""What they are called as one party."""

SIZE: Final = 1 << 18
"""Tokens that have a place among words' sums; no vocabulary of today has more."""

_TRIES = 3  # for each party and question
_ENDS = ("forgotten", "stopped", "quota", "failed", "spent")  # answers that end a question, the first first

T = TypeVar("T")


class Together:
    """An `Exchange` with several parties.

    Args:
        members: Each party's exchange, by name; at least three.
        tasks: What tells each its task.

    Raises:
        FedbptError: Fewer than three parties.
    """

    def __init__(self, members: Mapping[str, Exchange], tasks: Mapping[str, bytes]) -> None:
        if len(members) < LEAST:
            raise FedbptError(
                f"sums hide their parts from {LEAST} parties up, and these are {len(members)}",
                "set privacy.mode = 'none', or find more parties",
            )
        self._members = dict(sorted(members.items()))
        self._tasks = tasks
        self._door = asyncio.Lock()
        self._spent: dict[tuple[str, str], Mapping[str, Mapping[str, int]]] = {}

    async def __call__(self, data: bytes) -> bytes:
        """Ask all.

        Raises:
            FedbptError: One does not answer, or not what was asked for.
        """
        question = opened(data)
        async with self._door:  # what was begun after an introduction waits for its end
            if question.kind in ("task", "facts"):
                return self._sealed(Envelope("facts", (await self._introduced()).told()))
        match question.kind:
            case "write":
                answer = await self._written(question)
            case "words" | "rounds":
                answer = self._alike(await self._asked(question), "done")
            case "search":
                answer = await self._scalars(question)
            case "word sums":
                answer = await self._sum(replace(question, fields={**question.fields, "size": SIZE}))
            case _:
                answer = await self._sum(question)
        return self._sealed(answer)

    def _sealed(self, answer: Envelope) -> bytes:
        return seal(Envelope(answer.kind, {"answer": answer.fields, "spent": self._total()}, answer.body))

    async def _scalars(self, question: Envelope) -> Envelope:
        """What each party tells of a search in the open."""
        found = await self._asked(question)
        if (answer := self._alike(found, "scalars")).kind != "scalars":
            return answer
        return Envelope("scalars", {"members": {name: told.fields for name, told in found.items()}})

    async def _sum(self, question: Envelope) -> Envelope:
        """The sum of all answers, as one party with all texts would have given it."""
        for _ in range(_TRIES):
            found = await self._asked(question)
            if end := self._ended(found):
                return end
            # Where some have agreed anew in between, their masks do not vanish: all are asked once more.
            if len({str(answer.fields.get("agreed")) for answer in found.values()}) == 1:
                break
        layout, row = self._added(found)
        return Envelope("weighed", {}, row.tobytes()) if layout == ["weighed"] else unpacked(layout, row)

    @plain.reading
    def _added(self, found: Mapping[str, Envelope]) -> tuple[list[Any], Floats]:
        told = [answer.fields for answer in found.values() if answer.kind == "masked"]
        layouts = [fields["layout"] for fields in told]
        if len(told) < len(found) or any(fields != told[0] for fields in told):
            raise ValueError("parties answer in different ways, or have agreed on different masks")
        bodies = {name: answer.body for name, answer in found.items()}
        return list(layouts[0]), added(bodies, len(next(iter(bodies.values()))) // 8)

    async def _introduced(self) -> Facts:
        """Tell all their task, and have them agree on masks."""
        answers = await self._each(lambda name: self._put(name, self._tasks[name]))
        self._well(answers, "facts")
        facts = {name: Facts.read(answer.fields) for name, answer in answers.items()}
        keys = await self._asked(Envelope("keys", {}))
        self._well(keys, "keys")
        told = {name: answer.fields.get("key") for name, answer in keys.items()}
        self._well(await self._asked(Envelope("peers", {"keys": told})), "done")
        if wrong := [name for name, fact in facts.items() if fact.name != name]:
            raise MessageError(f"{wrong[0]} calls itself {facts[wrong[0]].name} now")
        return _all(list(facts.values()))

    async def _written(self, question: Envelope) -> Envelope:
        """Jobs are dealt to the parties; lines hold nothing of texts, so they come back as they are."""
        jobs, names = question.fields["jobs"], list(self._members)
        parts = {name: jobs[place :: len(names)] for place, name in enumerate(names)}
        dealt = {name: part for name, part in parts.items() if part}

        async def one(name: str) -> Envelope:
            fields = {**question.fields, "jobs": dealt[name]}
            return await self._put(name, seal(replace(question, fields=fields)))

        found = await self._each(one, list(dealt))
        if found and (answer := self._alike(found, "lines")).kind != "lines":
            return answer
        for name, told in found.items():
            plain.to_lines(told.fields.get("lines"), len(dealt[name]))
        return Envelope("lines", {"lines": [line for a in found.values() for line in a.fields["lines"]]})

    async def _asked(self, question: Envelope) -> dict[str, Envelope]:
        data = seal(question)
        return await self._each(lambda name: self._put(name, data))

    async def _each(
        self, ask: Callable[[str], Awaitable[T]], names: Sequence[str] | None = None
    ) -> dict[str, T]:
        names = list(self._members) if names is None else names

        async def patient(name: str) -> T:
            for _ in range(_TRIES - 1):
                try:
                    return await ask(name)
                except FedbptError:
                    continue  # the last try's is raised
            return await ask(name)

        return dict(zip(names, await side_by_side([patient(name) for name in names]), strict=True))

    async def _put(self, name: str, data: bytes) -> Envelope:
        """One party's answer; what it has spent is noted."""
        answer = opened(await self._members[name](data))
        if "spent" in answer.fields:
            self._note(name, answer.fields["spent"])
        inner = answer.fields.get("answer")
        if not isinstance(inner, dict):
            raise MessageError(f"{name} answers with something else")
        return Envelope(answer.kind, inner, answer.body)

    @plain.reading
    def _note(self, name: str, told: Mapping[str, Any]) -> None:
        spent = {part: {key: plain.whole(n) for key, n in told[part].items()} for part in ("search", "test")}
        self._spent[name, str(told["life"])] = spent

    def _total(self) -> dict[str, Any]:
        """What all have spent since they were first asked."""
        total: dict[str, Any] = {"life": TOGETHER}
        for part in ("search", "test"):
            counted: Counter[str] = Counter()
            for spent in self._spent.values():
                counted.update(spent[part])
            total[part] = dict(counted)
        return total

    def _ended(self, found: Mapping[str, Envelope]) -> Envelope | None:
        """The answer that ends a question, where there is one."""
        for kind in _ENDS:
            for name, answer in found.items():
                if answer.kind == kind:
                    message = f"{name}: {answer.fields.get('message')}"
                    return replace(answer, fields={**answer.fields, "message": message})
        return None

    def _well(self, found: Mapping[str, Envelope], kind: str) -> None:
        """All must have answered with this kind.

        Raises:
            FedbptError: One did not.
        """
        answer = self._alike(found, kind)
        if answer.kind != kind:
            raise FedbptError(str(answer.fields.get("message")), str(answer.fields.get("hint", "")))

    def _alike(self, found: Mapping[str, Envelope], kind: str) -> Envelope:
        """One of the answers, which must all be of a kind; or one that ends the question."""
        if end := self._ended(found):
            return end
        for name, answer in found.items():
            if answer.kind != kind:
                raise MessageError(f"{name} answers {answer.kind!r}, where {kind!r} was asked for")
        return next(iter(found.values()))


def _all(facts: Sequence[Facts]) -> Facts:
    """What several parties are as one.

    Raises:
        FedbptError: Their models' vocabularies differ.
    """
    if len({fact.tokens for fact in facts}) > 1 or len({fact.info.inputs for fact in facts}) > 1:
        raise FedbptError("the parties' models have different vocabularies", "use one model")
    first = facts[0]
    info = replace(
        first.info,
        context=min(fact.info.context for fact in facts),
        max_words=min(fact.info.max_words for fact in facts),
        noise=max(fact.info.noise for fact in facts),
    )
    return Facts(
        name=TOGETHER,
        train=sum(fact.train for fact in facts),
        dev=sum(fact.dev for fact in facts),
        test=sum(fact.test for fact in facts),
        labels=tuple(map(sum, zip_longest(*(fact.labels for fact in facts), fillvalue=0))),
        tokens=first.tokens,
        longest=max(fact.longest for fact in facts),
        info=info,
        limit=None,
    )
