"""A party behind a network, as the server sees it: what it is asked, and what it may answer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import orjson

from fedbpt_api.errors import FedbptError
from fedbpt_api.fanning import side_by_side
from fedbpt_api.federation import plain
from fedbpt_api.federation.account import Account
from fedbpt_api.federation.channel import Channel, introduced
from fedbpt_api.federation.envelope import Envelope, seal
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.facts import Facts
from fedbpt_api.federation.forgotten import patiently
from fedbpt_api.federation.local_search import Plan, Reference, Searched
from fedbpt_api.federation.messages import Broadcast, MessageError, decode_update, encode_broadcast
from fedbpt_api.federation.remote_fit import RemoteFit
from fedbpt_api.federation.tally import Contestant, Ints, Sums, Tally
from fedbpt_api.prompts.space import Asked, Ids, PromptSpace, members_of
from fedbpt_api.prompts.written import LONGEST, Job, Line
from fedbpt_api.scoring.backend import BackendInfo, Floats
from fedbpt_api.scoring.budget import Budget, Limits
from fedbpt_api.verbalizer import FitError, Reading, Verbalizer, encode
from fedbpt_api.verbalizer.checks import sums_problem
from fedbpt_api.verbalizer.messages import AskMoments
from fedbpt_api.verbalizer.words import MAX_PAIRS, questions

_GREETINGS = 2  # how often a party is told its task: a message is lost with the process that had it
_Rounds = tuple[PromptSpace, Plan, Reference]
_AGAIN = 10  # times as many tokens as were written a line may have, tokenised again
_VARIES = 1e4  # largest squared deviation of a log-probability
_AWAY = 1e4  # nats that a text may lose at the most
_PLAIN, _SCATTER = (encode(AskMoments(scatter)) for scatter in (False, True))  # what fits begin with


@dataclass
class RemoteParty:
    """A `Party` that is asked by envelopes.

    Attributes:
        channel: The way to it, and what it says of itself.
        deadline: Seconds that it has for an answer within a fit; whoever asks else keeps the time.
        noisy: Whether its answers have noise.
    """

    channel: Channel
    deadline: float | None = None
    noisy: bool = False
    most_pairs: ClassVar[int] = MAX_PAIRS  # words of a party's sums
    whole: ClassVar[bool] = False  # whether a question that the budget cannot pay in full is not put
    _last: tuple[Broadcast, _Rounds] | None = None  # its last search
    _fits: Counter[str] = field(default_factory=Counter)

    @classmethod
    async def reach(
        cls,
        exchange: Exchange,
        run: Budget,
        task: bytes | None = None,
        deadline: float | None = None,
        name: str = "",
    ) -> Self:
        """Tell a party its task, and ask it what it is.

        Args:
            exchange: How envelopes reach it.
            run: The run's budget.
            task: The envelope that tells the task (`federation.host`); None where it knows.
            deadline: Seconds that it has for an answer now, and within a fit.
            name: What it is called, where that is known.

        Raises:
            FedbptError: It does not answer in time, or something else; it cannot take
                part, or has another name.
        """
        introduction = task or seal(Envelope("facts", {}))
        try:
            facts = await _met(exchange, introduction, deadline)
        except TimeoutError:
            raise FedbptError(
                f"{name or 'a party'}: no answer within {deadline:g} s, {_GREETINGS} times",
                "see to it, then start again",
            ) from None
        except FedbptError as error:
            raise FedbptError(f"{name}: {error.message}" if name else error.message, error.hint) from error
        if name and facts.name != name:
            raise FedbptError(f"{name} calls itself {facts.name} now")
        account = Account(facts.name, Budget(Limits(scored=facts.limit), run))
        return cls(Channel(facts, exchange, account, introduction, cls.whole), deadline)

    @property
    def facts(self) -> Facts:
        return self.channel.facts

    @property
    def name(self) -> str:
        return self.facts.name

    @name.setter
    def name(self, value: str) -> None:
        raise AttributeError("a party's name is its own")

    @property
    def budget(self) -> Budget:
        return self.channel.account.budget

    @property
    def tested(self) -> Budget | None:
        return self.channel.account.tested

    @tested.setter
    def tested(self, value: Budget | None) -> None:
        raise AttributeError("what a party's test cost is what it tells")

    @property
    def info(self) -> BackendInfo:
        return self.facts.info

    @property
    def n_train(self) -> int:
        return self.facts.train

    @property
    def label_counts(self) -> Ints:
        return np.array(self.facts.labels, dtype=np.int64)

    @property
    def n_dev(self) -> int:
        return self.facts.dev

    @property
    def n_test(self) -> int:
        return self.facts.test

    @property
    def waiting(self) -> float:
        return 0.0

    @property
    def cost(self) -> int:
        return (self.n_train + self.n_dev) * len(self.info.inputs)

    def search_cost(self, plan: Plan) -> int:
        return plan.cost(self.n_train, len(self.info.inputs))

    def use_words(self, words: Ids) -> None:
        self.channel.words = words

    async def word_sums(self, prompt: Ids, words: Ids = (), named: int = 0) -> tuple[tuple[int, float], ...]:
        fields = {"prompt": list(prompt), "words": list(words), "named": named}
        need = self.n_train * (1 + (questions(named, len(words), self.info.max_words) if named else 0))
        answer = await self.channel.ask("word sums", fields, need)
        return plain.to_pairs(answer.fields.get("pairs"), self.most_pairs, _VARIES * max(self.n_train, 1))

    async def write(self, jobs: Sequence[Job], judge: Reference) -> tuple[Line, ...]:
        fields = {"jobs": [plain.of_job(job) for job in jobs], "judge": plain.of_reference(judge)}
        answer = await self.channel.ask("write", fields, len(jobs) * (LONGEST + len(self.info.inputs)))
        lines = plain.to_lines(answer.fields.get("lines"), len(jobs))
        if not {line.label for line in lines} <= {job.label for job in jobs}:
            raise MessageError(f"{self.name} has written lines for labels that it was not asked for")
        if any(line.confidence > 0 for line in lines):
            raise MessageError(f"{self.name} has lines whose label is more than certain")
        if any(len(line.ids) > _AGAIN * LONGEST for line in lines):
            raise MessageError(f"{self.name} has written lines of more than {_AGAIN * LONGEST} tokens")
        return lines

    async def fit(
        self, prompt: Asked, groups: Sequence[Sequence[int]], *, with_dev: bool = False
    ) -> RemoteFit:
        told = {
            "prompt": plain.of_prompt(prompt),
            "groups": [list(group) for group in groups],
            "with_dev": with_dev,
        }
        # A server that is started again gives a fit the name that it had, whatever else is under way.
        content = hashlib.blake2b(orjson.dumps([told, self.channel.words]), digest_size=8).hexdigest()
        self._fits[content] += 1
        fields = {"fit": f"{content}-{self._fits[content]}", **told}
        return RemoteFit(self, fields, await self.begin_fit(fields))

    async def begin_fit(self, fields: dict[str, Any]) -> dict[bytes, bytes]:
        """Begin a fit, or one that the party has forgotten; what was scored costs nothing again.

        Returns:
            Answers to the messages that a fit may begin with, by message.
        """
        need = self._inputs(self.n_train + self.n_dev * bool(fields["with_dev"]))
        async with asyncio.timeout(self.deadline):
            answer = await self.channel.ask("fit", fields, need)
        length = plain.to_length(answer.fields.get("plain"), len(answer.body))
        return {_PLAIN: answer.body[:length], _SCATTER: answer.body[length:]}

    async def label_sums(self, prompt: Asked, groups: Sequence[Sequence[int]]) -> Floats:
        told = {"prompt": plain.of_prompt(prompt), "groups": [list(group) for group in groups]}
        answer = await self.channel.ask("label sums", told, self._inputs(self.n_train))
        found = plain.to_floats(answer.fields.get("sums"))
        if found.shape != (len(groups),):
            raise MessageError(f"{self.name} does not give a sum for each of {len(groups)} labels")
        return found

    async def evaluate(
        self, prompt: Asked, reading: Reading, part: Literal["train", "dev"] = "dev", repeat: int = 0
    ) -> Sums:
        n = self.n_dev if part == "dev" else self.n_train
        fields = {
            "prompt": plain.of_prompt(prompt),
            "verbalizer": reading.to_dict(),
            "part": part,
            "repeat": repeat,
        }
        sums = plain.to_sums((await self.channel.ask("evaluate", fields, self._inputs(n))).fields)
        if sums.n != n:
            raise MessageError(f"{self.name} has {n} such texts, but tells of {sums.n}")
        if (sums.correct is None) != self.noisy:
            raise MessageError(f"{self.name} tells {'more' if self.noisy else 'less'} than it was asked for")
        # With noise a loss may be anything.
        if sums.correct is not None and (problem := sums_problem(reading, n, sums.loss, sums.correct)):
            raise MessageError(f"{self.name} tells of losses that cannot be: {problem}")
        return sums

    async def joint_losses(
        self, judged: Sequence[tuple[Asked, Verbalizer]], sets: Sequence[Sequence[int]]
    ) -> Floats:
        fields = {
            "judged": [[plain.of_prompt(prompt), verbalizer.to_dict()] for prompt, verbalizer in judged],
            "sets": [list(places) for places in sets],
        }
        found = plain.to_floats((await self.channel.ask("joint losses", fields)).fields.get("losses"))
        most = _AWAY * (self.n_train + self.n_dev)
        if found.shape != (len(sets),) or (found < 0).any() or (found > most).any():
            raise MessageError(f"{self.name} does not give a loss for each of {len(sets)} sets")
        return found

    async def search(
        self, broadcast: Broadcast, space: PromptSpace, plan: Plan, reference: Reference
    ) -> Searched:
        rounds = (space, plan, reference)
        answer = await patiently(lambda: self._search(broadcast, rounds))
        self._last = (broadcast, rounds)
        update = decode_update(answer.body)
        if (update.client, update.n) != (self.name, self.n_train):
            raise MessageError(f"{self.name} has sent the update of {update.client} with {update.n} texts")
        told = answer.fields
        if not all(type(told.get(name)) is bool for name in ("spent", "moved")):
            raise MessageError(f"{self.name} does not say how its search ended")
        return Searched(update, plain.finite(told.get("distinct")), told["spent"], told["moved"])

    async def _search(self, broadcast: Broadcast, rounds: _Rounds) -> Envelope:
        need = self.search_cost(rounds[1])
        if self.channel.rounds == rounds:
            return await self.channel.once("search", {}, need, encode_broadcast(broadcast))
        space, plan, reference = rounds
        fields = {
            "space": plain.of_space(space),
            "plan": plain.of_plan(plan),
            "reference": plain.of_reference(reference),
        }
        told = self.channel.once("rounds", fields)
        search = self.channel.once("search", {}, need, encode_broadcast(broadcast))
        _, found = await side_by_side([told, search])
        self.channel.rounds = rounds
        return found

    async def proposal(self) -> Floats:
        async def search_again() -> None:
            if self._last is not None:
                await self.search(self._last[0], *self._last[1])  # scored before, so it costs nothing

        body = (await patiently(lambda: self.channel.once("proposal", {}), search_again)).body
        if not body or len(body) % 4:
            raise MessageError(f"{self.name} proposes {len(body)} bytes, which are no float32 numbers")
        if self._last is not None and len(body) // 4 != (d := self._last[1][0].dimension):
            raise MessageError(f"{self.name} proposes {len(body) // 4} coordinates, but {d} are searched")
        return plain.to_floats(np.frombuffer(body, dtype="<f4").astype(np.float64))

    async def test(
        self,
        contestants: Sequence[Contestant],
        common: int,
        progress: Callable[[int], None] = lambda answers: None,
        timeout: float | None = None,
    ) -> Tally:
        """As a client's; progress is told at the end."""
        fields = {"contestants": [plain.of_contestant(c) for c in contestants], "common": common}
        prompts = len({member for c in contestants for member in members_of(c.prompt)})
        async with asyncio.timeout(timeout and timeout * prompts):
            answer = await self.channel.ask("test", fields)
        methods = [*(c.method for c in contestants), "majority"]
        tally = plain.to_tally(answer.fields, methods, len(contestants[0].verbalizer.groups))
        if (counted := int(tally.confusions["majority"].sum())) != self.n_test:
            raise MessageError(f"{self.name} has {self.n_test} test texts, but counts {counted}")
        progress(self.n_test * prompts)
        return tally

    async def aclose(self) -> None:
        """Nothing is open on this side."""

    def _inputs(self, texts: int) -> int:
        return texts * len(self.info.inputs)

    async def ask_fit(self, number: str, message: bytes) -> bytes:
        """A message of a fit that has begun.

        Raises:
            Forgotten: The party does not know of it.
        """
        try:
            return (await self.channel.once("fit message", {"fit": number}, body=message)).body
        except MessageError as error:
            raise FitError(f"{self.name}: {error.message}", error.hint, self.name, refused=True) from error


async def _met(exchange: Exchange, introduction: bytes, deadline: float | None) -> Facts:
    """What a party says of itself, asked once more where it does not answer in time.

    Raises:
        TimeoutError: It did not the second time either.
        FedbptError: As from `introduced`.
    """
    for _ in range(_GREETINGS - 1):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                return await introduced(exchange, introduction)
    async with asyncio.timeout(deadline):
        return await introduced(exchange, introduction)
