"""The Scorer: de-duplication, budget and batching between one client and its backend.

A pair (prompt, text) with the same question is paid for once in a run. A request that was sent
belongs to the scorer, not to the task that asked for it: when that task is cancelled, the request
goes on in the background, and its answer is kept and counted when it comes.

A log-probability that the server could only bound is kept with its sign turned: what is above 0 is a
bound. So one array holds both, in memory and in the journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedbpt_api.errors import BackendError, RunFolderError
from fedbpt_api.scoring.backend import Backend, Bools, Floats, PartlyAnswered, Prompt, Usage
from fedbpt_api.scoring.budget import Budget, BudgetSpent
from fedbpt_api.scoring.encode import AnyPrompt, Asked, EncodedText, Ensemble, Ids
from fedbpt_api.scoring.journal import Journal, as_rows
from fedbpt_api.scoring.known import Block, Known, Question, Rows, asked_key
from fedbpt_api.scoring.store import Shelf

Ask = Callable[[Sequence[Prompt]], Awaitable[tuple[Rows, Usage]]]
Pair = tuple[bytes, int]  # which question about which prompt, and the text's number


class Stopped(Exception):
    """The user asked the run to stop; what had been sent was received first."""


class Scorer:
    """Scores prompts on one client's texts.

    Args:
        backend: Who answers.
        budget: What may be spent; counted here.
        stopping: Asked before each request; True makes the scorer raise `Stopped`.
        journal: Where answers are kept before they are used; nowhere without one.
        shelf: Answers that other runs have paid for, where the shared store is used.
        test: Whether its answers are the test's, and are kept as such.
    """

    def __init__(
        self,
        backend: Backend,
        budget: Budget,
        stopping: Callable[[], bool] = lambda: False,
        journal: Journal | None = None,
        shelf: Shelf | None = None,
        *,
        test: bool = False,
    ) -> None:
        self.backend = backend
        self.budget = budget
        self.words: Ids = ()
        self.journal = journal
        self.shelf = shelf
        self._stopping = stopping
        self._test = test
        self._known = Known()
        self._sent: dict[Pair, asyncio.Task[None]] = {}
        self._claims: dict[Pair, asyncio.Future[None]] = {}  # who is about to ask for a pair
        self._since: dict[asyncio.Task[None], float] = {}  # when each request was sent
        self._places = asyncio.Semaphore(backend.info.parallel)
        self._turn = asyncio.Lock()  # a prompt's requests are sent one after another, before the next one's

    def beside(self, budget: Budget) -> Scorer:
        """Another scorer of the same server, journal and words, for the test, whose cost `budget` counts."""
        scorer = Scorer(self.backend, budget, self._stopping, self.journal, self.shelf, test=True)
        scorer.use_words(self.words)
        return scorer

    def use_words(self, words: Ids) -> None:
        """Ask for these T tokens from now on, label words first."""
        self.words = words

    @property
    def waiting(self) -> float:
        """Seconds that the oldest unanswered request has been under way."""
        return time.monotonic() - min(self._since.values()) if self._since else 0.0

    async def score(self, prompt: Asked, texts: Sequence[EncodedText]) -> Floats:
        """Log-probabilities [n, T] of the named words, normalised over them, for each text.

        Raises:
            BudgetSpent: What is missing does not fit into the budget; nothing of it was sent.
            Stopped: The user asked to stop.
            BackendError: The backend cannot answer.
        """
        return (await self.scores(prompt, texts))[0]

    async def scores(
        self, prompt: Asked, texts: Sequence[EncodedText], repeat: int = 0, words: Ids = ()
    ) -> tuple[Floats, Bools]:
        """Log-probabilities as from `score`, and where they are exact and no bounds: shape [n, T] each.

        Args:
            prompt: The prompt; of joined ones the mean.
            texts: The texts.
            repeat: Another number is another question, so that a noisy server can be asked again.
            words: Other words than those that are used.
        """
        if isinstance(prompt, Ensemble):
            found = [await self.scores(member, texts, repeat, words) for member in prompt.members]
            return np.mean([rows for rows, _ in found], axis=0), np.all([exact for _, exact in found], axis=0)
        words = words or self.words

        async def ask(prompts: Sequence[Prompt]) -> tuple[Rows, Usage]:
            scores = await self.backend.score(prompts, words)
            if not np.isfinite(scores.logprobs).all():
                raise BackendError(
                    f"{self.backend.info.model} returned log-probabilities that are not finite",
                    "is the server healthy?",
                )
            return np.where(scores.exact, scores.logprobs, -scores.logprobs).astype(np.float32), scores.usage

        question: Question = ("words", words) if not repeat else (f"words, repeat {repeat}", words)
        shelf = None if repeat else self.shelf  # a second look is there to be new
        rows = await self._answers(question, prompt, texts, ask, shelf)
        values = np.asarray(rows, dtype=np.float64).reshape(len(texts), len(words))
        return -np.abs(values), values <= 0.0

    async def top_words(
        self, prompt: AnyPrompt, texts: Sequence[EncodedText], k: int
    ) -> list[dict[int, float]]:
        """The k most probable next tokens of each text; each text is one scored example."""

        async def ask(prompts: Sequence[Prompt]) -> tuple[Rows, Usage]:
            lists, usage = await self.backend.top_words(prompts, k)
            rows = np.empty(len(lists), dtype=object)
            rows[:] = lists
            return rows, usage

        return list(await self._answers(("top", k), prompt, texts, ask, self.shelf))

    async def aclose(self) -> None:
        """Give up on requests that are still under way."""
        tasks = set(self._sent.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answers(
        self,
        question: Question,
        prompt: AnyPrompt,
        texts: Sequence[EncodedText],
        ask: Ask,
        shelf: Shelf | None,
    ) -> Rows:
        """Answers in the order of `texts`; what is not known yet is asked for, in calls of a good size."""
        if not texts:
            return np.empty(0, dtype=np.float32)
        asked = asked_key(question, prompt)
        block = self._known.block(asked)
        numbers = [self._known.number(text) for text in texts]
        words = question[1]
        single = isinstance(words, int) or min(words, default=0) >= 0  # a list, or no words that begin alike
        inputs = (0,) if single else self.backend.info.inputs
        call = _Call(question, asked, prompt, dict(zip(numbers, texts, strict=True)), inputs, ask, shelf)
        own = 0
        while lacking := block.lacks(list(call.texts)):
            new = [n for n in lacking if (asked, n) not in self._sent and (asked, n) not in self._claims]
            if new:
                own += len(new)
                await self._ask(call, block, new)
                continue
            for n in lacking:  # somebody else is asking for them
                if (asked, n) in self._sent:
                    await asyncio.shield(self._sent[asked, n])
                elif (asked, n) in self._claims:
                    await asyncio.shield(self._claims[asked, n])
        self.budget.count_duplicates(len(texts) - own)
        return block.of(numbers)

    async def _ask(self, call: _Call, block: Block, numbers: Sequence[int]) -> None:
        """Get answers that nobody has and nobody is asking for into `block`."""
        if self.journal is not None and self.journal.counted:  # what is there needs no budget
            known = self._recall(call, block, numbers)
            if not (numbers := [n for n in numbers if n not in known]):
                return
        reserved = call.work(numbers)
        self.budget.reserve(reserved)
        claim: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._claims |= dict.fromkeys(((call.asked, n) for n in numbers), claim)
        size, tasks = self.backend.info.batch, list[asyncio.Task[None]]()
        try:
            await asyncio.sleep(0)  # those who ask at the same time set aside before anything is settled
            recalled = self._recall(call, block, numbers)
            reserved -= call.work(list(recalled))
            if new := [n for n in numbers if n not in recalled]:
                self._go_on()
                stored = self._from_shelf(call, block, new)
                new = [n for n in new if n not in stored]
                reserved -= call.work(list(stored))
            if new:
                async with self._turn:
                    for begin in range(0, len(new), size):
                        chunk = new[begin : begin + size]
                        await self._place()
                        if any(task.done() and task.exception() for task in tasks):
                            self._places.release()
                            break  # it is raised below
                        reserved -= call.work(chunk)  # from here on the request's own affair
                        tasks.append(self._send(call, chunk))
        except (Stopped, RunFolderError):
            await asyncio.gather(*map(asyncio.shield, tasks), return_exceptions=True)
            raise  # with what was sent received
        finally:
            for n in numbers:
                del self._claims[call.asked, n]
            claim.set_result(None)
            self.budget.settle(reserved, Usage())
        await asyncio.gather(*map(asyncio.shield, tasks), return_exceptions=True)
        for task in tasks:
            task.result()

    def _recall(self, call: _Call, block: Block, numbers: Sequence[int]) -> frozenset[int]:
        """Those of `numbers` that an earlier session has the answers to: they are put into `block`."""
        if self.journal is None or not numbers or not len(past := self.journal.past):
            return frozenset()
        keys = [self.journal.key(call.asked, call.texts[n]) for n in numbers]
        found = past.find(keys, test=self._test)
        pairs = {n: pair for n, pair in zip(numbers, found, strict=True) if pair is not None}
        if pairs:
            places = list(pairs.values())
            block.add(list(pairs), past.rows(places))
            if self.journal.counted:
                self.budget.count_duplicates(len(pairs))
                return frozenset(pairs)
            self.budget.recall(call.work(list(pairs)), past.usage(places), past.when(places))
            self.budget.count_stored(past.free(places))
        return frozenset(pairs)

    def _from_shelf(self, call: _Call, block: Block, numbers: Sequence[int]) -> frozenset[int]:
        """Those of `numbers` that another run has paid for: they are put into the journal and `block`.

        Raises:
            Stopped: The user asked to stop.
            RunFolderError: The disk is full.
        """
        if call.shelf is None:
            return frozenset()
        if self._stopping():
            raise Stopped
        answers = call.shelf.find([call.key(n) for n in numbers])
        found = {n: answer for n, answer in zip(numbers, answers, strict=True) if answer is not None}
        if found:
            rows = as_rows(list(found.values()))
            if self.journal is not None:
                self.journal.make_room()
            work = call.work(list(found))
            used = work if call.shelf.charged else Usage()
            self._keep([(call.asked, call.texts[n]) for n in found], rows, used)
            block.add(list(found), rows)
            self.budget.settle(work, used)
            self.budget.count_stored(len(found) if used == Usage() else 0)
        return frozenset(found)

    def _go_on(self) -> None:
        """Something is asked that no earlier session has the answer to.

        Raises:
            BudgetSpent, Stopped: In a replay, where the run that is replayed ended.
        """
        if self.journal is not None:
            ended, limits = self.journal.ended, self.budget.limits
            if isinstance(ended, BudgetSpent) and (limits.seconds, limits.money) != (None, None):
                raise BudgetSpent(ended.cap, own=True)
            if ended is not None:
                raise ended
            self.budget.go(self.journal.past.seconds)

    async def _place(self) -> None:
        """Wait until another request may be sent, and its answer can be kept.

        Raises:
            Stopped: The user asked to stop.
            RunFolderError: The disk is full.
        """
        if self._stopping():
            raise Stopped
        await self._places.acquire()
        try:
            if self._stopping():
                raise Stopped
            if self.journal is not None:
                self.journal.make_room()
        except BaseException:
            self._places.release()
            raise

    def _send(self, call: _Call, numbers: Sequence[int]) -> asyncio.Task[None]:
        """Start one request; what was set aside for it is settled when it ends, however it ends."""
        texts, work = [call.texts[n] for n in numbers], call.work(numbers)

        async def request() -> None:
            used = Usage()
            try:
                rows, used = await call.ask([text.with_prompt(call.prompt) for text in texts])
                if len(rows) != len(texts):
                    raise BackendError(f"{self.backend.info.model} sent {len(rows)} answers to {len(texts)}")
                self._keep([(call.asked, text) for text in texts], rows, used)
                self._known.block(call.asked).add(numbers, rows)
                if call.shelf is not None:
                    call.shelf.keep([call.key(n) for n in numbers], rows)
            except PartlyAnswered as failed:
                used = failed.usage
                self._keep([], np.empty(0), used)
                raise
            finally:
                self._places.release()
                self.budget.settle(work, used)
                for number in numbers:
                    del self._sent[call.asked, number]

        task = asyncio.create_task(request())
        self._since[task] = time.monotonic()
        task.add_done_callback(self._ended)
        self._sent |= dict.fromkeys(((call.asked, number) for number in numbers), task)
        return task

    def _keep(self, pairs: Sequence[tuple[bytes, EncodedText]], rows: Rows, used: Usage) -> None:
        """Write an answer down before it is used."""
        if self.journal is not None:
            keys = [self.journal.key(asked, text) for asked, text in pairs]
            self.journal.append(keys, rows, used, self.budget.seconds, test=self._test)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A failure is raised where it is awaited; where nobody waits any more, it is not an event."""
        del self._since[task]
        if not task.cancelled():
            task.exception()


@dataclass(frozen=True, slots=True)
class _Call:
    """A question about a prompt and some texts.

    Attributes:
        question: What is asked.
        asked: The key of question and prompt.
        prompt: The prompt.
        texts: The texts by their numbers.
        inputs: What each text takes (`BackendInfo.inputs`).
        ask: Puts the question to the backend.
        shelf: Where its answers may be found, and are kept, for other runs.
    """

    question: Question
    asked: bytes
    prompt: AnyPrompt
    texts: Mapping[int, EncodedText]
    inputs: Sequence[int]
    ask: Ask
    shelf: Shelf | None

    def key(self, number: int) -> bytes:
        """A text's key on the shelf."""
        assert self.shelf is not None
        text = self.texts[number]
        return self.shelf.key(self.question, text.with_prompt(self.prompt), text.part)

    def work(self, numbers: Sequence[int]) -> Usage:
        """What asking for these texts takes at most."""
        n, k = len(numbers), len(self.inputs)
        tokens = sum(len(self.texts[i]) for i in numbers) + len(self.prompt) * n
        return Usage(n * k, tokens * k + n * sum(self.inputs), 0, n * k)
