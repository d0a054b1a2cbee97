"""What a recipe's loop is given: the parties, the judge of prompts, and where its rounds are noted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fedbpt_api.federation.latecomers import LateLog, NoLog
from fedbpt_api.federation.runtime import Round
from fedbpt_api.prompts.codebook import Codebook
from fedbpt_api.prompts.space import PromptSpace
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.config import Settings
from fedbpt_api.run.meter import Meter
from fedbpt_api.run.parties import Parties
from fedbpt_api.scoring.scorer import Stopped
from fedbpt_api.task import Task

Stop = Literal["budget", "rounds", "settled", "cap", "cancelled"]


class Note(Protocol):
    """Notes a round: what it cost, the prompt that it came to, what was merged, the step size after it."""

    def __call__(self, clock: Meter, shown: Assessment, merged: Round | None, sigma: float) -> None: ...


@dataclass
class Searching:
    """A run as a recipe's loop sees it.

    Attributes:
        assessor: Judges prompts; the best of those it has judged is the run's.
        task: The texts, for recipes that may see them.
        begun: Measures what was spent since the run began: for the first round that is noted.
        codebook: Gives the words of the search, once.
        note: Notes a round.
        phase: Says what is being done, for displays.
        stopping: Whether the user has asked the run to stop.
        lateness: Keeps which round late searches joined.
        space: Where the prompts of the search come from, for the artefact.
    """

    assessor: Assessor
    task: Task
    begun: Meter
    codebook: Callable[[], Awaitable[Codebook]]
    note: Note
    phase: Callable[[str], None]
    stopping: Callable[[], bool]
    lateness: LateLog = field(default_factory=NoLog)
    space: PromptSpace | None = None

    @property
    def settings(self) -> Settings:
        return self.assessor.settings

    @property
    def parties(self) -> Parties:
        return self.assessor.parties

    def meter(self) -> Meter:
        """Begin to measure a round.

        Raises:
            Stopped: The user asked the run to stop.
        """
        if self.stopping():
            raise Stopped
        return Meter(self.parties)


class Loop(Protocol):
    """A recipe's search: assesses prompts until the budget, or what it can do, ends.

    Raises:
        BudgetSpent: A planned end.
        Stopped: The user asked the run to stop.
        FedbptError: The backend or too many clients failed.
    """

    async def __call__(self, run: Searching) -> Stop: ...
