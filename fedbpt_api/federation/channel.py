"""Questions to a party behind a network: an envelope there and one back, and what each may cost.

What a party must be told before it can answer goes along in the same exchange. The budget that counts here is
the server's own: a question is granted what is left of it, and what the party says that it cost is taken off.
A party's own budget stays its own business; it tells when it is spent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fedbpt_api.errors import FedbptError, QuotaError
from fedbpt_api.fanning import side_by_side
from fedbpt_api.federation.account import Account
from fedbpt_api.federation.envelope import Envelope, opened, opened_answer, seal
from fedbpt_api.federation.exchange import Exchange, GivingUp
from fedbpt_api.federation.facts import Facts
from fedbpt_api.federation.forgotten import Forgotten, patiently
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.prompts.space import Ids
from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.budget import Budget, BudgetSpent
from fedbpt_api.scoring.scorer import Stopped

_SAID: Final = 500  # characters


@dataclass
class Channel:
    """The way to a party that has said what it is.

    Attributes:
        facts: What it is.
        exchange: How envelopes reach it.
        account: What its questions have cost.
        introduction: What it was told at first, and is again when it has forgotten.
        whole: A question is granted all that it may take, or nothing.
        apart: It is somebody else's: its quota that is used up, or its user who stops it, ends no run.
        words: Ids of the words that it reads from now on.
        rounds: What it knows of search rounds; None where nothing.
    """

    facts: Facts
    exchange: Exchange
    account: Account
    introduction: bytes
    whole: bool = False
    apart: bool = False
    words: Ids = ()
    rounds: object = None
    _introduced: bool = True
    _told: Ids = ()  # words that the party knows
    _asked: int = 0
    _granted_in_all: int = 0
    _granted_to: dict[int, Usage] = field(default_factory=dict)  # to questions that are not answered yet

    def __post_init__(self) -> None:
        self._patience = GivingUp(self.facts.name, self.exchange)

    async def ask(self, kind: str, fields: dict[str, Any], need: int = 0) -> Envelope:
        """Put a question; once more where the party has been started again."""
        return await patiently(lambda: self.once(kind, fields, need))

    async def once(self, kind: str, fields: dict[str, Any], need: int = 0, body: bytes = b"") -> Envelope:
        """Put a question, behind what the party must be told before; an exchange for all of it.

        Args:
            kind: What is asked.
            fields: Of the envelope.
            need: Scored examples that it may take; no more than these, or than is left, are granted.
            body: Of the envelope.

        Raises:
            BudgetSpent, Stopped, FedbptError: What the party answers, or how it failed to.
        """
        before: list[Coroutine[Any, Any, Any]] = []
        if not self._introduced:
            self._introduced = True
            before.append(self._introduce())
        if self.words != self._told:
            self._told = self.words
            before.append(self._tell_words())
        # What is begun first is sent first, and a party answers in that order.
        found: Envelope = (await side_by_side([*before, self._put(kind, fields, need, body)]))[-1]
        return found

    async def _introduce(self) -> None:
        """Tell a party that has been started again its task.

        Raises:
            FedbptError: It cannot take part any more, or is another than it was.
        """
        try:
            if await introduced(self.exchange, self.introduction) != self.facts:
                raise MessageError(f"{self.facts.name} has come back with other texts, or another model")
        except BaseException:
            self._introduced = False
            raise

    async def _tell_words(self) -> None:
        try:
            await self._put("words", {"words": list(self.words)}, 0, b"")
        except BaseException:
            self._told = ()  # who knows what it reads now
            raise

    async def _put(self, kind: str, fields: dict[str, Any], need: int, body: bytes) -> Envelope:
        """Put a question, and count what its answer cost."""
        grant = Usage(scored=self._granted(need))
        data = seal(Envelope(kind, fields | {"grant": grant.scored}, body))
        self._run.reserve(grant)
        self._asked += 1
        self._granted_in_all += grant.scored
        number, self._granted_to[self._asked] = self._asked, grant
        try:
            read = opened if self.whole else opened_answer  # sums over all parties are made on this side
            answer = read(await self._patience(data))
        except (TimeoutError, asyncio.CancelledError):
            raise  # it may be at it still: what it was granted is kept for it until it answers something
        except BaseException:
            self._run.settle(self._granted_to.pop(number, Usage()), Usage())
            raise
        try:
            if answer.kind not in ("forgotten", "failed") or "spent" in answer.fields:
                granted = self._granted_in_all if self.apart else None
                self.account.count(answer.fields.get("spent"), granted, self.facts.info.context)
        finally:  # a party answers in order, so it is done with all that it was asked before
            for done in [one for one in self._granted_to if one <= number]:
                self._run.settle(self._granted_to.pop(done), Usage())
        return self._inner(answer, kind, enough=grant.scored >= need)

    def _inner(self, answer: Envelope, kind: str, *, enough: bool) -> Envelope:
        """What an answer says, or why it is none.

        Args:
            answer: A party's.
            kind: What it was asked.
            enough: Whether it was granted all that it may need.
        """
        inner = answer.fields.get("answer")
        if not isinstance(inner, dict):
            raise MessageError(f"{self.facts.name} answers {kind!r} with something else")
        own = inner.get("own") is True
        ended = inner.get("spent") is True or (answer.kind == "spent" and not own)
        if self.apart and ended and enough:
            raise FedbptError(  # which would end the run for all
                f"{self.facts.name} says that the run's budget is spent, but was granted all that it needs",
                "has it lost the folder that keeps its scores?",
            )
        match answer.kind:
            case "spent":
                raise BudgetSpent(str(inner.get("cap")), own)
            case "stopped" if self.apart:
                raise FedbptError(f"{self.facts.name} was stopped")
            case "stopped":
                raise Stopped
            case "forgotten":
                self._told, self.rounds, self._introduced = (), None, False
                raise Forgotten(f"{self.facts.name} was started again and does not know what it was told")
            case "quota" if not self.apart:
                raise QuotaError(*_said(inner))
            case "failed" | "quota":
                raise FedbptError(*_said(inner))
        return Envelope(answer.kind, inner, answer.body)

    def _granted(self, need: int) -> int:
        """Scored examples that the next question may take, of those that it may need at most.

        A party looks after its own budget itself: only it can tell how much of a question fits.
        """
        left = self._run.left()
        if self.whole:
            return need if left is None or left >= need else 0
        budget = self.account.budget
        dealt = budget.grant.scored
        share = need if dealt is None else min(need, max(dealt - budget.spent.scored, 0))
        return share if left is None else min(share, left)

    @property
    def _run(self) -> Budget:
        """The budget that all parties share."""
        return self.account.budget.parent or Budget()


async def introduced(exchange: Exchange, introduction: bytes) -> Facts:
    """What a party says of itself.

    Raises:
        FedbptError: It does not, or cannot take part.
    """
    answer = opened_answer(await exchange(introduction))
    inner = answer.fields.get("answer", {})
    if answer.kind == "failed" and isinstance(inner, dict):
        raise FedbptError(*_said(inner))
    if answer.kind != "facts":
        raise MessageError(f"a party answers {answer.kind!r} where it should say what it is")
    return Facts.read(inner)


def _said(inner: Mapping[str, Any]) -> tuple[str, str]:
    """A party's words on why there is no answer, and its advice: as much of them as a report has room for."""
    return str(inner.get("message"))[:_SAID], str(inner.get("hint"))[:_SAID]
