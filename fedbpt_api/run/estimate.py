"""What a run will cost, before anything is spent: figures a client, a round and in all.

A run is rehearsed (`run.rehearsal`) with different starting prompts as its centre. The likely figures are
those of the prompt of median length, one of the user's counted as often as six that the model draws; the
range is that of the shortest and the longest. What it takes at most, whatever happens, is `run.ceiling`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
from scipy.optimize import nnls

from fedbpt_api.errors import ConfigError
from fedbpt_api.prompts.space import AnyPrompt
from fedbpt_api.run.ceiling import ceilings, within
from fedbpt_api.run.config import Settings
from fedbpt_api.run.events import Event, RoundDone
from fedbpt_api.run.foreseen import Estimate, Figures
from fedbpt_api.run.opening import open_parties
from fedbpt_api.run.parties import Keep, Parties
from fedbpt_api.run.rehearsal import Rehearsal, Speed, Stage
from fedbpt_api.run.result import ALL_CLIENTS
from fedbpt_api.run.schema import CacheSettings
from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.price import Price
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.task import Task

PROBES = 8
"""Requests that the speed is measured with where nothing else is said."""

_OWN = 6  # draws that one of the user's prompts counts as: over 15 runs on tweets, SST-2 and AG's News


async def estimate(settings: Settings, task: Task, probes: int = PROBES) -> Estimate:
    """Foresee what a run costs. Nothing is scored but `probes` inputs, for the speed.

    Args:
        settings: The run's.
        task: Its texts.
        probes: Inputs to measure the speed with; 0 leaves times unknown.

    Raises:
        ConfigError: The run could not begin, or time alone ends it and the speed is not known.
        FedbptError: The budget is too small for one prompt, or a server cannot answer.
    """
    endless = settings.search.rounds is None and all(
        limit is None for limit in (settings.budget.scored, settings.budget.tokens, settings.budget.money)
    )
    if endless and not probes:
        raise ConfigError(
            "budget.seconds: what is done in that time is not known without asking the server",
            "use fedbpt estimate without --no-probe, or set another limit",
        )
    # Made-up answers must not get into the shared store.
    settings = settings.model_copy(update={"cache": CacheSettings(scores=False)})
    stage = Stage(settings, task, open_backend)
    try:
        stage.speed, paid = await _measured(stage, probes)
        judged = (await _rehearse(stage, None)).judged
        own = len(dict.fromkeys(settings.prompts))
        shortest, median, longest = _centres(judged, own)
        runs = [await _rehearse(stage, prompt) for prompt in (shortest, median, longest)]
        return await _put_together(runs[1], (runs[0], runs[2]), paid, bool(probes))
    finally:
        await stage.aclose()


class _Ledger(Rehearsal):
    """A rehearsal that writes down what each round took."""

    def __init__(self, stage: Stage, favourite: AnyPrompt | None) -> None:
        super().__init__(stage, favourite, self._note)
        self.rounds: list[tuple[Figures, ...]] = []
        self._before: list[Figures] = []
        self._sent = {c.name: (0, 0) for c in stage.task.clients}
        self.searched = 0.0

    def _note(self, event: Event) -> None:
        if isinstance(event, RoundDone):
            for client in event.record.clients:
                up, down = self._sent[client.client]
                self._sent[client.client] = (up + client.bytes_up, down + client.bytes_down)
            now = self.figures()
            before = self._before or [_nothing(f.client) for f in now]
            self.rounds.append(tuple(_minus(a, b) for a, b in zip(now, before, strict=True)))
            self._before = now
            self.searched = self.clock.now

    def figures(self) -> list[Figures]:
        """Each client's so far, and their sum."""
        assert self.parties is not None
        found = []
        for client in self.parties.clients:
            up, down = self._sent[client.name]
            fits = self.parties.verbalizer_bytes
            budget = client.budget
            found.append(
                _figures(client.name, budget, up + fits[client.name, "up"], down + fits[client.name, "down"])
            )
        return [*found, replace(_sum(found), seconds=self.clock.now)]

    def tests(self) -> tuple[Figures, ...]:
        """What the final test took."""
        assert self.parties is not None
        tested = [(client.name, client.tested) for client in self.parties.clients]
        found = [_figures(name, budget, 0, 0) for name, budget in tested if budget is not None]
        return (*found, replace(_sum(found), seconds=self.clock.now - self.searched)) if found else ()


async def _rehearse(stage: Stage, favourite: AnyPrompt | None) -> _Ledger:
    run = _Ledger(stage, favourite)
    await run.run()
    return run


def _centres(judged: Sequence[AnyPrompt], own: int) -> tuple[AnyPrompt, AnyPrompt, AnyPrompt]:
    """The shortest, the median and the longest starting prompt; the user's `own` first ones count more."""
    weights = [_OWN if number < own else 1 for number in range(len(judged))]
    order = sorted(range(len(judged)), key=lambda number: (len(judged[number]), number))
    reached = np.cumsum([weights[number] for number in order])
    middle = order[int(np.searchsorted(reached, sum(weights) / 2))]
    return judged[order[0]], judged[middle], judged[order[-1]]


