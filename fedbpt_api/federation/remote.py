"""A party behind a network, as the server sees it: each question is an envelope there and one back.

The budget that counts here is the server's own: a question is granted what is left of it, and what the party
says that it cost is taken off. A party's own budget stays its own business; it tells when it is spent.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import orjson

from fedbpt_api.errors import FedbptError, QuotaError
from fedbpt_api.federation import plain
from fedbpt_api.federation.account import Account
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.exchange import Exchange, GivingUp
from fedbpt_api.federation.facts import Facts
from fedbpt_api.federation.fanning import side_by_side
from fedbpt_api.federation.forgotten import Forgotten, patiently
from fedbpt_api.federation.local_search import Plan, Reference, Searched
from fedbpt_api.federation.messages import Broadcast, MessageError, decode_update, encode_broadcast
from fedbpt_api.federation.remote_fit import RemoteFit
from fedbpt_api.federation.tally import Contestant, Ints, Sums, Tally
from fedbpt_api.prompts.space import Asked, Ids, PromptSpace
from fedbpt_api.prompts.written import LONGEST, Job, Line
from fedbpt_api.scoring.backend import BackendInfo, Floats, Usage
from fedbpt_api.scoring.budget import Budget, BudgetSpent, Limits
from fedbpt_api.scoring.scorer import Stopped
from fedbpt_api.verbalizer import Verbalizer, encode
from fedbpt_api.verbalizer.checks import sums_problem
from fedbpt_api.verbalizer.messages import AskMoments

_Rounds = tuple[PromptSpace, Plan, Reference]
_PLAIN, _SCATTER = (encode(AskMoments(scatter)) for scatter in (False, True))  # what fits begin with


@dataclass
class RemoteParty:
    """A `Party` that is asked by envelopes.

    Attributes:
        facts: What it is.
        exchange: How envelopes reach it.
        account: What its questions have cost.
        introduction: What it was told at first, and is again when it has forgotten.
        deadline: Seconds that it has for an answer within a fit; whoever asks else keeps the time.
    """

    facts: Facts
    exchange: Exchange
    account: Account
    introduction: bytes = b""
    deadline: float | None = None
    most_pairs: ClassVar[int] = 500  # words of a party's sums
    _words: Ids = ()
    _introduced: bool = True
    _told: tuple[Ids, _Rounds | None] = ((), None)  # words and rounds that the party knows
    _last: tuple[Broadcast, _Rounds] | None = None  # its last search
    _fits: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._patience = GivingUp(self.name, self.exchange)

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
            deadline: Seconds that it has for an answer within a fit.
            name: What it is called, where that is known.

        Raises:
            FedbptError: It does not answer in time, or something else; it cannot take
                part, or has another name.
        """
        introduction = task or seal(Envelope("facts", {}))
        try:
            async with asyncio.timeout(deadline):
                facts = await _introduced(exchange, introduction)
        except TimeoutError:
            raise FedbptError(
                f"{name or 'a party'}: no answer within {deadline:g} s", "see to it, then start again"
            ) from None
        except FedbptError as error:
            raise FedbptError(f"{name}: {error.message}" if name else error.message, error.hint) from error
        if name and facts.name != name:
            raise FedbptError(f"{name} calls itself {facts.name} now")
        return cls(
            facts, exchange, Account(facts.name, Budget(Limits(scored=facts.limit), run)), introduction
        )

    @property
    def name(self) -> str:
        return self.facts.name

    @name.setter
    def name(self, value: str) -> None:
        raise AttributeError("a party's name is its own")

    @property
    def budget(self) -> Budget:
        return self.account.budget

    @property
    def tested(self) -> Budget | None:
        return self.account.tested

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
        self._words = words

    async def word_sums(self, prompt: Ids) -> tuple[tuple[int, float], ...]:
        answer = await self._ask("word sums", {"prompt": list(prompt)}, self._inputs(self.n_train))
        return plain.to_pairs(answer.fields.get("pairs"), self.most_pairs)

    async def write(self, jobs: Sequence[Job], judge: Reference) -> tuple[Line, ...]:
        fields = {"jobs": [plain.of_job(job) for job in jobs], "judge": plain.of_reference(judge)}
        answer = await self._ask("write", fields, len(jobs) * (LONGEST + len(self.info.inputs)))
        lines = plain.to_lines(answer.fields.get("lines"), len(jobs))
        if not {line.label for line in lines} <= {job.label for job in jobs}:
            raise MessageError(f"{self.name} has written lines for labels that it was not asked for")
        if any(line.confidence > 0 for line in lines):
            raise MessageError(f"{self.name} has lines whose label is more than certain")
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
        content = hashlib.blake2b(orjson.dumps([told, self._words]), digest_size=8).hexdigest()
        self._fits[content] += 1
        fields = {"fit": f"{content}-{self._fits[content]}", **told}
        return RemoteFit(self, fields, await self.begin_fit(fields))

    async def begin_fit(self, fields: dict[str, Any]) -> dict[bytes, bytes]:
        """Begin a fit, or one that the party has forgotten; what was scored costs nothing again.

        Returns:
            Answers to the messages that a fit may begin with, by message.
        """
        need = self._inputs(self.n_train + self.n_dev * bool(fields["with_dev"]))
        answer = await self._ask("fit", fields, need)
        length = plain.to_length(answer.fields.get("plain"), len(answer.body))
        return {_PLAIN: answer.body[:length], _SCATTER: answer.body[length:]}

    async def label_sums(self, prompt: Asked, groups: Sequence[Sequence[int]]) -> Floats:
        told = {"prompt": plain.of_prompt(prompt), "groups": [list(group) for group in groups]}
        answer = await self._ask("label sums", told, self._inputs(self.n_train))
        found = plain.to_floats(answer.fields.get("sums"))
        if found.shape != (len(groups),):
            raise MessageError(f"{self.name} does not give a sum for each of {len(groups)} labels")
        return found

    async def evaluate(
        self, prompt: Asked, verbalizer: Verbalizer, part: Literal["train", "dev"] = "dev", repeat: int = 0
    ) -> Sums:
        n = self.n_dev if part == "dev" else self.n_train
        fields = {
            "prompt": plain.of_prompt(prompt),
            "verbalizer": verbalizer.to_dict(),
            "part": part,
            "repeat": repeat,
        }
        sums = plain.to_sums((await self._ask("evaluate", fields, self._inputs(n))).fields)
        if sums.n != n:
            raise MessageError(f"{self.name} has {n} such texts, but tells of {sums.n}")
        told = sums.correct  # without it the loss has noise, and may be anything
        if told is not None and (problem := sums_problem(verbalizer, n, sums.loss, told)):
            raise MessageError(f"{self.name} tells of losses that cannot be: {problem}")
        return sums

    async def agreement(
        self, judged: Sequence[tuple[Asked, Verbalizer]], sets: Sequence[Sequence[int]], trust: float
    ) -> Floats:
        fields = {
            "judged": [[plain.of_prompt(prompt), verbalizer.to_dict()] for prompt, verbalizer in judged],
            "sets": [list(places) for places in sets],
            "trust": trust,
        }
        found = plain.to_floats((await self._ask("agreement", fields)).fields.get("distances"))
        if found.shape != (len(sets),) or (found < 0).any():
            raise MessageError(f"{self.name} does not give a distance for each of {len(sets)} sets")
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
        if self._told[1] == rounds:
            return await self._once("search", {}, need, encode_broadcast(broadcast))
        space, plan, reference = rounds
        fields = {
            "space": plain.of_space(space),
            "plan": plain.of_plan(plan),
            "reference": plain.of_reference(reference),
        }
        told = self._once("rounds", fields)
        _, found = await side_by_side([told, self._once("search", {}, need, encode_broadcast(broadcast))])
        self._told = (self._told[0], rounds)
        return found

    async def proposal(self) -> Floats:
        async def search_again() -> None:
            if self._last is not None:
                await self.search(self._last[0], *self._last[1])  # scored before, so it costs nothing

        body = (await patiently(lambda: self._once("proposal", {}), search_again)).body
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
        async with asyncio.timeout(timeout and timeout * len({c.prompt for c in contestants})):
            answer = await self._ask("test", fields)
        methods = [*(c.method for c in contestants), "majority"]
        tally = plain.to_tally(answer.fields, methods, len(contestants[0].verbalizer.groups))
        if (counted := int(tally.confusions["majority"].sum())) != self.n_test:
            raise MessageError(f"{self.name} has {self.n_test} test texts, but counts {counted}")
        progress(self.n_test * len({c.prompt for c in contestants}))
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
        async with asyncio.timeout(self.deadline):
            return (await self._once("fit message", {"fit": number}, body=message)).body

    async def _ask(self, kind: str, fields: dict[str, Any], need: int = 0) -> Envelope:
        """Put a question; once more where the party has been started again."""
        return await patiently(lambda: self._once(kind, fields, need))

    async def _once(self, kind: str, fields: dict[str, Any], need: int = 0, body: bytes = b"") -> Envelope:
        """Put a question, behind what the party must be told before; an exchange for all of it.

        Args:
            kind: What is asked.
            fields: Of the envelope.
            need: Scored examples that it may take; no more than these, or than is left, are granted.
            body: Of the envelope.

        Raises:
            BudgetSpent, Stopped, FedbptError: What the party answers, or how it failed to.
        """
        before: list[Coroutine[Any, Any, Any]] = []
        if not self._introduced:
            self._introduced = True
            before.append(self._introduce())
        if self._words != self._told[0]:
            self._told = (self._words, self._told[1])
            before.append(self._put("words", {"words": list(self._words)}, 0, b""))
        # What is begun first is sent first, and a party answers in that order.
        found: Envelope = (await side_by_side([*before, self._put(kind, fields, need, body)]))[-1]
        return found

    async def _introduce(self) -> None:
        """Tell a party that has been started again its task.

        Raises:
            FedbptError: It cannot take part any more, or is another than it was.
        """
        if await _introduced(self.exchange, self.introduction) != self.facts:
            raise MessageError(f"{self.name} has come back with other texts, or another model")

    async def _put(self, kind: str, fields: dict[str, Any], need: int, body: bytes) -> Envelope:
        """Put a question, and count what its answer cost."""
        granted = Usage(scored=self._granted(need))
        data = seal(Envelope(kind, fields | {"grant": granted.scored}, body))
        self._run.reserve(granted)
        try:
            answer = opened(await self._patience(data))
            if answer.kind not in ("forgotten", "failed") or "spent" in answer.fields:
                self.account.count(answer.fields.get("spent"))
        finally:
            self._run.settle(granted, Usage())
        inner = answer.fields.get("answer")
        if not isinstance(inner, dict):
            raise MessageError(f"{self.name} answers {kind!r} with something else")
        match answer.kind:
            case "spent":
                raise BudgetSpent(str(inner.get("cap")), inner.get("own") is True)
            case "stopped":
                raise Stopped
            case "forgotten":
                self._told, self._introduced = ((), None), False
                raise Forgotten(f"{self.name} has been started again and does not know what it was told")
            case "quota":
                raise QuotaError(str(inner.get("message")), str(inner.get("hint")))
            case "failed":
                raise FedbptError(str(inner.get("message")), str(inner.get("hint")))
        return Envelope(answer.kind, inner, answer.body)

    def _granted(self, need: int) -> int:
        """Scored examples that the next question may take, of those that it may need at most.

        A party looks after its own budget itself: only it can tell how much of a question fits.
        """
        left = self._run.left()
        dealt = self.budget.grant.scored
        share = need if dealt is None else min(need, max(dealt - self.budget.spent.scored, 0))
        return share if left is None else min(share, left)

    @property
    def _run(self) -> Budget:
        """The budget that all parties share."""
        return self.budget.parent or Budget()


async def _introduced(exchange: Exchange, introduction: bytes) -> Facts:
    """What a party says of itself.

    Raises:
        FedbptError: It does not, or cannot take part.
    """
    answer = opened(await exchange(introduction))
    inner = answer.fields.get("answer", {})
    if answer.kind == "failed" and isinstance(inner, dict):
        raise FedbptError(str(inner.get("message")), str(inner.get("hint")))
    if answer.kind != "facts":
        raise MessageError(f"a party answers {answer.kind!r} where it should say what it is")
    return Facts.read(inner)
