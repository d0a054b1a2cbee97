"""The records of a run: each round's numbers, what was spent, and the final test.

They hold numbers, names of clients and prompts only, never a text, a label of a text or the score
of one. Each converts to plain JSON types and back; NaN and infinity are written as null and read
back as NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedbpt_api.run import plain

ALL_CLIENTS = "*"
"""The client name of rows that take all clients together."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one set of test texts.

    Attributes:
        method: "majority", "start", "start+bias", "start+weighted", "start+weighted+dev" or "tuned".
        client: Name of the client, or `ALL_CLIENTS`.
        n: Test texts.
        correct: Those classified correctly.
        accuracy: correct / n, 0 to 1.
        ci_low: Lower end of the 95 % interval of the accuracy, 0 to 1.
        ci_high: Upper end of it.
        macro_f1: Mean F1 over the labels that occur in the truth or in the predictions, 0 to 1.
        confusion: Counts, rows the true label, columns the predicted one; shape [C, C].
    """

    method: str
    client: str
    n: int
    correct: int
    accuracy: float
    ci_low: float
    ci_high: float
    macro_f1: float
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return _encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Row:
        """Reads `to_dict`; raises `RunFolderError` naming the key that is wrong."""
        return plain.decode(cls, data)


@dataclass(frozen=True, slots=True)
class Paired:
    """The tuned prompt against another method on the same test texts.

    Attributes:
        against: Name of the other method.
        difference: Accuracy of the tuned prompt minus that of the other, -1 to 1.
        ci_low: Lower end of the 95 % interval of the difference.
        ci_high: Upper end of it.
        wins: Texts that only the tuned prompt gets right.
        losses: Texts that only the other method gets right.
        p_value: Exact McNemar test, two-sided.
    """

    against: str
    difference: float
    ci_low: float
    ci_high: float
    wins: int
    losses: int
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return _encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Paired:
        """Reads `to_dict`; raises `RunFolderError` naming the key that is wrong."""
        return plain.decode(cls, data)


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """One client's part in one round.

    Attributes:
        client: Name of the client.
        answered: Whether its update took part in the merge.
        loss: Mean training loss of its local search's best candidate; NaN where it did not answer.
        dev_loss: Loss of the merged mean's prompt on its development texts; NaN where not measured.
        dev_accuracy: Accuracy of the same, 0 to 1; NaN where not measured.
        scored: Examples scored for it in this round.
        distinct: Share of distinct prompts among its candidates, 0 to 1.
        note: Why it did not answer, or another remark; empty as a rule.
        bytes_up: Bytes it sent in this round; 0 where not recorded.
        bytes_down: Bytes sent to it in this round; 0 where not recorded.
    """

    client: str
    answered: bool
    loss: float
    dev_loss: float
    dev_accuracy: float
    scored: int
    distinct: float
    note: str = ""
    bytes_up: int = 0
    bytes_down: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return _encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> ClientRecord:
        """Reads `to_dict`; raises `RunFolderError` naming the key that is wrong."""
        return plain.decode(cls, data)


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round. Counts, seconds and bytes are of this round alone, not running totals.

    What was spent before the first search round (starting prompts, word lists) is round 0.

    Attributes:
        round: Number of the round, from 0.
        dev_loss: Development loss of the merged mean's prompt, pooled over clients.
        dev_accuracy: Development accuracy of the same, 0 to 1.
        best_dev_loss: Smallest pooled development loss so far, this round included.
        best_dev_accuracy: Development accuracy of the prompt that has it.
        sigma: Global step size after the merge.
        distinct: Share of distinct prompts among all candidates, 0 to 1.
        scored: Examples scored in this round by all clients.
        tokens: Prompt tokens of these, cached ones included.
        seconds: Wall-clock time of the round.
        bytes_up: Bytes sent by all clients.
        bytes_down: Bytes sent to all clients.
        clients: One record a client.
        prompt: The best prompt so far.
    """

    round: int
    dev_loss: float
    dev_accuracy: float
    best_dev_loss: float
    best_dev_accuracy: float
    sigma: float
    distinct: float
    scored: int
    tokens: int
    seconds: float
    bytes_up: int
    bytes_down: int
    clients: tuple[ClientRecord, ...]
    prompt: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return _encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> RoundRecord:
        """Reads `to_dict`; raises `RunFolderError` naming the key that is wrong."""
        return plain.decode(cls, data)


@dataclass(frozen=True, slots=True)
class TestReport:
    """The methods side by side on the untouched test texts.

    Attributes:
        labels: Names of the labels, in the order of the confusion matrices; length C.
        rows: All clients together first (`ALL_CLIENTS`), then client by client.
        paired: The tuned prompt against others, on all clients together.
        worse: Clients on which the tuned prompt is less accurate than "start+bias".
    """

    __test__ = False  # not a test class, whatever pytest thinks of the name

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    paired: tuple[Paired, ...]
    worse: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return _encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> TestReport:
        """Reads `to_dict`; raises `RunFolderError` naming the key that is wrong."""
        return plain.decode(cls, data)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to.

    Attributes:
        folder: The run folder, None for a run that keeps nothing on disk.
        prompt: The tuned prompt.
        start: The user's starting prompt.
        stopped: Why the search ended: "budget", "rounds", "settled" (no gain expected), "cap" or "cancelled".
        rounds: Every round.
        spent: Client name to counts: "scored", "duplicates", "stored" (found in the shared store),
            "prompt_tokens", "cached_tokens", "requests", "money" where the price is known, and
            "test_scored" and the like for the final test, which is counted apart.
        test: The final test; None where there was no test data or the run was cancelled.
        currency: What money is counted in; empty where a price is not known.
        privacy: What was spent of privacy, or what the server could not see, as a sentence.
    """

    folder: str | None
    prompt: str
    start: str
    stopped: str
    rounds: tuple[RoundRecord, ...]
    spent: dict[str, dict[str, int | float]]
    test: TestReport | None
    currency: str = ""
    privacy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return _encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> RunResult:
        """Reads `to_dict`; raises `RunFolderError` naming the key that is wrong."""
        return plain.decode(cls, data)


def _encode(record: object) -> dict[str, Any]:
    encoded = plain.encode(record)
    assert isinstance(encoded, dict)
    return encoded
