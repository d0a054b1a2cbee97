"""A search that judges one drawn prompt after another, and learns nothing from one for the next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from fedbpt_api.methods.searching import Searching, Stop
from fedbpt_api.prompts.space import Asked
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import BudgetSpent

A_ROUND: Final = 4
"""Draws that are judged, and noted, together."""

Draw = Callable[[], Awaitable[tuple[Asked, Floats | None]]]
"""Draws a prompt and, where it was drawn in the run's space, its point."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is drawn: `origin` is said of each prompt, `each` make a round, `patience` draws in a row that are
    known or too long end the search; `sigma` is noted with each round."""

    origin: str
    each: int
    patience: int
    sigma: float = 0.0


async def judge_draws(run: Searching, draw: Draw, plan: Plan) -> Stop:
    """Judge what is drawn until the budget, the rounds or the patience end.

    Raises:
        Stopped: The user asked the run to stop.
        FedbptError: The backend or too many clients failed.
    """
    known, most, rounds, refused = run.assessor.known, run.settings.search.rounds, 0, 0
    while most is None or rounds < most:
        clock, judged, ended = run.meter(), 0, False
        while judged < plan.each and not ended:
            prompt, point = await draw()
            too_long = isinstance(prompt, tuple) and len(prompt) > run.parties.room
            if too_long or prompt in known:
                refused += 1
                if refused == plan.patience:
                    return "cap"
                continue
            try:
                await run.assessor.assess(prompt, plan.origin, point)
            except BudgetSpent:
                ended = True
            judged, refused = judged + 1, 0
        rounds += 1
        run.note(clock, run.assessor.best(), None, plan.sigma)
        if ended:
            return "budget"
    return "rounds"
