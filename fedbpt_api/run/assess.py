"""Judging prompts: scored on all clients, verbalizer fitted over clients, held-out loss pooled."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TypeVar

import numpy as np

from fedbpt_api.errors import FedbptError
from fedbpt_api.fanning import side_by_side
from fedbpt_api.federation.party import Party
from fedbpt_api.federation.runtime import Answers, ask_all, need_quorum
from fedbpt_api.federation.tally import Sums
from fedbpt_api.prompts.space import Asked, Ensemble, members_of
from fedbpt_api.prompts.tuned import shown_together
from fedbpt_api.run.assessment import SPREAD, Assessment, beyond, total
from fedbpt_api.run.at_hand import AtHand, at_hand
from fedbpt_api.run.config import Settings
from fedbpt_api.run.events import Assessed, Event
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.private import matched, noise_of_logits
from fedbpt_api.scoring.backend import Floats, Soft
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.verbalizer import Answering, FitError, FitReport, Kind, Reading, Verbalizer, fit_over_clients
from fedbpt_api.verbalizer.committee import alone, together

R = TypeVar("R")
START = "start"  # the origin of the user's own prompts
QUIET = 1e-3
"""Nats; less noise in a log-probability changes no choice."""


@dataclass
class Assessor:
    """Assesses each prompt once and remembers it.

    Args:
        parties: Who is asked.
        settings: The run's.
        tell: Where events go.
        known: What was assessed.
        centre: The prompt that is being searched around, once there is one.
        chosen: The result, where it is not simply the prompt with the smallest held-out loss.
        made_up: Whether losses are, as in an estimate: then nobody is suspected for them.
        ended: Whether the search has: who would have to score for an answer has none then.
    """

    parties: Parties
    settings: Settings
    tell: Callable[[Event], None]
    known: dict[Asked, Assessment] = field(default_factory=dict)
    centre: Assessment | None = None
    chosen: Assessment | None = None
    made_up: bool = False
    ended: bool = False

    def best(self) -> Assessment:
        """The choice: the prompt with the smallest held-out loss, the earlier one where two are equal.

        Two prompts are compared on the clients that answered for both: one may have failed in between,
        or spent its own budget.

        Raises:
            FedbptError: Not one prompt could be assessed.
        """
        if not self.known:
            raise FedbptError(
                "the run was stopped, or its budget ended, before one prompt was judged",
                f"judging one costs {self.cost} scored examples; raise the budget",
            )
        if self.chosen is not None:
            return self.chosen
        return reduce(lambda best, new: new if new.beats(best) else best, self.known.values())

    async def assess(
        self, prompt: Asked, origin: str, z: Floats | None = None, fixed: Verbalizer | None = None
    ) -> Assessment:
        """Score a prompt on all training and development texts and fit its verbalizer.

        Args:
            prompt: The prompt.
            origin: Where it comes from, for people.
            z: Where a continuous one lies.
            fixed: A verbalizer that is not to be fitted.

        Raises:
            BudgetSpent: It does not fit into the budget.
            QuorumError: Too few clients answered.
        """
        if prompt in self.known:
            return self.known[prompt]
        if not self._allowed(1) and not isinstance(prompt, Ensemble):
            raise BudgetSpent("prompts that may be judged with noise")
        return await self._enter(await self._measured(prompt, z, fixed), origin)

    async def assess_all(self, prompts: Sequence[tuple[Asked, Floats | None, str]]) -> None:
        """Assess prompts, each with where it lies and its origin, as `assess` does one after the other.

        Behind a network, where an exchange takes long however little it asks, they are measured side by side,
        unless what one does decides whether another's development texts are paid for.

        Raises:
            BudgetSpent, QuorumError: As from `assess`.
        """
        alike = self.centre is not None or self.settings.search.choice == "committee"
        new = {prompt: (z, origin) for prompt, z, origin in prompts if prompt not in self.known}
        if not (self.parties.apart and alike and self.affords(len(new), 1.0) and self._allowed(len(new))):
            for prompt, z, origin in prompts:
                await self.assess(prompt, origin, z)
            return
        left = list(await side_by_side([self._measured(prompt, z) for prompt, (z, _) in new.items()]))
        try:
            while left:
                assessment = left.pop(0)
                await self._enter(assessment, new[assessment.prompt][1])
        finally:
            for assessment in left:  # where a second look ended the run: they are paid for
                self._remember(assessment, new[assessment.prompt][1])

    def affords(self, prompts: int, share: float, more: int = 0) -> bool:
        """Whether judging so many prompts, and spending `more`, stays within a share of the budgets.

        Of the run's budget, and of each client's own.
        """
        parties = self.parties
        if not self._allowed(prompts):
            return False
        if parties.budget.used(self.cost * prompts + more) > share:
            return False
        each = more // len(parties.clients)
        return all(c.budget.used(c.cost * prompts + each) <= share for c in parties.clients)

    @property
    def with_noise(self) -> bool:
        """Whether answers have noise: every prompt that is judged, and all else asked, costs privacy."""
        return self.settings.privacy.mode == "gaussian"

    def _allowed(self, prompts: int) -> bool:
        """Whether so many prompts more may be judged, as far as privacy goes."""
        return not self.with_noise or len(self.known) + prompts <= self.settings.privacy.prompts

    async def _matched(self, prompt: Asked) -> Verbalizer:
        """A bias from sums alone."""
        parties = self.parties
        answers = await self.ask(lambda c: c.label_sums(prompt, parties.groups), self._scored(prompt))
        counts = np.zeros(len(parties.groups))
        for client in parties.clients:
            if client.name in answers.got:
                counts[: len(client.label_counts)] += client.label_counts
        sums = np.sum([answers.got[name] for name in sorted(answers.got)], axis=0)
        texts = [client.n_train for client in parties.clients if client.name in answers.got]
        noise = noise_of_logits(self.settings, texts)
        return matched(sums, counts, parties.words, parties.groups, noise)

    async def _measured(
        self, prompt: Asked, z: Floats | None = None, fixed: Verbalizer | None = None
    ) -> Assessment:
        """What all clients say of a prompt."""
        given = fixed is not None
        verbalizer: Reading
        if self.with_noise and fixed is None:
            fixed = await self._matched(prompt)
        if fixed is None:
            verbalizer, report = await self.fit(prompt, self.settings.verbalizer.kind, self._scored(prompt))
            train = {name: Sums(n, loss) for name, (n, loss) in report.held_out.items()}
            if isinstance(prompt, Ensemble):
                verbalizer = together([alone(self.known[member].verbalizer) for member in prompt.members])
        else:
            verbalizer = fixed
            train = (await self.ask(lambda c: c.evaluate(prompt, fixed, "train"), self._scored(prompt))).got
        sums: Answers[Sums] = Answers()
        if isinstance(prompt, Ensemble) or self.with_noise or self._promising(train):
            sums = await self.ask(lambda c: c.evaluate(prompt, verbalizer), train)
        text = await self._text(prompt)
        z = z if isinstance(prompt, Soft) else None
        floor = self.centre.train if self.centre and not self._unsearched(prompt) else {}
        return Assessment(prompt, text, verbalizer, train, dict(sums.got), floor, z, fixed=given)

    def _scored(self, prompt: Asked) -> frozenset[str] | None:
        """Of a joined prompt, who has answered for all its members, so that no call is needed; None: all."""
        if not isinstance(prompt, Ensemble):
            return None
        return frozenset.intersection(*(self.known[member].clients for member in prompt.members))

    async def _enter(self, assessment: Assessment, origin: str) -> Assessment:
        """Remember and tell what was measured."""
        prompt = assessment.prompt
        # Joined prompts are made of scores that are there, when the budget may be spent: no call is needed.
        searched = not isinstance(prompt, Ensemble)
        rival = self.best() if self.known else None
        try:
            if searched and self._noisy and rival is not None and assessment.beats(rival):
                self.known[rival.prompt] = await self._again(rival)
                assessment = await self._again(assessment)
        finally:  # where a second look ended the run, too: it is paid for
            self._remember(assessment, origin)
        return assessment

    def _remember(self, assessment: Assessment, origin: str) -> None:
        self.known[assessment.prompt] = a = assessment
        dev, chosen, scored = a.dev_sums, self.best() is a, self.parties.budget.spent.scored
        self.tell(Assessed(a.text, origin, a.train_loss, a.loss, dev.mean_loss, dev.accuracy, chosen, scored))

    async def _text(self, prompt: Asked) -> str:
        if isinstance(prompt, Soft):
            return self.centre.text if self.centre else ""
        texts = [
            await self.parties.backend.detokenize(ids) for ids in members_of(prompt) if isinstance(ids, tuple)
        ]
        return shown_together(texts)

    def _unsearched(self, prompt: Asked) -> bool:
        """Whether none of a joined prompt's members was searched for on training texts."""
        return isinstance(prompt, Ensemble) and not any(self.known[ids].floor for ids in prompt.members)

    @property
    def _noisy(self) -> bool:
        """Whether a server answers the same question differently."""
        return any(c.info.noise > QUIET for c in self.parties.clients)

    async def _again(self, doubted: Assessment) -> Assessment:
        """A prompt with its development texts scored a second time, and the mean of both; once only.

        The best of many noisy numbers is worse than it looks: two looks before it wins, if the budget allows.
        A client that gives no second answer is believed the first.
        """
        if doubted.repeated:
            return doubted
        second = await self.ask(
            lambda c: c.evaluate(doubted.prompt, doubted.verbalizer, repeat=1), doubted.dev
        )
        dev = {
            name: replace(old, loss=(old.loss + second.got.get(name, old).loss) / 2)
            for name, old in doubted.dev.items()
        }
        return replace(doubted, dev=dev, repeated=True)

    def _promising(self, train: Mapping[str, Sums]) -> bool:
        """Whether development texts are worth their price.

        A starting prompt must not be clearly worse than the best one on training texts. A prompt that was
        searched for must be better there than the centre: they are what it was searched on.
        """
        if not self.known or (self.centre is None and self.settings.search.choice == "committee"):
            return True  # a loss on training texts says little, and an ensemble lives on differences
        rival = self.centre or self.best()
        slack = 0.0 if self.centre else SPREAD
        common = frozenset(train) & frozenset(rival.train)
        new, old = total(train, common), total(rival.train, common)
        odd = beyond({n: train[n] for n in common}, {n: rival.train[n] for n in common})
        return not new.n or new.mean_loss + odd < old.mean_loss + slack / math.sqrt(new.n)

    @property
    def cost(self) -> int:
        """Scored examples that judging one prompt takes at most."""
        return sum(client.cost for client in self.parties.clients)

    async def ask(
        self, question: Callable[[Party], Awaitable[R]], names: Collection[str] | None = None
    ) -> Answers[R]:
        """Put a question to all clients, or to those named; go on while a quorum answers."""
        clients = [c for c in self.parties.clients if names is None or c.name in names]
        federation = self.settings.federation
        put = (lambda client: at_hand(question(client))) if self.ended else question
        answers = await ask_all(clients, put, federation.timeout)
        need_quorum(answers, len(clients), federation.quorum)
        self.parties.go_on_without(answers.missing, answers.refused)
        return answers

    async def fit(
        self, prompt: Asked, kind: Kind, names: Collection[str] | None = None
    ) -> tuple[Verbalizer, FitReport]:
        """A verbalizer for a prompt, on the training texts of all clients or of those named."""
        fits = await self.ask(lambda client: client.fit(prompt, self.parties.groups), names)
        return await self.fitted(list(fits.got.values()), kind)

    async def fitted(self, fits: Sequence[Answering], kind: Kind) -> tuple[Verbalizer, FitReport]:
        """A verbalizer over these clients; one that fails, or whose numbers cannot be, is left out.

        Raises:
            QuorumError: Too few are left.
        """
        parties, missing = self.parties, dict[str, str]()
        left: list[Answering] = [AtHand(fit) for fit in fits] if self.ended else list(fits)
        while True:
            try:
                fitted = await fit_over_clients(left, parties.words, parties.groups, kind=kind)
            except FitError as error:
                if not error.client:
                    raise
                missing[error.client] = error.message
                left = [fit for fit in left if fit.name != error.client]
                answers = Answers({fit.name: fit for fit in left}, missing, hints={error.client: error.hint})
                need_quorum(answers, len(fits), self.settings.federation.quorum)
                parties.go_on([error.client])
                if error.refused:
                    parties.refuse(error.client, error.message)
                else:
                    parties.warnings.append(error.message)
                continue
            parties.count_bytes(fitted[1].bytes_up, fitted[1].bytes_down)
            return fitted
