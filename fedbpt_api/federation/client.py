"""One party: its private texts, its scorer, and what it answers. Only numbers over many texts leave it.

What is sent: how much words vary over its texts, the messages of the verbalizer's fit, an `Update` after
a local search, for a prompt the sum of losses and the number of correct texts, and lines that the model
wrote without seeing a text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedbpt_api.aggregate import Update
from fedbpt_api.errors import BackendError, QuotaError
from fedbpt_api.federation.messages import Broadcast
from fedbpt_api.prompts.codebook import distinct_share
from fedbpt_api.prompts.space import AnyPrompt, Asked, Ids, PromptSpace
from fedbpt_api.prompts.written import CHOICES, SHORTEST, Job, Line, write_line
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.encode import EncodedSet, EncodedText, longest
from fedbpt_api.scoring.losses import Labels, Loss
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.search import cma_es
from fedbpt_api.verbalizer import ClientFit, Verbalizer, word_sums

_TOP = 2000  # words of a text's list, from which the word list is chosen
_PURPOSE_SEARCH, _PURPOSE_BATCH, _PURPOSE_PERTURB = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How a client searches in a round; the same for every client.

    Attributes:
        population: Candidates of a generation, lambda.
        iterations: Generations, I.
        minibatch: Training texts a generation is scored on; all where None.
        loss: What is minimised.
        perturb: Rate of equation 7; 0 is off.
        vocabulary: Token ids that may replace a text's (for equation 7).
    """

    population: int
    iterations: int
    minibatch: int | None
    loss: Loss
    perturb: float = 0.0
    vocabulary: Ids = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """The prompt that the search's verbalizer was fitted for; candidates are compared with it."""

    prompt: Asked
    verbalizer: Verbalizer


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over a client's texts for one prompt."""

    n: int = 0
    loss: float = 0.0
    correct: int = 0

    @property
    def mean_loss(self) -> float:
        return self.loss / self.n if self.n else float("nan")

    @property
    def accuracy(self) -> float:
        return self.correct / self.n if self.n else float("nan")

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.n + other.n, self.loss + other.loss, self.correct + other.correct)


@dataclass(frozen=True, slots=True)
class Searched:
    """What a local search gives: the update for the server, and facts for the progress display.

    Attributes:
        update: What travels.
        best: z of its best candidate.
        distinct: Share of distinct prompts among its candidates.
        spent: Whether the run's budget ended it.
        moved: Whether it finished a generation that it could learn from.
    """

    update: Update
    best: Floats
    distinct: float
    spent: bool
    moved: bool


