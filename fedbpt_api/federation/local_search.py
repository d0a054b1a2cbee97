"""A client's local search: FedBPT's step 2 (arXiv 2310.01467, section 3) on the client's own texts.

I generations of CMA-ES from the server's mean and step size; what is sent is the mean that it arrives at, the
loss there and the step sizes (step 3). Candidates are compared under the verbalizer of a reference prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedbpt_api.aggregate import Update
from fedbpt_api.federation.messages import Broadcast
from fedbpt_api.prompts.codebook import distinct_share
from fedbpt_api.prompts.space import AnyPrompt, Asked, Ids, PromptSpace
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.encode import EncodedSet, EncodedText
from fedbpt_api.scoring.losses import Labels, named
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.search import cma_es
from fedbpt_api.verbalizer import Verbalizer

_PURPOSE_SEARCH, _PURPOSE_BATCH, _PURPOSE_PERTURB = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How a client searches in a round; the same for every client.

    Attributes:
        population: Candidates of a generation, lambda.
        iterations: Generations, I.
        minibatch: Training texts a generation is scored on; all where None.
        loss: What is minimised, by its name in a config; see `scoring.losses.named`.
        margin: Of the hinge loss.
        perturb: Rate of equation 7; 0 is off.
        vocabulary: Token ids that may replace a text's (for equation 7).
    """

    population: int
    iterations: int
    minibatch: int | None
    loss: str = "cross-entropy"
    margin: float = 2.0
    perturb: float = 0.0
    vocabulary: Ids = ()

    def cost(self, texts: int, inputs: int) -> int:
        """Scored examples that a search takes at most: candidates, the mean, and the reference."""
        return self.fresh(texts, inputs) + (self.iterations + 1) * self._batch(texts) * inputs

    def fresh(self, texts: int, inputs: int) -> int:
        """The same for a client that has judged the reference, and will not be asked for its scores again."""
        sets = 2 if self.perturb else 1
        return sets * (self.population * self.iterations + 1) * self._batch(texts) * inputs

    def _batch(self, texts: int) -> int:
        return min(self.minibatch or texts, texts)


@dataclass(frozen=True, slots=True)
class Reference:
    """The prompt that the search's verbalizer was fitted for; candidates are compared with it."""

    prompt: Asked
    verbalizer: Verbalizer


@dataclass(frozen=True, slots=True)
class Searched:
    """What a local search gives: the update for the server, and facts for the progress display.

    Attributes:
        update: What travels.
        distinct: Share of distinct prompts among its candidates.
        spent: Whether the run's budget ended it.
        moved: Whether it finished a generation that it could learn from.
    """

    update: Update
    distinct: float
    spent: bool
    moved: bool


