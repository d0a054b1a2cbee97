"""A run without a model: the run's own code asks, made-up answers come at once, and nothing is paid.

So an estimate foresees what a run will ask by asking it. Token ids are the real server's. What cannot be
known is which starting prompt wins, and with it how long the prompts of the search are: a rehearsal is told.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fedbpt_api.prompts.space import AnyPrompt, Asked, Ensemble
from fedbpt_api.prompts.written import CHOICES
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.config import Settings
from fedbpt_api.run.events import Event
from fedbpt_api.run.parties import Keep, Opener, Parties
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.backend import Backend, BackendInfo, Floats, Prompt, Scores, TokenTable, Usage
from fedbpt_api.scoring.facts import Facts
from fedbpt_api.task import Task
from fedbpt_api.verbalizer import Answering, FitReport, Kind, Verbalizer, fit_over_clients

_ROWS = 997  # different answers
_SPREAD = 0.3  # of the losses of starting prompts, in nats
_PROMISING = 0.8  # standard deviations that a prompt of the search is worse than its centre by, at the mean
_ENDS = 1 / 13  # probability that a line of a model's ends at a token
_FAVOURITE = 3.0  # standard deviations that the centre is better than the mean prompt


@dataclass(frozen=True, slots=True)
class Speed:
    """How long answers take, and how they are counted: from a few requests, or none.

    Attributes:
        each: Seconds for an input.
        token: Seconds for a prompt token that no cache holds.
        requests: Requests an input; less than 1 where a call's inputs go together.
    """

    each: float = 0.0
    token: float = 0.0
    requests: float = 1.0


@dataclass
class Clock:
    """Time as the made-up answers take it, in seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class MadeUp:
    """Stands for a server: its tokens, its limits, and made-up answers.

    Args:
        live: The server; asked for tokens only.
        clock: Moved by what answers would take.
        speed: How long that is.
    """

    def __init__(self, live: Backend, clock: Clock, speed: Speed) -> None:
        self._live, self._clock, self._speed = live, clock, speed
        self._stems: set[tuple[object, ...]] = set()
        self._seen: set[int] = set()
        self._pool: tuple[int, ...] = ()
        self._values = np.random.default_rng(7).normal(-4.0, 2.0, (_ROWS, 4096))

    @property
    def info(self) -> BackendInfo:
        return self._live.info

    @property
    def notice(self) -> str:
        return ""

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return await self._live.tokenize(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self._live.detokenize(ids)

    async def token_table(self) -> TokenTable | None:
        return await self._live.token_table()

    async def aclose(self) -> None:
        """The server stays open: it was only lent."""

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        columns = np.asarray(words) % self._values.shape[1]
        rows = self._values[np.ix_([_number(prompt) for prompt in prompts], columns)]
        rows = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        exact = np.ones(rows.shape, dtype=np.bool_)
        return Scores(rows, exact, np.ones(len(rows)), self._usage(prompts))

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        for prompt in prompts:
            self._seen.update(prompt.ids)
        usage = self._usage(prompts)
        if k != CHOICES:
            tokens = sorted(self._seen)
            columns = np.asarray(tokens) % self._values.shape[1]
            rows = self._values[:, columns]
            return [dict(zip(tokens, rows[_number(p)].tolist(), strict=True)) for p in prompts], usage
        if not self._pool:
            texts = {token: await self._live.detokenize([token]) for token in sorted(self._seen)}
            self._pool = tuple(t for t, text in texts.items() if text[:1] == " " and text[1:].isalpha())
        return [await self._next(prompt) for prompt in prompts], usage

    async def _next(self, prompt: Prompt) -> dict[int, float]:
        """What may follow in a line: some word, or its end."""
        rng = np.random.default_rng(zlib.crc32(np.asarray(prompt.ids, dtype="<i8").tobytes()))
        end = await self._live.tokenize("\n")
        ends = {end[-1]: 99.0} if end and (rng.random() < _ENDS or not self._pool) else {}
        return ends | {int(token): 0.0 for token in rng.choice(self._pool, min(CHOICES, len(self._pool)))}

    def _usage(self, prompts: Sequence[Prompt]) -> Usage:
        cached, block = 0, self.info.block
        for prompt in prompts:
            soft = prompt.soft if prompt.at <= prompt.shared else None
            stem = (prompt.ids[: prompt.shared - (len(soft) if soft else 0)], soft)
            if stem in self._stems:
                cached += prompt.shared // block * block
            self._stems.add(stem)
        tokens, n = sum(map(len, prompts)), len(prompts)
        self._clock.now += n * self._speed.each + (tokens - cached) * self._speed.token
        return Usage(n, tokens, cached, max(round(n * self._speed.requests), 1))


def _number(prompt: Prompt) -> int:
    soft = prompt.soft.digest if prompt.soft is not None else b""
    return zlib.crc32(np.asarray(prompt.ids, dtype="<i8").tobytes() + soft) % _ROWS


@dataclass
class Stage:
    """What the rehearsals of one run share: its open servers and what they said.

    Attributes:
        settings: The run's.
        task: Its texts.
        opener: Opens the real servers.
        speed: How long answers take.
        live: Servers that are open, by their settings.
        fits: Bytes up and down that a verbalizer's fit takes a client, by its kind.
    """

    settings: Settings
    task: Task
    opener: Opener
    speed: Speed = Speed()
    live: dict[str, Backend] = field(default_factory=dict)
    fits: dict[tuple[Kind, bool], FitReport] = field(default_factory=dict)

    @cached_property
    def facts(self) -> Facts:
        """What the servers said, so that they are asked once."""
        return Facts(None, b"estimate")

    async def server(
        self,
        kind: str,
        *,
        log_folder: Path | None = None,
        known: BackendInfo | None = None,
        **options: object,
    ) -> Backend:
        """A real server, opened once."""
        key = repr((kind, sorted(options.items(), key=repr)))
        if key not in self.live:
            self.live[key] = await self.opener(kind, log_folder=log_folder, known=known, **options)
        return self.live[key]

    async def aclose(self) -> None:
        for backend in self.live.values():
            await backend.aclose()


class Rehearsal(Tuner):
    """A run on made-up answers that keeps nothing.

    Args:
        stage: What rehearsals share.
        favourite: The starting prompt that is to win; whichever does where not given.
        listener: Called with each event.
    """

    def __init__(
        self, stage: Stage, favourite: AnyPrompt | None, listener: Callable[[Event], None] | None = None
    ) -> None:
        self._stage, self._favourite, self.clock = stage, favourite, Clock()
        self.parties: Parties | None = None
        keep = Keep(opener=self._open, facts=stage.facts)
        super().__init__(stage.settings, stage.task, None, listener, keep)

    @property
    def judged(self) -> list[AnyPrompt]:
        """Starting prompts that were judged, in their order."""
        assert isinstance(self._assessor, Judge)
        return self._assessor.starting

    async def _open(
        self,
        kind: str,
        *,
        log_folder: Path | None = None,
        known: BackendInfo | None = None,
        **options: object,
    ) -> Backend:
        live = await self._stage.server(kind, log_folder=log_folder, known=known, **options)
        return MadeUp(live, self.clock, self._stage.speed)

    def _judge(self, parties: Parties) -> Assessor:
        self.parties = parties
        for budget in (parties.budget, *(client.budget for client in parties.clients)):
            budget.clock = self.clock
        judge = Judge(parties, self.settings, self._tell)
        judge.favourite, judge.fits = self._favourite, self._stage.fits
        return judge


@dataclass
class Judge(Assessor):
    """Judges prompts by made-up losses: the favourite wins, a few others are worth a second look."""

    favourite: AnyPrompt | None = None
    fits: dict[tuple[Kind, bool], FitReport] = field(default_factory=dict)
    starting: list[AnyPrompt] = field(default_factory=list)
    made_up: bool = True
    _loss: float = 1.0

    async def assess(
        self, prompt: Asked, origin: str, z: Floats | None = None, fixed: Verbalizer | None = None
    ) -> Assessment:
        if prompt in self.known:
            return self.known[prompt]
        draw = float(np.random.default_rng(_number(Prompt(_ids(prompt)))).normal())
        if self.centre is not None:  # worse than it, or better on training texts alone
            self._loss = self.centre.train_loss + _SPREAD * (draw + _PROMISING)
        else:
            self._loss = 1.0 + _SPREAD * (-_FAVOURITE if prompt == self.favourite else max(draw, -2.5))
            if not isinstance(prompt, Ensemble):
                self.starting.append(prompt)
        assessment = await super().assess(prompt, origin, z, fixed)
        worst = max(self._loss, self.centre.train_loss + 0.01) if self.centre is not None else self._loss
        dev = {name: replace(sums, loss=sums.n * worst) for name, sums in assessment.dev.items()}
        self.known[prompt] = replace(assessment, dev=dev)
        return self.known[prompt]

    async def fitted(self, fits: Sequence[Answering], kind: Kind) -> tuple[Verbalizer, FitReport]:
        """What a fit would say; the first one of a kind is made, to see how many bytes it takes."""
        parties = self.parties
        words, groups = parties.words, parties.groups
        if (key := (kind, bool(self.known))) not in self.fits:
            self.fits[key] = (await fit_over_clients(fits, words, groups, kind=kind))[1]
        made = self.fits[key]
        names = {fit.name for fit in fits}
        up = {name: size for name, size in made.bytes_up.items() if name in names}
        down = {name: size for name, size in made.bytes_down.items() if name in names}
        parties.count_bytes(up, down)
        n = {client.name: client.n_train for client in parties.clients if client.name in names}
        held_out = {name: (count, count * self._loss) for name, count in n.items()}
        flat: Kind = "words" if kind == "words" else "bias"
        verbalizer = Verbalizer.from_bias(words, groups, 1.0, np.zeros(len(groups)), kind=flat)
        return verbalizer, replace(made, held_out=held_out)


def _ids(prompt: Asked) -> tuple[int, ...]:
    if isinstance(prompt, Ensemble):
        return tuple(token for member in prompt.members for token in member)
    return prompt if isinstance(prompt, tuple) else tuple(prompt.digest)
