"""What the server may ask of a party, wherever that party is: in this process, or behind a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from fedbpt_api.federation.local_search import Plan, Reference, Searched
from fedbpt_api.federation.messages import Broadcast
from fedbpt_api.federation.tally import Contestant, Ints, Sums, Tally
from fedbpt_api.prompts.space import Asked, Ids, PromptSpace
from fedbpt_api.prompts.written import Job, Line
from fedbpt_api.scoring.backend import BackendInfo, Floats
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.verbalizer import Answering, Reading, Verbalizer


class Party(Protocol):
    """A party with its private texts; only numbers over many of them come back.

    Every question may raise BudgetSpent, Stopped or a FedbptError: of its own budget, or of its server.
    `budget` counts what its questions cost, `tested` what its test did (None before it).
    """

    name: str
    tested: Budget | None

    @property
    def budget(self) -> Budget: ...
    @property
    def info(self) -> BackendInfo: ...
    @property
    def n_train(self) -> int: ...
    @property
    def label_counts(self) -> Ints: ...
    @property
    def n_dev(self) -> int: ...
    @property
    def n_test(self) -> int: ...
    @property
    def waiting(self) -> float: ...
    @property
    def cost(self) -> int: ...
    def search_cost(self, plan: Plan) -> int: ...
    def use_words(self, words: Ids) -> None: ...
    async def word_sums(
        self, prompt: Ids, words: Ids = (), named: int = 0
    ) -> tuple[tuple[int, float], ...]: ...
    async def write(self, jobs: Sequence[Job], judge: Reference) -> tuple[Line, ...]: ...
    async def fit(
        self, prompt: Asked, groups: Sequence[Sequence[int]], *, with_dev: bool = False
    ) -> Answering: ...
    async def label_sums(self, prompt: Asked, groups: Sequence[Sequence[int]]) -> Floats: ...
    async def evaluate(
        self, prompt: Asked, reading: Reading, part: Literal["train", "dev"] = "dev", repeat: int = 0
    ) -> Sums: ...
    async def joint_losses(
        self, judged: Sequence[tuple[Asked, Verbalizer]], sets: Sequence[Sequence[int]]
    ) -> Floats: ...
    async def search(
        self, broadcast: Broadcast, space: PromptSpace, plan: Plan, reference: Reference
    ) -> Searched: ...
    async def proposal(self) -> Floats: ...
    async def test(
        self,
        contestants: Sequence[Contestant],
        common: int,
        progress: Callable[[int], None] = ...,
        timeout: float | None = None,
    ) -> Tally: ...
    async def aclose(self) -> None: ...
