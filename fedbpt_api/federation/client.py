"""One party: its private texts, its scorer, and what it answers. Only numbers over many texts leave it.

What is sent: how much words vary over its texts, the messages of the verbalizer's fit, an `Update` after
a local search, for a prompt the sum of losses and the number of correct texts, and lines that the model
wrote without seeing a text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from fedbpt_api.errors import BackendError, FedbptError, QuotaError
from fedbpt_api.federation.local_search import LocalSearch, Plan, Reference, Searched
from fedbpt_api.federation.messages import Broadcast
from fedbpt_api.federation.noise import bounded, clipped
from fedbpt_api.federation.tally import Contestant, Ints, Sums, Tally
from fedbpt_api.prompts.space import AnyPrompt, Asked, Ids, PromptSpace, members_of
from fedbpt_api.prompts.written import CHOICES, SHORTEST, Job, Line, in_turn, write_line
from fedbpt_api.scoring.backend import BackendInfo, Bools, Floats
from fedbpt_api.scoring.budget import Budget, BudgetSpent
from fedbpt_api.scoring.encode import EMPTY, EncodedSet, EncodedText, longest
from fedbpt_api.scoring.losses import cross_entropy
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.verbalizer import ClientFit, Reading, Verbalizer, deviations, ranked, word_sums
from fedbpt_api.verbalizer.committee import joint_losses, label_logits
from fedbpt_api.verbalizer.verbalizer import label_logprobs, normalised

_TOP = 2000  # words of a text's list, from which the word list is chosen


class Client:
    """A party with its texts as token ids.

    Args:
        name: Its name.
        key: Its number, part of the key of its random generators.
        seed: The run's seed.
        scorer: Its scorer, with its own budget.
        train: Training texts.
        dev: Development texts; may be empty.
        test: Test texts; may be empty.
    """

    def __init__(
        self,
        name: str,
        key: int,
        seed: int,
        scorer: Scorer,
        train: EncodedSet,
        dev: EncodedSet,
        test: EncodedSet = EMPTY,
    ) -> None:
        self.name = name
        self.scorer = scorer
        self._key = key
        self._seed = seed
        self._train = train
        self._dev = dev
        self._test = test
        self.draws: tuple[int, ...] = ()
        """More of the key of its searches' generators, that only it knows (`draws.own_draws`)."""
        self._best: Floats | None = None
        self.tested: Budget | None = None
        """What the test took; None before it."""
        self._read: dict[Asked, tuple[Verbalizer, Floats]] = {}  # logits of held-out texts

    @property
    def budget(self) -> Budget:
        """What its questions, the test's apart, may cost and have cost."""
        return self.scorer.budget

    @property
    def info(self) -> BackendInfo:
        """What its server is."""
        return self.scorer.backend.info

    @property
    def waiting(self) -> float:
        """Seconds that its oldest unanswered request has been under way."""
        return self.scorer.waiting

    def use_words(self, words: Ids) -> None:
        """Ask for these T tokens from now on, label words first."""
        self.scorer.use_words(words)

    async def aclose(self) -> None:
        """Give up on what is under way."""
        await self.scorer.aclose()

    @property
    def parts(self) -> tuple[EncodedSet, EncodedSet, EncodedSet]:
        """Its training, development and test texts."""
        return self._train, self._dev, self._test

    @property
    def n_train(self) -> int:
        return len(self._train)

    @property
    def label_counts(self) -> Ints:
        """Training texts of each label, up to the last that it has; shape [C] or shorter."""
        return np.bincount(self._train.labels).astype(np.int64)

    @property
    def n_dev(self) -> int:
        return len(self._dev)

    @property
    def n_test(self) -> int:
        return len(self._test)

    def search_cost(self, plan: Plan) -> int:
        """Scored examples that a local search takes at most."""
        return plan.cost(self.n_train, len(self.info.inputs))

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
        """Tokens of its longest input without its prompt."""
        return longest([self._train.texts, self._dev.texts, self._test.texts])

    def moved(self) -> Client:
        """The same client with the prompt's place right behind its texts."""
        return self._with(self._train.moved(), self._dev.moved(), self._test.moved())

    def withheld(self) -> tuple[Client, range]:
        """The same client where training texts are shown to others: it judges by texts that are not.

        Returns:
            The client, whose training texts are its development texts or, without any, every second one of
            its training texts; and the places of the training texts that may be shown.
        """
        shown = range(0, self.n_train, 1 if self.n_dev else 2)
        judged = self._dev if self.n_dev else self._train.taken(range(1, self.n_train, 2))
        return self._with(judged, EMPTY, self._test), shown

    def _with(self, train: EncodedSet, dev: EncodedSet, test: EncodedSet) -> Client:
        client = Client(self.name, self._key, self._seed, self.scorer, train, dev, test)
        client.draws = self.draws
        return client

    async def word_sums(self, prompt: Ids, words: Ids = (), named: int = 0) -> tuple[tuple[int, float], ...]:
        """At most 500 (token, sum of squared deviations) pairs over the training texts.

        Args:
            prompt: The prompt that they follow.
            words: Label words; those that are tokens are asked for beside all others.
            named: So many words, those that vary most by the lists, are asked for by name, and the sums
                are of what these answers say; 0: by the lists alone.
        """
        texts = self._train.texts
        pairs = word_sums(await self.scorer.top_words(prompt, texts, _TOP))
        likely = [token for token, _ in pairs if token not in words][:named]
        beside = tuple(word for word in words if word >= 0)  # others would take more inputs
        size, sums = self.info.max_words - len(beside), list[float]()
        for begin in range(0, len(likely), size):
            asked = (*beside, *likely[begin : begin + size])
            rows, _ = await self.scorer.scores(prompt, texts, words=asked)
            sums += deviations(rows[:, len(beside) :]).tolist()
        return ranked(likely, sums) if likely else pairs

    async def write(self, jobs: Sequence[Job], judge: Reference) -> tuple[Line, ...]:
        """Lines written by the model, each read once by it with the judge's prompt and verbalizer.

        Nothing of this client's texts takes part. Fewer lines than jobs where the budget ends or the
        backend fails (it may not list words at all): those that are done are not lost.
        """
        lines: list[Line] = []
        try:
            for job in in_turn(jobs):
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
        return ClientFit(self.name, logprobs, labels, groups, exact=exact)

    async def label_sums(
        self, prompt: Asked, groups: Sequence[Sequence[int]], most: float = np.inf
    ) -> Floats:
        """Label log-probabilities, each text's centred and shortened to `most`, summed over training texts.

        Args:
            prompt: The prompt.
            groups: For each label the columns of its words.
            most: Largest length of a text's row, in nats.

        Returns:
            Shape [C].
        """
        logprobs, _ = await self.scorer.scores(prompt, self._train.texts)
        rows = label_logprobs(normalised(logprobs, logprobs.shape[1]), groups)
        return np.asarray(clipped(rows - rows.mean(axis=1, keepdims=True), most).sum(axis=0))

    async def evaluate(
        self,
        prompt: Asked,
        reading: Reading,
        part: Literal["train", "dev"] = "dev",
        repeat: int = 0,
        most: float = np.inf,
    ) -> Sums:
        """Sums of cross-entropy and correct answers over the development (or training) texts.

        Prompts that answer together are read as `label_logits` says. With another `repeat` the server is
        asked again, for those that do not answer the same twice; a text's loss counts for `most` nats at
        most.
        """
        texts = self._dev if part == "dev" else self._train
        if not len(texts):
            return Sums()
        found = [await self.scorer.scores(member, texts.texts, repeat) for member in members_of(prompt)]
        logits = label_logits(reading, found)
        losses = cross_entropy(logits, texts.labels)
        if most < np.inf:
            losses = bounded(losses, most)
        right = logits.argmax(axis=1) == texts.labels
        return Sums(len(texts), float(losses.sum()), int(right.sum()))

    async def test(
        self,
        contestants: Sequence[Contestant],
        common: int,
        progress: Callable[[int], None] = lambda answers: None,
        timeout: float | None = None,
    ) -> Tally:
        """Read the test texts, once, by every contestant; the cost is counted in `tested`.

        Args:
            contestants: Prompts and how they are read.
            common: The label of the row "majority".
            progress: Told of answers as they come.
            timeout: Seconds that a prompt may take.

        Raises:
            TimeoutError: A prompt took longer.
            BudgetSpent, Stopped, FedbptError: As from `Scorer.scores`.
        """
        self.tested = self.tested or Budget(price=self.scorer.budget.price)
        scorer = self.scorer.beside(self.tested)
        predictions: dict[str, Ints] = {}
        rows: dict[AnyPrompt, tuple[Floats, Bools]] = {}
        try:
            for prompt in dict.fromkeys(member for c in contestants for member in members_of(c.prompt)):
                async with asyncio.timeout(timeout):
                    rows[prompt] = await scorer.scores(prompt, self._test.texts)
                progress(len(self._test))
        finally:
            await scorer.aclose()
        for c in contestants:
            logits = label_logits(c.verbalizer, [rows[member] for member in members_of(c.prompt)])
            predictions[c.method] = logits.argmax(axis=1)
        predictions["majority"] = np.full(len(self._test), common)
        return Tally.of(self._test.labels, predictions, len(contestants[0].verbalizer.groups))

    async def joint_losses(
        self, judged: Sequence[tuple[Asked, Verbalizer]], sets: Sequence[Sequence[int]]
    ) -> Floats:
        """How well sets of prompts read texts together.

        Args:
            judged: P prompts with their verbalizers; nothing is scored anew.
            sets: Places in `judged`.

        Returns:
            For each set its loss summed over development texts (training texts where there are none),
            in nats; see `verbalizer.committee`.
        """
        held_out = self._dev if len(self._dev) else self._train
        for prompt, verbalizer in judged:
            if self._read.get(prompt, (None,))[0] != verbalizer:
                logits = verbalizer.logits(*await self.scorer.scores(prompt, held_out.texts))
                self._read[prompt] = (verbalizer, logits)
        rows = np.array([self._read[prompt][1] for prompt, _ in judged])
        return joint_losses(rows, held_out.labels, sets)

    async def search(
        self, broadcast: Broadcast, space: PromptSpace, plan: Plan, reference: Reference
    ) -> Searched:
        """A local search from the server's mean and step size; see `local_search`.

        Raises:
            BudgetSpent: The client's own budget ended before it finished one generation.
        """
        key = (self._seed, broadcast.round, self._key, *self.draws)
        search = LocalSearch(self.name, key, self.scorer, self._train, plan, reference)
        searched, best = await search.run(broadcast, space)
        self._best = best.astype(np.float32).astype(np.float64)
        return searched

    @property
    def searched(self) -> bool:
        """Whether it has something to propose."""
        return self._best is not None

    async def proposal(self) -> Floats:
        """z of the best candidate of its last search, as it travels: float32.

        Raises:
            FedbptError: It has not searched.
        """
        if self._best is None:
            raise FedbptError(f"{self.name} has not searched, so it has nothing to propose")
        return self._best