async def _put_together(
    likely: _Ledger, others: tuple[_Ledger, _Ledger], paid: Usage, timed: bool
) -> Estimate:
    parties = likely.parties
    assert parties is not None
    clean = _Cleaner(timed, bool(parties.currency))
    *clients, total = clean.all(likely.figures())
    total = replace(total, seconds=likely.searched if timed else None)
    ends = []
    for run in others:
        end = clean.all(run.figures())[-1]
        ends.append(replace(end, seconds=run.searched if timed else None))
    low, high = sorted(ends, key=lambda figures: figures.prompt_tokens)
    return Estimate(
        total=total,
        clients=tuple(clients),
        rounds=tuple(tuple(clean.all(rows)) for rows in likely.rounds),
        test=tuple(clean.all(likely.tests())),
        low=low,
        high=high,
        most=await _most(parties, likely.settings),
        currency=parties.currency,
        probes=paid.scored,
        probe_tokens=paid.prompt_tokens,
    )


@dataclass(frozen=True, slots=True)
class _Cleaner:
    """Leaves out what is not known."""

    timed: bool
    priced: bool

    def all(self, rows: Sequence[Figures]) -> list[Figures]:
        return [
            replace(
                row,
                seconds=row.seconds if self.timed else None,
                money=row.money if self.priced or row.client != ALL_CLIENTS else None,
            )
            for row in rows
        ]


async def _most(parties: Parties, settings: Settings) -> tuple[Figures, ...]:
    found: list[Figures] = []
    bounds = await ceilings(parties, settings)
    for client in parties.clients:
        usage = bounds[client.name]
        if usage is None:
            return ()
        budget = client.budget
        found.append(_bounded(client.name, usage, budget.price, budget.limits.money))
    limits = parties.budget.limits
    summed = within(sum((figures.usage for figures in found), Usage()), limits)
    money = _sum(found).money
    if money is not None and limits.money is not None:
        money = min(money, float(limits.money))
    return (*found, replace(_bounded(ALL_CLIENTS, summed, None, None), money=money))


def _bounded(name: str, usage: Usage, price: Price | None, limit: Decimal | None) -> Figures:
    money = None
    if price is not None:
        cost = price.of(usage)
        money = float(cost if limit is None else min(cost, limit))
    return Figures(name, usage.scored, 0, usage.prompt_tokens, 0, usage.requests, 0, 0, money)


async def _measured(stage: Stage, probes: int) -> tuple[Speed, Usage]:
    """How long answers take: a few inputs with short texts, then a few with long ones."""
    if not probes:
        return Speed(), Usage()
    parties = await open_parties(
        stage.settings, stage.task, lambda: False, Keep(opener=stage.server, facts=stage.facts)
    )
    texts = [(c, text) for c in parties.local for text in c.sample(-(-probes // len(parties.clients)))]
    texts = sorted(texts, key=lambda pair: len(pair[1]))[:probes]
    paid, rows, times = Usage(), [], []
    if len(texts) > 2:  # the first request of all is no measure
        owner, text = texts.pop(len(texts) // 2)
        warm = await owner.scorer.backend.score([text.with_prompt(parties.start_ids)], parties.label_tokens)
        paid = warm.usage
    half = (len(texts) + 1) // 2
    for part in (texts[:half], texts[half:]):
        if not part:
            continue
        began = time.perf_counter()
        calls = [
            c.scorer.backend.score(
                [text.with_prompt(parties.start_ids) for owner, text in part if owner is c],
                parties.label_tokens,
            )
            for c in dict.fromkeys(owner for owner, _ in part)
        ]
        used = sum((scores.usage for scores in await asyncio.gather(*calls)), Usage())
        times.append(time.perf_counter() - began)
        rows.append((used.scored, used.prompt_tokens - used.cached_tokens))
        paid = paid + used
    (each, token), _ = nnls(np.array(rows, dtype=np.float64), np.array(times))
    return Speed(float(each), float(token), paid.requests / max(paid.scored, 1)), paid


def _figures(name: str, budget: Budget, up: int, down: int) -> Figures:
    used = budget.spent
    return Figures(
        client=name,
        scored=used.scored,
        duplicates=budget.duplicates,
        prompt_tokens=used.prompt_tokens,
        cached_tokens=used.cached_tokens,
        requests=used.requests,
        bytes_up=up,
        bytes_down=down,
        money=None if budget.price is None else float(budget.money),
    )


def _nothing(name: str) -> Figures:
    return Figures(name, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)


_COUNTS = (
    "scored", "duplicates", "prompt_tokens", "cached_tokens", "requests", "bytes_up", "bytes_down"
)  # fmt: skip


def _minus(a: Figures, b: Figures) -> Figures:
    counts = {name: getattr(a, name) - getattr(b, name) for name in _COUNTS}
    money = None if a.money is None else a.money - (b.money or 0.0)
    seconds = None if a.seconds is None else a.seconds - (b.seconds or 0.0)
    return replace(a, **counts, money=money, seconds=seconds)


def _sum(rows: Sequence[Figures]) -> Figures:
    counts = {name: sum(getattr(row, name) for row in rows) for name in _COUNTS}
    paid = [row.money for row in rows if row.money is not None]
    money = sum(paid) if len(paid) == len(rows) else None
    return replace(_nothing(ALL_CLIENTS), **counts, money=money, seconds=None)