class Client:
    """A party with its texts as token ids.

    Args:
        name: Its name.
        key: Its number, part of the key of its random generators.
        seed: The run's seed.
        scorer: Its scorer, with its own budget.
        train: Training texts.
        dev: Development texts; may be empty.
    """

    def __init__(
        self, name: str, key: int, seed: int, scorer: Scorer, train: EncodedSet, dev: EncodedSet
    ) -> None:
        self.name = name
        self.scorer = scorer
        self._key = key
        self._seed = seed
        self._train = train
        self._dev = dev

    @property
    def n_train(self) -> int:
        return len(self._train)

    @property
    def n_dev(self) -> int:
        return len(self._dev)

    def search_cost(self, plan: Plan) -> int:
        """Scored examples that a local search takes at most: candidates, the mean, and the reference."""
        batch = min(plan.minibatch or self.n_train, self.n_train)
        sets = 2 if plan.perturb else 1
        prompts = sets * (plan.population * plan.iterations + 1) + plan.iterations + 1
        return prompts * batch * len(self.scorer.backend.info.inputs)

    @property
    def cost(self) -> int:
        """Scored examples that judging one prompt takes at most."""
        return (self.n_train + self.n_dev) * len(self.scorer.backend.info.inputs)

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """Tokens of each training text up to its end, the template's own included."""
        return tuple(text.text[-1] + 1 if text.text else 0 for text in self._train.texts)

    @property
    def example_first(self) -> bool:
        """Whether the texts stand before the prompt's place."""
        return any(text.example_first for text in self._train.texts)

    @property
    def lead(self) -> int:
        """Tokens that all its inputs share beside their prompt; see `EncodedText.lead`."""
        return max((text.lead for text in self._train.texts), default=0)

    @property
    def own_lengths(self) -> tuple[int, ...]:
        """Tokens of each training input that no other shares: from its text to its end."""
        return tuple(len(text) - self.lead for text in self._train.texts)

    def sample(self, n: int) -> tuple[EncodedText, ...]:
        """At most n training texts of different lengths, to measure a server's speed with."""
        texts = sorted(self._train.texts, key=len)
        places = np.linspace(0, len(texts) - 1, min(n, len(texts))).astype(int)
        return tuple(texts[place] for place in places)

    @property
    def longest(self) -> int:
        """Tokens of its longest training or development input without its prompt."""
        return longest([self._train.texts, self._dev.texts])

    def moved(self) -> Client:
        """The same client with the prompt's place right behind its texts."""
        train, dev = self._train.moved(), self._dev.moved()
        return Client(self.name, self._key, self._seed, self.scorer, train, dev)

    def withheld(self) -> tuple[Client, range]:
        """The same client where training texts are shown to others: it judges by texts that are not.

        Returns:
            The client, whose training texts are its development texts or, without any, every second one of
            its training texts; and the places of the training texts that may be shown.
        """
        shown = range(0, self.n_train, 1 if self.n_dev else 2)
        judged = self._dev if self.n_dev else self._train.taken(range(1, self.n_train, 2))
        return Client(self.name, self._key, self._seed, self.scorer, judged, self._train.taken(())), shown

    async def word_sums(self, prompt: Ids) -> tuple[tuple[int, float], ...]:
        """At most 500 (token, sum of squared deviations) pairs over the training texts."""
        return word_sums(await self.scorer.top_words(prompt, self._train.texts, _TOP))

    async def write(self, jobs: Sequence[Job], judge: Reference) -> tuple[Line, ...]:
        """Lines written by the model, each read once by it with the judge's prompt and verbalizer.

        Nothing of this client's texts takes part. Fewer lines than jobs where the budget ends or the
        backend fails (it may not list words at all): those that are done are not lost.
        """
        lines: list[Line] = []
        try:
            for job in jobs:
                line = await self._write_one(job, judge)
                if len(line.ids) >= SHORTEST:
                    lines.append(line)
        except QuotaError:
            raise
        except (BudgetSpent, BackendError):
            pass
        return tuple(lines)

    async def _write_one(self, job: Job, judge: Reference) -> Line:
        async def probable(ids: Ids) -> Mapping[int, float]:
            return (await self.scorer.top_words(job.lead, [EncodedText((), ids)], CHOICES))[0]

        backend = self.scorer.backend
        drawn = await write_line(probable, backend.detokenize, np.random.default_rng(job.seed))
        ids = await backend.tokenize(await backend.detokenize(drawn))
        read = [EncodedText((), job.before + ids + job.after)]
        shares = judge.verbalizer.probabilities(*await self.scorer.scores(judge.prompt, read))
        return Line(job.label, ids, float(np.log(shares[0, job.label])))

    async def fit(
        self, prompt: Asked, groups: Sequence[Sequence[int]], *, with_dev: bool = False
    ) -> ClientFit:
        """This client's side of a verbalizer's fit for `prompt`: answers messages, scores nothing more."""
        texts, labels = self._train.texts, self._train.labels
        if with_dev:
            texts, labels = texts + self._dev.texts, np.concatenate([labels, self._dev.labels])
        logprobs, exact = await self.scorer.scores(prompt, texts)
        return ClientFit(self.name, logprobs, labels, groups, seed=(self._seed, self._key), exact=exact)

    async def evaluate(
        self,
        prompt: Asked,
        verbalizer: Verbalizer,
        part: Literal["train", "dev"] = "dev",
        repeat: int = 0,
    ) -> Sums:
        """Sums of cross-entropy and correct answers over the development (or training) texts.

        With another `repeat` the server is asked again, for those that do not answer the same twice.
        """
        texts = self._dev if part == "dev" else self._train
        if not len(texts):
            return Sums()
        logprobs, exact = await self.scorer.scores(prompt, texts.texts, repeat)
        losses = verbalizer.losses(logprobs, texts.labels, exact)
        right = verbalizer.logits(logprobs, exact).argmax(axis=1) == texts.labels
        return Sums(len(texts), float(losses.sum()), int(right.sum()))

    async def search(
        self, broadcast: Broadcast, space: PromptSpace, plan: Plan, reference: Reference
    ) -> Searched:
        """A local search from the server's mean and step size (FedBPT, section 3, step 2).

        Ends early, with what it has, where the budget ends.

        Raises:
            BudgetSpent: The client's own budget ended before it finished one generation.
        """
        key = (self._seed, broadcast.round, self._key)
        state = cma_es.start(broadcast.mean, broadcast.sigma, (*key, _PURPOSE_SEARCH), plan.population)
        before = self.scorer.budget.spent.scored
        prompts: list[AnyPrompt] = []
        best, best_loss = np.array(broadcast.mean), np.inf
        spent: BudgetSpent | None = None
        perturbed = self._perturbed(plan, key)
        for iteration in range(plan.iterations):
            batch = self._batch(plan, (*key, iteration))
            points = cma_es.ask(state)
            candidates = [space.decode(z) for z in points]
            prompts += candidates
            losses, spent = await self._generation(candidates, batch, perturbed, plan, reference)
            for z, loss in zip(points, losses, strict=False):
                if loss < best_loss:
                    best, best_loss = z, loss
            state = cma_es.tell(state, losses)
            if spent:
                break
        mean, _ = cma_es.center(state)
        loss = best_loss
        if not spent:
            batch = self._batch(plan, (*key, plan.iterations))
            losses, spent = await self._generation([space.decode(mean)], batch, perturbed, plan, reference)
            loss = losses[0] if losses else best_loss
        steps = cma_es.step_sizes(state)
        if spent and spent.own and not steps:
            raise spent
        update = Update(
            client=self.name,
            round=broadcast.round,
            mean=mean,
            loss=loss if np.isfinite(loss) else 1e6,
            step_sizes=steps or (broadcast.sigma,),
            population=plan.population,
            n=self.n_train,
            scored=self.scorer.budget.spent.scored - before,
        )
        ended = spent is not None and not spent.own
        return Searched(update, best, distinct_share(prompts), ended, bool(steps))

    async def _generation(
        self,
        candidates: Sequence[AnyPrompt],
        batch: Sequence[int],
        perturbed: tuple[EncodedText, ...] | None,
        plan: Plan,
        reference: Reference,
    ) -> tuple[list[float], BudgetSpent | None]:
        """Losses of candidates, scored side by side so that the server is kept busy.

        They take from the budget in their order: where it ends, the losses of those before are given.
        """
        try:
            anchor = await self._anchor(batch, reference)
        except BudgetSpent as end:
            return [], end
        found = await asyncio.gather(
            *(self._loss(prompt, batch, perturbed, plan, reference, anchor) for prompt in candidates),
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

    async def _anchor(self, batch: Sequence[int], reference: Reference) -> Floats | None:
        """Means of the reference prompt's views, shape [1 or 2, 1, T]; see `_losses`."""
        if reference.verbalizer.kind == "words":
            return None
        texts = [self._train.texts[i] for i in batch]
        views = reference.verbalizer.views(*await self.scorer.scores(reference.prompt, texts))
        means: Floats = views.mean(axis=1, keepdims=True)
        return means

    async def _loss(
        self,
        prompt: AnyPrompt,
        batch: Sequence[int],
        perturbed: tuple[EncodedText, ...] | None,
        plan: Plan,
        reference: Reference,
        anchor: Floats | None,
    ) -> float:
        """The search's fitness of a prompt: mean loss, or FedBPT's equation 7 (mean of ratios)."""
        sets = [[self._train.texts[i] for i in batch]]
        if perturbed is not None:
            sets.append([perturbed[i] for i in batch])
        labels = self._train.labels[list(batch)]
        losses, *clouded = await asyncio.gather(
            *(self._losses(prompt, texts, labels, plan, reference, anchor) for texts in sets)
        )
        if not clouded:
            return float(losses.mean())
        return float((losses / np.maximum(clouded[0], 1e-6)).mean())

    async def _losses(
        self,
        prompt: AnyPrompt,
        texts: Sequence[EncodedText],
        labels: Labels,
        plan: Plan,
        reference: Reference,
        anchor: Floats | None,
    ) -> Floats:
        """Losses of texts under the reference's verbalizer, after moving their mean to the reference's.

        A prompt shifts all log-probabilities by about the same amount; the shift is what a refitted
        verbalizer would take out, so it is taken out here: rows - mean(rows) + mean(reference rows),
        of the words as the labels are read from them and as the weights see them.
        It also keeps a client with one label from being rewarded for a prompt that always says it.
        With label words alone nothing is refitted, and the plain loss stands.
        """
        views = reference.verbalizer.views(*await self.scorer.scores(prompt, texts))
        if anchor is not None:
            views = views - views.mean(axis=1, keepdims=True) + anchor
        return plan.loss(reference.verbalizer.read(views), labels)

    def _batch(self, plan: Plan, key: tuple[int, ...]) -> list[int]:
        """Training texts of a generation: the same for all its candidates, drawn anew each time."""
        if plan.minibatch is None or plan.minibatch >= self.n_train:
            return list(range(self.n_train))
        rng = np.random.default_rng((*key, _PURPOSE_BATCH))
        return sorted(int(i) for i in rng.choice(self.n_train, plan.minibatch, replace=False))

    def _perturbed(self, plan: Plan, key: tuple[int, ...]) -> tuple[EncodedText, ...] | None:
        """Equation 7's garbled texts, redrawn every round."""
        if not plan.perturb:
            return None
        rng = np.random.default_rng((*key, _PURPOSE_PERTURB))
        return tuple(t.perturbed(plan.perturb, plan.vocabulary, rng) for t in self._train.texts)
