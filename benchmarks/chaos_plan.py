"""What is done to a run, and when: drawn before it, by a seed. Part of `chaos.py`; pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal[
    "kill party", "kill supernode", "kill machine", "freeze", "kill coordinator", "cut", "stall"
]  # fmt: skip
KINDS: Final[tuple[Kind, ...]] = (
    "kill machine", "kill party", "kill supernode", "freeze", "freeze", "kill coordinator",
    "kill coordinator", "cut", "stall",
)  # fmt: skip
"""What may happen; twice is twice as likely."""


@dataclass(frozen=True, slots=True)
class Strike:
    """Something that happens to a run.

    Attributes:
        at: Seconds after its beginning.
        kind: What. A machine is a party's process with its SuperNode.
        party: To whom; empty for the coordinator.
        lasts: Seconds until it is put right: started again, let go on, connected again. A SuperNode is
            its party's business, at once.
    """

    at: float
    kind: Kind
    party: str
    lasts: float

    def __str__(self) -> str:
        return f"{self.at:.0f} s: {self.kind} {self.party}".rstrip() + f" for {self.lasts:.0f} s"


def drawn(seed: int, number: int, seconds: float, deadline: float, parties: Sequence[str]) -> list[Strike]:
    """One to three strikes for a run, in the order of their moments.

    Args:
        seed: Of all runs.
        number: The run's.
        seconds: That an undisturbed run takes.
        deadline: Seconds that a party has for an answer.
        parties: Their names.
    """
    draw = random.Random(f"{seed}-{number}")
    strikes = []
    for _ in range(draw.choice((1, 2, 2, 3))):
        kind = draw.choice(KINDS)
        longest = 1.6 * deadline if kind in ("freeze", "cut", "stall") else 0.5 * deadline
        strikes.append(
            Strike(
                at=draw.uniform(0.02, 0.95) * seconds,
                kind=kind,
                party="" if kind == "kill coordinator" else draw.choice(parties),
                lasts=draw.uniform(1, longest),
            )
        )
    return sorted(strikes, key=lambda strike: strike.at)


def bound(messages: int, deadline: float, strikes: Sequence[Strike], start: float) -> float:
    """Seconds within which a run must end, from its settings.

    Each question is answered, or its deadline is over, and then the next one follows. A coordinator that is
    started again goes on where it was; so a start is added for each, and a round that ends without a quorum
    is asked for once more.

    Args:
        messages: That an undisturbed run takes one after the other.
        deadline: Seconds that a party has for an answer.
        strikes: What is done to it.
        start: Seconds that a coordinator has to start.
    """
    again = sum(strike.kind == "kill coordinator" for strike in strikes)
    return messages * deadline + (1 + again) * start + sum(strike.lasts for strike in strikes)
