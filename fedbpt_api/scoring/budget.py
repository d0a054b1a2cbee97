"""Budgets: how much may still be spent, by whom, and the promise that it is never exceeded.

Work is reserved before it is sent and settled when the answer is there, so that clients working at
the same time cannot overshoot together. A client's budget has a parent: the run's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.price import Price

_MARGIN = 2.0  # times as long as so far, prompts of a search may be


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds; None is no bound. `scored` counts inputs answered by the model: one a (prompt, text)
    pair, more where label words begin alike (`BackendInfo.inputs`). `money` is in the price's currency.
    """

    scored: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    money: Decimal | None = None


class BudgetSpent(Exception):
    """The next piece of work does not fit.

    Args:
        cap: The limit it would pass.
        own: Whether that is a client's own budget; the others may go on.
    """

    def __init__(self, cap: str, own: bool = False) -> None:
        super().__init__(f"{'its own' if own else 'the'} budget of {cap} is spent")
        self.cap = cap
        self.own = own


@dataclass(slots=True)
class Budget:
    """Counts what was spent against limits. One per run, one per client.

    Money is counted at the price of the budget that work is reserved and settled with (a client's; its
    parents add up what that makes). Without a price it is not known, and a limit of it cannot be set.

    Attributes:
        limits: What may be spent.
        parent: The run's budget, of a client's.
        clock: Tells seconds.
        price: What an answer costs.
        spent: What was spent, in all of the run's sessions.
        duplicates: Pairs that had been scored before in this run.
        stored: Pairs whose answers another run paid for.
        grant: A client's share of what is left of the run's budget (`shared_out`).
        money: What that makes in money.
    """

    limits: Limits = field(default_factory=Limits)
    parent: Budget | None = None
    clock: Callable[[], float] = time.monotonic
    price: Price | None = None
    spent: Usage = field(default_factory=Usage)
    duplicates: int = 0
    stored: int = 0
    grant: Limits = field(default_factory=Limits)
    money: Decimal = Decimal(0)
    _reserved: Usage = field(default_factory=Usage)
    _reserved_money: Decimal = Decimal(0)
    _started: float | None = None
    _reached: float = 0.0
    _standing: float | None = None  # what the clock shows while answers come from a journal

    def start(self, *, standing: bool = False, reached: float = 0.0) -> None:
        """Start the clock of the time limit.

        Args:
            standing: Whether it only moves as `recall` says, until `go`.
            reached: What it showed at the end of the session before.
        """
        self._started, self._reached = self.clock(), reached
        self._standing = 0.0 if standing else None

    @property
    def seconds(self) -> float:
        """Since the run began, all its sessions together; the time between them is not counted."""
        if self._standing is not None:
            return self._standing
        return 0.0 if self._started is None else self.clock() - self._started

    def recall(self, work: Usage, spent: Usage, seconds: float) -> None:
        """Settle `work` by answers that were paid for earlier, the last one after `seconds` of the run."""
        self.settle(work, spent)
        for budget in self._chain():
            if budget._standing is not None:
                budget._standing = max(budget._standing, seconds)

    def go(self, seconds: float) -> None:
        """From here on answers are new: the clock goes on from the end of the session before.

        Raises:
            BudgetSpent: The time is up.
        """
        for budget in self._chain():
            if budget._standing is not None:
                budget._started = budget.clock() - max(seconds, budget._standing, budget._reached)
                budget._standing = None
        for budget in reversed(tuple(self._chain())):
            if budget.limits.seconds is not None and budget.seconds >= budget.limits.seconds:
                raise BudgetSpent("seconds", budget.parent is not None)

    def left(self) -> int | None:
        """Scored examples that may still be asked for; None where there is no such limit."""
        own = None
        if self.limits.scored is not None:
            own = self.limits.scored - self.spent.scored - self._reserved.scored
        above = self.parent.left() if self.parent is not None else None
        bounds = [n for n in (own, above) if n is not None]
        return max(min(bounds), 0) if bounds else None

    def used(self, more: int = 0) -> float:
        """Share of this budget that is spent once `more` examples are scored too: of its scarcest limit.

        Tokens and money are foreseen from what an example took so far; 0 where there is no limit.
        """
        limits, scored = self.limits, self.spent.scored + more
        grown = scored / max(self.spent.scored, 1)
        money = None if limits.money is None else float(limits.money)
        shares = (
            (scored, limits.scored),
            (self.spent.prompt_tokens * grown, limits.tokens),
            (self.seconds, limits.seconds),
            (float(self.money) * grown, money),
        )
        return max((spent / limit for spent, limit in shares if limit is not None), default=0.0)

    def reserve(self, work: Usage) -> None:
        """Set `work` aside, here and in every parent.

        Raises:
            BudgetSpent: It does not fit; nothing was set aside.
        """
        cost = self._cost(work)
        self._check(work, cost)
        for budget in self._chain():
            budget._reserved = budget._reserved + work
            budget._reserved_money += cost

    def settle(self, reserved: Usage, spent: Usage) -> None:
        """Replace a reservation by what the answer really cost (nothing, where there was none)."""
        set_aside, cost = self._cost(reserved), self._cost(spent)
        for budget in self._chain():
            budget._reserved = budget._reserved - reserved
            budget._reserved_money -= set_aside
            budget.spent = budget.spent + spent
            budget.money += cost

    def count_duplicates(self, n: int) -> None:
        """Note n pairs that had been scored before and were not sent again."""
        for budget in self._chain():
            budget.duplicates += n

    def count_stored(self, n: int) -> None:
        """Note n pairs whose answers came from the shared store and cost nothing."""
        for budget in self._chain():
            budget.stored += n

    def _cost(self, work: Usage) -> Decimal:
        return Decimal(0) if self.price is None else self.price.of(work)

    def _check(self, work: Usage, cost: Decimal) -> None:
        """Parents first, so that the run's end is not taken for a client's own."""
        if work == Usage():
            return
        if self.parent is not None:
            self.parent._check(work, cost)
        used, money = self.spent + self._reserved + work, self.money + self._reserved_money + cost
        for limits, own in ((self.limits, self.parent is not None), (self.grant, False)):
            if limits.scored is not None and used.scored > limits.scored:
                raise BudgetSpent("scored examples", own)
            if limits.tokens is not None and used.prompt_tokens > limits.tokens:
                raise BudgetSpent("tokens", own)
            if limits.seconds is not None and self._standing is None and self.seconds >= limits.seconds:
                raise BudgetSpent("seconds", own)
            if limits.money is not None and money > limits.money:
                raise BudgetSpent("money", own)

    def _chain(self) -> Iterator[Budget]:
        """This one and its parents."""
        budget: Budget | None = self
        while budget is not None:
            yield budget
            budget = budget.parent


