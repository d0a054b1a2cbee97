"""Questions after the search: what would have to be scored for is no answer any more.

A run's budget may be spent by then, or its user has stopped it; neither may end it before its result is kept.
As a rule everything is paid for. A party may have lost its folder, though, or have failed in between.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from fedbpt_api.errors import FedbptError
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.scorer import Stopped
from fedbpt_api.verbalizer import Answering

R = TypeVar("R")


async def at_hand(answer: Awaitable[R]) -> R:
    """An answer, if nothing has to be scored for it.

    Raises:
        FedbptError: Something has, or what the question itself raises.
    """
    try:
        return await answer
    except (BudgetSpent, Stopped) as end:
        raise FedbptError("it would have to score that now, and the search has ended") from end


@dataclass(frozen=True, slots=True)
class AtHand:
    """A party's part in a fit, as far as it needs no scores."""

    fit: Answering

    @property
    def name(self) -> str:
        return self.fit.name

    @property
    def n(self) -> int:
        return self.fit.n

    async def answer(self, question: bytes) -> bytes:
        return await at_hand(self.fit.answer(question))
