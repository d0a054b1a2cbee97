"""What a run tells while it goes on: typed events, in order, for callbacks and async iteration."""

from __future__ import annotations

from dataclasses import dataclass

from fedbpt_api.run.result import RoundRecord, RunResult


@dataclass(frozen=True, slots=True)
class Started:
    """Everything was checked; scoring begins."""

    clients: tuple[str, ...]
    texts: dict[str, tuple[int, int]]
    model: str
    scored_limit: int | None


@dataclass(frozen=True, slots=True)
class Warned:
    """Something a user should know, and that does not stop the run."""

    message: str


@dataclass(frozen=True, slots=True)
class Noted:
    """Something was decided by looking at the data or the server."""

    message: str


@dataclass(frozen=True, slots=True)
class Assessed:
    """A prompt was scored on all clients' texts, its verbalizer fitted; NaN where not measured.

    `scored` is how many examples the run had scored by then.
    """

    prompt: str
    origin: str
    train_loss: float
    loss: float
    dev_loss: float
    dev_accuracy: float
    chosen: bool
    scored: int = 0


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A round was merged and its prompt assessed."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Testing:
    """The search is over; the test texts are read now, once."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    texts: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over; everything is on disk."""

    result: RunResult


Event = Started | Warned | Noted | Assessed | RoundDone | Testing | Finished


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot for progress displays.

    Attributes:
        phase: "words", "starting prompts", "search", "test" or "done".
        round: Rounds merged so far.
        scored: Scored examples spent.
        left: Scored examples left, None without such a limit.
        seconds: Since scoring began.
        rate: Scored examples a second, over the whole run so far.
        clients: For each client, scored examples spent.
        tested: Test pairs answered, and how many there are.
        notice: What slows the run down just now; empty while all is well.
        money: What was paid so far, for people; empty where there is no price.
    """

    phase: str
    round: int
    scored: int
    left: int | None
    seconds: float
    rate: float
    clients: dict[str, int]
    tested: tuple[int, int] = (0, 0)
    notice: str = ""
    money: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Time until the scored-example budget is spent at the present rate."""
        return self.left / self.rate if self.left is not None and self.rate > 0 else None