@contextlib.contextmanager
def shared_out(budgets: Sequence[Budget], needs: Sequence[int]) -> Iterator[None]:
    """While it lasts, what is left of the run's budget is dealt out to the clients, if they may need more.

    Without that the client that asks first would get the last scored example, and a run that is done again,
    or goes on from its journal, would be another one.

    Args:
        budgets: The clients'.
        needs: Scored examples that each of them may ask for at most.
    """
    for budget, grant in zip(budgets, _grants(budgets, needs), strict=True):
        budget.grant = grant
    try:
        yield
    finally:
        for budget in budgets:
            budget.grant = Limits()


def _grants(budgets: Sequence[Budget], needs: Sequence[int]) -> list[Limits]:
    """What each client may have spent in all in the end: what it has now, and its part of what is left."""
    run, total = budgets[0].parent, sum(needs)
    if run is None or not total:
        return [Limits()] * len(budgets)
    used, limits, n = run.spent + run._reserved, run.limits, max(run.spent.scored, 1)
    tokens, money = _MARGIN * run.spent.prompt_tokens / n, Decimal(_MARGIN) * run.money / n  # of an example
    scarce = Limits()  # what is left of that which may not do
    if limits.scored is not None and total > (left := limits.scored - used.scored):
        scarce = replace(scarce, scored=left)
    if limits.tokens is not None and total * tokens > (left := limits.tokens - used.prompt_tokens):
        scarce = replace(scarce, tokens=left)
    if limits.money is not None and total * money > (rest := limits.money - run.money - run._reserved_money):
        scarce = replace(scarce, money=rest)
    return [
        Limits(
            None if scarce.scored is None else budget.spent.scored + scarce.scored * need // total,
            None if scarce.tokens is None else budget.spent.prompt_tokens + scarce.tokens * need // total,
            money=None if scarce.money is None else budget.money + scarce.money * need / total,
        )
        for budget, need in zip(budgets, needs, strict=True)
    ]
