"""Judging prompts: scored on all clients, verbalizer fitted over clients, held-out loss pooled."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.client import Client, Sums
from fedbpt_api.federation.runtime import Answers, ask_all, need_quorum
from fedbpt_api.prompts.space import Ids
from fedbpt_api.run.config import Settings
from fedbpt_api.run.events import Assessed, Event
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.testing import Contestant
from fedbpt_api.verbalizer import ClientFit, FitReport, Kind, Verbalizer, fit_over_clients

R = TypeVar("R")
START = "start"  # the origin of the user's own prompts
_SPREAD = 0.3  # typical standard deviation of two prompts' difference in loss on a text, in nats


@dataclass(frozen=True, slots=True)
class Assessment:
    """A prompt with its fitted verbalizer and what it reached on texts that the fit did not see.

    Attributes:
        ids: The prompt's token ids.
        text: The prompt.
        verbalizer: Fitted on the training texts of all clients.
        train_loss: Mean cross-entropy over training texts held out by cross-validation.
        loss: The same over training and development texts together: the number that chooses. For a prompt
            that was searched for on the training texts, they count as the search's centre did, or worse.
            Infinite where the training texts alone ruled the prompt out.
        dev: Sums over the development texts.
        by_client: The same for each client.
        clients: Who took part in the fit.
    """

    ids: Ids
    text: str
    verbalizer: Verbalizer
    train_loss: float
    loss: float
    dev: Sums
    by_client: Mapping[str, Sums]
    clients: tuple[str, ...]

    @property
    def scores(self) -> dict[str, float]:
        """What goes into the artefact."""
        scores = {"held_out_loss": self.loss}
        if self.dev.n:
            scores |= {"dev_loss": self.dev.mean_loss, "dev_accuracy": self.dev.accuracy}
        return scores


@dataclass
class Assessor:
    """Assesses each prompt once and remembers it.

    Args:
        parties: Who is asked.
        settings: The run's.
        tell: Where events go.
        known: What was assessed.
        centre: The prompt that is being searched around, once there is one.
    """

    parties: Parties
    settings: Settings
    tell: Callable[[Event], None]
    known: dict[Ids, Assessment] = field(default_factory=dict)
    centre: Assessment | None = None

    def best(self) -> Assessment:
        """The prompt with the smallest held-out loss; the earlier one where two are equal.

        Raises:
            FedbptError: Not one prompt could be assessed.
        """
        if not self.known:
            raise FedbptError(
                "the run was stopped, or its budget ended, before one prompt was judged",
                f"judging one costs {self.cost} scored examples; raise the budget",
            )
        return min(self.known.values(), key=lambda assessment: assessment.loss)

    async def assess(self, ids: Ids, origin: str) -> Assessment:
        """Score a prompt on all training and development texts and fit its verbalizer.

        Raises:
            BudgetSpent: It does not fit into the budget.
            QuorumError: Too few clients answered.
        """
        if ids in self.known:
            return self.known[ids]
        parties = self.parties
        fits = await self._fits(ids)
        verbalizer, report = await self._fit(list(fits.got.values()), self.settings.verbalizer.kind)
        train_loss = report.loss
        if train_loss is None:  # nothing was fitted, so nothing needs to be held out
            train = await self.ask(lambda c: c.evaluate(ids, verbalizer, "train"))
            train_loss = _total(train).mean_loss
        sums: Answers[Sums] = Answers()
        if origin == START or self._promising(train_loss, report.n):
            sums = await self.ask(lambda c: c.evaluate(ids, verbalizer))
        dev = _total(sums)
        counted = max(train_loss, self.centre.train_loss) if self.centre else train_loss
        assessment = Assessment(
            ids=ids,
            text=await parties.backend.detokenize(ids),
            verbalizer=verbalizer,
            train_loss=train_loss,
            loss=(report.n * counted + dev.loss) / (report.n + dev.n) if sums.got else math.inf,
            dev=dev,
            by_client=dict(sums.got),
            clients=tuple(sorted(fits.got)),
        )
        self.known[ids] = assessment
        chosen = self.best() is assessment
        a = assessment
        self.tell(Assessed(a.text, origin, train_loss, a.loss, dev.mean_loss, dev.accuracy, chosen))
        return assessment

    def _promising(self, train_loss: float, n: int) -> bool:
        """Whether development texts are worth their price: not clearly worse than the best on training."""
        return not self.known or train_loss < self.best().train_loss + _SPREAD / math.sqrt(n)

    async def refit(self, chosen: Assessment) -> Verbalizer:
        """The verbalizer for a prompt that has been chosen: development texts may train it now.

        No call is needed: their scores are paid for.
        """
        if not chosen.dev.n:
            return chosen.verbalizer
        paid = set(chosen.clients) & set(chosen.by_client)
        fits = await self.ask(lambda client: client.fit(chosen.ids, self.parties.groups, with_dev=True), paid)
        verbalizer, _ = await self._fit(list(fits.got.values()), self.settings.verbalizer.kind)
        return verbalizer

    async def contestants(self, tuned: Verbalizer) -> list[Contestant]:
        """Rows of the test: each compared prompt plain, with bias and weighted; then the tuned one.

        The tuned prompt's verbalizer saw development texts too; so that nobody takes that for the
        prompt's merit, the starting prompt has a row with the same advantage.

        """
        parties, settings = self.parties, self.settings
        words = Verbalizer.from_words(parties.words, parties.groups)
        rows: list[Contestant] = []
        compared = settings.prompts if settings.test.compare == "all" else settings.prompts[:1]
        for number, text in enumerate(compared, start=1):
            ids = await parties.backend.tokenize(text)
            if ids not in self.known:
                continue  # the budget ended before it was judged
            name = "start" if number == 1 else f"prompt {number}"
            judged = self.known[ids]
            fits = await self._fits(ids, judged.clients)
            bias, _ = await self._fit(list(fits.got.values()), "bias")
            rows += [
                Contestant(name, ids, words),
                Contestant(f"{name}+bias", ids, bias),
                Contestant(f"{name}+weighted", ids, judged.verbalizer),
            ]
            if number == 1 and judged.dev.n:
                rows.append(Contestant(f"{name}+weighted+dev", ids, await self.refit(judged)))
        return [*rows, Contestant("tuned", self.best().ids, tuned)]

    @property
    def cost(self) -> int:
        """Scored examples that judging one prompt takes at most."""
        return sum(client.n_train + client.n_dev for client in self.parties.clients)

    async def ask(
        self, question: Callable[[Client], Awaitable[R]], names: Collection[str] | None = None
    ) -> Answers[R]:
        """Put a question to all clients, or to those named; go on while a quorum answers."""
        clients = [c for c in self.parties.clients if names is None or c.name in names]
        federation = self.settings.federation
        answers = await ask_all(clients, question, federation.timeout)
        need_quorum(answers, len(clients), federation.quorum)
        return answers

    async def _fits(self, ids: Ids, names: Collection[str] | None = None) -> Answers[ClientFit]:
        """The clients' sides of a fit for a prompt."""
        return await self.ask(lambda client: client.fit(ids, self.parties.groups), names)

    async def _fit(self, fits: Sequence[ClientFit], kind: Kind) -> tuple[Verbalizer, FitReport]:
        parties = self.parties
        return await fit_over_clients(
            fits, parties.words, parties.groups, kind=kind, folds=self.settings.verbalizer.folds
        )


def _total(sums: Answers[Sums]) -> Sums:
    return sum((sums.got[name] for name in sorted(sums.got)), Sums())