@dataclass(frozen=True, slots=True)
class LocalSearch:
    """One client's search in one round.

    Attributes:
        client: Its name.
        key: Of its random generators: run seed, round, client, and what only it knows.
        scorer: Scores its texts.
        train: They.
        plan: How it searches.
        reference: What candidates are compared with.
    """

    client: str
    key: tuple[int, ...]
    scorer: Scorer
    train: EncodedSet
    plan: Plan
    reference: Reference

    async def run(self, broadcast: Broadcast, space: PromptSpace) -> tuple[Searched, Floats]:
        """Search from the server's mean and step size.

        Ends early, with what it has, where the budget ends.

        Returns:
            What it gives, and z of its best candidate.

        Raises:
            BudgetSpent: The client's own budget ended before it finished one generation.
        """
        plan, key = self.plan, self.key
        state = cma_es.start(broadcast.mean, broadcast.sigma, (*key, _PURPOSE_SEARCH), plan.population)
        before = self.scorer.budget.spent.scored
        prompts: list[AnyPrompt] = []
        best, best_loss = np.array(broadcast.mean), np.inf
        spent: BudgetSpent | None = None
        perturbed = self._perturbed()
        for iteration in range(plan.iterations):
            batch = self._batch((*key, iteration))
            points = cma_es.ask(state)
            candidates = [space.decode(z) for z in points]
            prompts += candidates
            losses, spent = await self._generation(candidates, batch, perturbed)
            for z, loss in zip(points, losses, strict=False):
                if loss < best_loss:
                    best, best_loss = z, loss
            state = cma_es.tell(state, losses)
            if spent:
                break
        mean, _ = cma_es.center(state)
        loss = best_loss
        if not spent:
            batch = self._batch((*key, plan.iterations))
            losses, spent = await self._generation([space.decode(mean)], batch, perturbed)
            loss = losses[0] if losses else best_loss
        steps = cma_es.step_sizes(state)
        if spent and spent.own and not steps:
            raise spent
        update = Update(
            client=self.client,
            round=broadcast.round,
            mean=mean,
            loss=loss if np.isfinite(loss) else 1e6,
            step_sizes=steps or (broadcast.sigma,),
            population=plan.population,
            n=len(self.train),
            scored=self.scorer.budget.spent.scored - before,
        )
        ended = spent is not None and not spent.own
        return Searched(update, distinct_share(prompts), ended, bool(steps)), best

    async def _generation(
        self,
        candidates: Sequence[AnyPrompt],
        batch: Sequence[int],
        perturbed: tuple[EncodedText, ...] | None,
    ) -> tuple[list[float], BudgetSpent | None]:
        """Losses of candidates, scored side by side so that the server is kept busy.

        They take from the budget in their order: where it ends, the losses of those before are given.
        """
        try:
            anchor = await self._anchor(batch)
        except BudgetSpent as end:
            return [], end
        found = await asyncio.gather(
            *(self._loss(prompt, batch, perturbed, anchor) for prompt in candidates),
            return_exceptions=True,
        )
        losses: list[float] = []
        for loss in found:
            if isinstance(loss, BudgetSpent):
                return losses, loss
            if isinstance(loss, BaseException):
                raise loss
            losses.append(loss)
        return losses, None

    async def _anchor(self, batch: Sequence[int]) -> Floats | None:
        """Means of the reference prompt's views, shape [1 or 2, 1, T]; see `_losses`."""
        reference = self.reference
        if reference.verbalizer.kind == "words":
            return None
        texts = [self.train.texts[i] for i in batch]
        views = reference.verbalizer.views(*await self.scorer.scores(reference.prompt, texts))
        means: Floats = views.mean(axis=1, keepdims=True)
        return means

    async def _loss(
        self,
        prompt: AnyPrompt,
        batch: Sequence[int],
        perturbed: tuple[EncodedText, ...] | None,
        anchor: Floats | None,
    ) -> float:
        """The search's fitness of a prompt: mean loss, or FedBPT's equation 7 (mean of ratios)."""
        sets = [[self.train.texts[i] for i in batch]]
        if perturbed is not None:
            sets.append([perturbed[i] for i in batch])
        labels = self.train.labels[list(batch)]
        losses, *clouded = await asyncio.gather(
            *(self._losses(prompt, texts, labels, anchor) for texts in sets)
        )
        if not clouded:
            return float(losses.mean())
        return float((losses / np.maximum(clouded[0], 1e-6)).mean())

    async def _losses(
        self,
        prompt: AnyPrompt,
        texts: Sequence[EncodedText],
        labels: Labels,
        anchor: Floats | None,
    ) -> Floats:
        """Losses of texts under the reference's verbalizer, after moving their mean to the reference's.

        A prompt shifts all log-probabilities by about the same amount; the shift is what a refitted
        verbalizer would take out, so it is taken out here: rows - mean(rows) + mean(reference rows),
        of the words as the labels are read from them and as the weights see them.
        It also keeps a client with one label from being rewarded for a prompt that always says it.
        With label words alone nothing is refitted, and the plain loss stands.
        """
        verbalizer = self.reference.verbalizer
        views = verbalizer.views(*await self.scorer.scores(prompt, texts))
        if anchor is not None:
            views = views - views.mean(axis=1, keepdims=True) + anchor
        return named(self.plan.loss, self.plan.margin)(verbalizer.read(views), labels)

    def _batch(self, key: tuple[int, ...]) -> list[int]:
        """Training texts of a generation: the same for all its candidates, drawn anew each time."""
        size, n = self.plan.minibatch, len(self.train)
        if size is None or size >= n:
            return list(range(n))
        rng = np.random.default_rng((*key, _PURPOSE_BATCH))
        return sorted(int(i) for i in rng.choice(n, size, replace=False))

    def _perturbed(self) -> tuple[EncodedText, ...] | None:
        """Equation 7's garbled texts, redrawn every round."""
        plan = self.plan
        if not plan.perturb:
            return None
        rng = np.random.default_rng((*self.key, _PURPOSE_PERTURB))
        return tuple(t.perturbed(plan.perturb, plan.vocabulary, rng) for t in self.train.texts)
