"""Judging prompts: scored on all clients, verbalizer fitted over clients, held-out loss pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedbpt_api.federation.client import Sums
from fedbpt_api.federation.runtime import Answers, ask_all, need_quorum
from fedbpt_api.prompts.space import Ids
from fedbpt_api.run.config import Settings
from fedbpt_api.run.events import Assessed, Event
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.testing import Contestant
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.verbalizer import ClientFit, FitReport, Kind, Verbalizer, fit_over_clients


@dataclass(frozen=True, slots=True)
class Assessment:
    """A prompt with its fitted verbalizer and what it reached on texts that the fit did not see.

    Attributes:
        ids: The prompt's token ids.
        text: The prompt.
        verbalizer: Fitted on the training texts of all clients.
        loss: Mean held-out cross-entropy over training texts (by cross-validation) and development
            texts together: the number that chooses.
        dev: Sums over the development texts.
        by_client: The same for each client.
    """

    ids: Ids
    text: str
    verbalizer: Verbalizer
    loss: float
    dev: Sums
    by_client: Mapping[str, Sums]

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
    """

    parties: Parties
    settings: Settings
    tell: Callable[[Event], None]
    known: dict[Ids, Assessment] = field(default_factory=dict)

    def best(self) -> Assessment:
        """The prompt with the smallest held-out loss; the earlier one where two are equal.

        Raises:
            BudgetSpent: Not one prompt could be assessed.
        """
        if not self.known:
            raise BudgetSpent("scored examples")
        return min(self.known.values(), key=lambda assessment: assessment.loss)

    async def assess(self, ids: Ids, origin: str) -> Assessment:
        """Score a prompt on all training and development texts and fit its verbalizer.

        Raises:
            BudgetSpent: It does not fit into the budget.
            QuorumError: Too few clients answered.
        """
        if ids in self.known:
            return self.known[ids]
        parties, asked, quorum = self.parties, len(self.parties.clients), self.settings.federation.quorum
        fits = await ask_all(parties.clients, lambda c: c.fit(ids, parties.groups))
        need_quorum(fits, asked, quorum)
        verbalizer, report = await self._fit(list(fits.got.values()), self.settings.verbalizer.kind)
        sums: Answers[Sums] = await ask_all(parties.clients, lambda c: c.evaluate(ids, verbalizer))
        need_quorum(sums, asked, quorum)
        dev = sum((sums.got[name] for name in sorted(sums.got)), Sums())
        held_out = report.loss
        if held_out is None:  # nothing was fitted, so nothing needs to be held out
            train = await ask_all(parties.clients, lambda c: c.evaluate(ids, verbalizer, "train"))
            held_out = sum((train.got[name] for name in sorted(train.got)), Sums()).mean_loss
        assessment = Assessment(
            ids=ids,
            text=await parties.backend.detokenize(ids),
            verbalizer=verbalizer,
            loss=(report.n * held_out + dev.loss) / (report.n + dev.n),
            dev=dev,
            by_client=dict(sums.got),
        )
        self.known[ids] = assessment
        chosen = self.best() is assessment
        self.tell(Assessed(assessment.text, origin, assessment.loss, dev.mean_loss, dev.accuracy, chosen))
        return assessment

    async def contestants(self, start: Assessment, best: Assessment) -> list[Contestant]:
        """Rows (a) to (d) of the test: the verbalizers of (b), (c) and (d) saw the same texts."""
        parties = self.parties
        words = Verbalizer.from_words(parties.words, parties.groups)
        fits = [await client.fit(start.ids, parties.groups) for client in parties.clients]
        bias, _ = await self._fit(fits, "bias")
        return [
            Contestant("start", start.ids, words),
            Contestant("start+bias", start.ids, bias),
            Contestant("start+weighted", start.ids, start.verbalizer),
            Contestant("tuned", best.ids, best.verbalizer),
        ]

    async def _fit(self, fits: Sequence[ClientFit], kind: Kind) -> tuple[Verbalizer, FitReport]:
        parties = self.parties
        return await fit_over_clients(
            fits, parties.words, parties.groups, kind=kind, folds=self.settings.verbalizer.folds
        )
