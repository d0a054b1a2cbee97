"""A party's side of the network: questions in envelopes, answered by its `Client`.

One question is answered at a time, within what the server grants for it and the party's own budget. What the
party has spent since it was started goes with each answer. Nothing here knows how envelopes travel.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, TypeVar

from fedbpt_api.errors import FedbptError, QuotaError
from fedbpt_api.federation import plain
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.facts import Facts
from fedbpt_api.federation.forgotten import Forgotten
from fedbpt_api.federation.hidden import Hidden
from fedbpt_api.federation.local_search import Plan, Reference
from fedbpt_api.federation.messages import Broadcast, MessageError, decode_state, encode_update
from fedbpt_api.federation.tally import Contestant
from fedbpt_api.prompts.space import Asked, Ids, PromptSpace
from fedbpt_api.prompts.written import Job
from fedbpt_api.scoring.budget import Budget, BudgetSpent, Limits
from fedbpt_api.scoring.scorer import Stopped
from fedbpt_api.verbalizer import ClientFit, FitError, Reading, Verbalizer, encode
from fedbpt_api.verbalizer.messages import AskMoments
from fedbpt_api.verbalizer.words import MAX_PAIRS

_LOG = logging.getLogger(__name__)
Act = Callable[[], Awaitable[Envelope]]
R = TypeVar("R", Verbalizer, Reading)
_ON_WORDS = frozenset({"write", "fit", "evaluate", "joint losses", "rounds", "test"})  # with the words told
_FITS = 100  # that are kept until their last message


class Responder:
    """Answers for one client.

    Args:
        client: It; its budget's parent must be this party's share of the run's, without a limit.
        tokens: What stands for the label words at its server.
        life: Since when it tells what it has spent, where the client's budget goes on from an earlier
            process; else since now.
        hidden: Masks its answers, where the server is to see nothing but sums.
        batch: Fewest texts that a search's loss may be of; all of them where there are fewer.
    """

    def __init__(
        self,
        client: Client,
        tokens: Ids = (),
        life: str = "",
        hidden: Hidden | None = None,
        batch: int = 1,
    ) -> None:
        self._batch = batch
        self._tokens = tokens
        self._hidden = hidden
        self._client = client
        self._turn = asyncio.Lock()
        self._life = life or secrets.token_hex(8)
        totals = self._totals()
        self._before = {part: dict.fromkeys(spent, 0) for part, spent in totals.items()} if life else totals
        self._fits: dict[str, ClientFit] = {}
        self._round: tuple[PromptSpace, Plan, Reference] | None = None

    @property
    def facts(self) -> Facts:
        """What the server may know of this party before it asks."""
        client = self._client
        return Facts(
            name=client.name,
            train=client.n_train,
            dev=client.n_dev,
            test=client.n_test,
            labels=tuple(client.label_counts.tolist()),
            tokens=self._tokens,
            longest=client.longest,
            info=client.info,
            limit=client.budget.limits.scored,
        )

    async def answer(self, data: bytes) -> bytes:
        """Answer one envelope; what goes wrong is an answer too."""
        async with self._turn:
            share = self._client.budget.parent
            try:
                question = opened(data)
                if share is not None:
                    share.limits = Limits(share.spent.scored + _grant(question.fields))
                reply = await self._question(question.kind, question.fields, question.body)()
                reply = self._hidden.hide(question, reply) if self._hidden is not None else reply
            except BudgetSpent as end:
                reply = Envelope("spent", {"cap": end.cap, "own": end.own})
            except Stopped:
                reply = Envelope("stopped", {})
            except Forgotten:
                reply = Envelope("forgotten", {})
            except QuotaError as error:
                reply = Envelope("quota", {"message": discreet(error).message, "hint": ""})
            except (FedbptError, TimeoutError) as error:
                told = discreet(error)
                reply = Envelope("failed", {"message": told.message, "hint": told.hint})
            spent: dict[str, object] = self._told | {
                part: {key: now - self._before[part][key] for key, now in counted.items()}
                for part, counted in self._totals().items()
            }
            fields = {"answer": reply.fields, "spent": {"life": self._life, **spent}}
            return seal(Envelope(reply.kind, fields, reply.body))

    @property
    def _told(self) -> dict[str, object]:
        """What goes with every answer beside what has been spent."""
        return {}

    def _totals(self) -> dict[str, dict[str, int]]:
        """What has been spent on the search and on the test."""
        client = self._client
        return {"search": _spending(client.budget.parent), "test": _spending(client.tested)}

    @plain.reading
    def _question(self, kind: str, fields: Mapping[str, Any], body: bytes) -> Act:
        """What is to be done, once everything that it needs has been read and checked.

        Raises:
            MessageError: It is no question, or does not fit this party.
        """
        client, hidden = self._client, self._hidden
        if kind in _ON_WORDS and not client.scorer.words:
            raise Forgotten(f"{client.name} was started again")
        match kind:
            case "facts":
                return self._facts
            case "keys" if hidden is not None:
                return partial(_at_once, hidden.keys)
            case "peers" if hidden is not None:
                return partial(_at_once, partial(hidden.peers, fields))
            case "weighed" if hidden is not None:
                return partial(_at_once, partial(hidden.weighed, fields, body))
            case "words":
                words = self._own_words(fields["words"])
                if not 0 < len(words) <= client.info.max_words:
                    raise ValueError(f"{len(words)} words cannot be named")
                return partial(self._words, words)
            case "word sums":
                words = self._own_words(fields["words"])
                named = plain.whole(fields["named"], 0, MAX_PAIRS)
                if named and len(words) >= client.info.max_words:
                    raise ValueError(f"no words can be named beside {len(words)}")
                return partial(self._word_sums, plain.to_ids(fields["prompt"]), words, named)
            case "write":
                jobs = [plain.to_job(job) for job in fields["jobs"]]
                return partial(self._write, jobs, self._reference(fields["judge"], jobs))
            case "fit":
                groups = [plain.to_ids(group) for group in fields["groups"]]
                if any(not 0 <= column < self._width for group in groups for column in group):
                    raise ValueError("a label's column is none of the words")
                prompt, with_dev = plain.to_prompt(fields["prompt"]), bool(fields["with_dev"])
                return partial(self._fit, str(fields["fit"]), prompt, groups, with_dev)
            case "fit message":
                fit = self._fits.get(str(fields["fit"]))
                if fit is None:
                    raise Forgotten(f"{client.name} was started again")
                return partial(self._fit_message, fit, body)
            case "evaluate":
                prompt, repeat = plain.to_prompt(fields["prompt"]), plain.whole(fields["repeat"])
                part: Literal["train", "dev"] = "train" if fields["part"] == "train" else "dev"
                reading = self._fitting(plain.to_reading(fields["verbalizer"], prompt))
                return partial(self._evaluate, prompt, reading, part, repeat)
            case "joint losses":
                judged = [
                    (plain.to_prompt(p), self._fitting(plain.to_verbalizer(v))) for p, v in fields["judged"]
                ]
                sets = [[plain.whole(k, 0, len(judged) - 1) for k in places] for places in fields["sets"]]
                if not judged or not all(sets):
                    raise ValueError("a set of no prompts")
                return partial(self._joint_losses, judged, sets)
            case "rounds":
                rounds = (
                    plain.to_space(fields["space"]),
                    plain.to_plan(fields["plan"]),
                    self._reference(fields["reference"]),
                )
                batch = rounds[1].minibatch or client.n_train
                if batch < min(self._batch, client.n_train):
                    raise ValueError(f"losses of {batch} texts, where {self._batch} are the fewest")
                return partial(self._rounds, rounds)
            case "search":
                if self._round is None:
                    raise Forgotten(f"{client.name} was started again")
                broadcast = decode_state(body)
                if len(broadcast.mean) != self._round[0].dimension:
                    raise ValueError(f"a mean of {len(broadcast.mean)} coordinates")
                return partial(self._search, broadcast, self._round)
            case "proposal":
                if not client.searched:
                    raise Forgotten(f"{client.name} was started again")
                return self._proposal
            case "test":
                contestants = [plain.to_contestant(c) for c in fields["contestants"]]
                if not contestants or not all(self._fits_words(c.verbalizer) for c in contestants):
                    raise ValueError("contestants that read other words")
                common = plain.whole(fields["common"], 0, len(contestants[0].verbalizer.groups) - 1)
                return partial(self._test, contestants, common)
        raise MessageError(f"unknown question {kind!r}", "do server and party run the same release?")

    @property
    def _width(self) -> int:
        return len(self._client.scorer.words)

    def _own_words(self, value: plain.Plain) -> Ids:
        words = plain.to_words(value)
        if strange := [word for word in words if word < 0 and word not in self._tokens]:
            raise ValueError(f"there is no label word {-strange[0]}")
        return words

    def _fits_words(self, reading: Reading) -> bool:
        return reading.words == self._client.scorer.words

    def _fitting(self, reading: R) -> R:
        if not self._fits_words(reading):
            raise ValueError("a verbalizer that reads other words than this party was told")
        return reading

    def _reference(self, value: object, jobs: Sequence[Job] = ()) -> Reference:
        reference = plain.to_reference(value)
        labels = len(reference.verbalizer.groups)
        if not self._fits_words(reference.verbalizer) or any(job.label >= labels for job in jobs):
            raise ValueError("a reference that reads other words than this party was told")
        return reference

    # What is done ---------------------------------------------------------------------------

    async def _facts(self) -> Envelope:
        return Envelope("facts", self.facts.told())

    async def _words(self, words: Ids) -> Envelope:
        self._client.use_words(words)
        return Envelope("done", {})

    async def _word_sums(self, prompt: Ids, words: Ids, named: int) -> Envelope:
        pairs = await self._client.word_sums(prompt, words, named)
        return Envelope("word sums", {"pairs": [list(pair) for pair in pairs]})

    async def _write(self, jobs: Sequence[Job], judge: Reference) -> Envelope:
        lines = await self._client.write(jobs, judge)
        return Envelope("lines", {"lines": [plain.of_line(line) for line in lines]})

    async def _fit(
        self, number: str, prompt: Asked, groups: Sequence[Sequence[int]], with_dev: bool
    ) -> Envelope:
        self._fits[number] = await self._client.fit(prompt, groups, with_dev=with_dev)
        while len(self._fits) > _FITS:
            del self._fits[next(iter(self._fits))]
        first = [await self._fits[number].answer(encode(AskMoments(scatter))) for scatter in (False, True)]
        return Envelope("moments", {"plain": len(first[0])}, b"".join(first))

    async def _fit_message(self, fit: ClientFit, message: bytes) -> Envelope:
        return Envelope("fit message", {}, await fit.answer(message))

    async def _evaluate(
        self, prompt: Asked, reading: Reading, part: Literal["train", "dev"], repeat: int
    ) -> Envelope:
        return Envelope("sums", plain.of_sums(await self._client.evaluate(prompt, reading, part, repeat)))

    async def _joint_losses(
        self, judged: Sequence[tuple[Asked, Verbalizer]], sets: Sequence[Sequence[int]]
    ) -> Envelope:
        found = await self._client.joint_losses(judged, sets)
        return Envelope("joint losses", {"losses": found.tolist()})

    async def _rounds(self, rounds: tuple[PromptSpace, Plan, Reference]) -> Envelope:
        self._round = rounds
        return Envelope("done", {})

    async def _search(self, broadcast: Broadcast, rounds: tuple[PromptSpace, Plan, Reference]) -> Envelope:
        searched = await self._client.search(broadcast, *rounds)
        if self._hidden is not None:
            return self._hidden.scalars(broadcast, searched)
        told = {"distinct": searched.distinct, "spent": searched.spent, "moved": searched.moved}
        return Envelope("update", told, encode_update(searched.update))

    async def _proposal(self) -> Envelope:
        z = await self._client.proposal()
        return Envelope("proposal", {"d": len(z)}, z.astype("<f4").tobytes())

    async def _test(self, contestants: Sequence[Contestant], common: int) -> Envelope:
        return Envelope("tally", plain.of_tally(await self._client.test(contestants, common)))


async def _at_once(answer: Callable[[], Envelope]) -> Envelope:
    """An answer that nothing is waited for."""
    return answer()


def discreet(error: FedbptError | TimeoutError) -> FedbptError:
    """What the server may hear of a failure: of messages everything, of the rest that it was one.

    An error of a model server may tell addresses, or repeat what it was sent; the party's own log has it.
    """
    if isinstance(error, MessageError | FitError):
        return error
    _LOG.error("a question failed: %s", str(error) or "no answer in time")
    if isinstance(error, QuotaError):
        return QuotaError("no more can be paid for there")
    what = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return FedbptError(f"its model server or its files failed ({what}); its own log says more")


@plain.reading
def _grant(fields: Mapping[str, Any]) -> int:
    return plain.whole(fields.get("grant", 0))


def _spending(budget: Budget | None) -> dict[str, int]:
    """What a budget has counted."""
    budget = budget or Budget()
    return asdict(budget.spent) | {"duplicates": budget.duplicates, "stored": budget.stored}
