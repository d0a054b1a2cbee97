"""Fitting a verbalizer: over clients that are reached by messages, or on texts that lie in one place.

Both are the conversation of `protocol`; the second has one client, in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy.typing as npt

from fedbpt_api.errors import FedbptError, QuotaError
from fedbpt_api.scoring.backend import Bools
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.verbalizer.checks import Asked, problem
from fedbpt_api.verbalizer.client import ClientFit
from fedbpt_api.verbalizer.messages import Message, decode, encode
from fedbpt_api.verbalizer.problem import FitError
from fedbpt_api.verbalizer.protocol import Outcome, protocol
from fedbpt_api.verbalizer.regression import Ints
from fedbpt_api.verbalizer.verbalizer import Kind, Verbalizer


class Answering(Protocol):
    """A client that can be reached; `ClientFit` is one."""

    @property
    def name(self) -> str: ...

    @property
    def n(self) -> int:
        """Its texts."""

    async def answer(self, message: bytes) -> bytes:
        """Answer a message of the fit."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit chose and cost.

    Attributes:
        kind: What was chosen.
        shrinkage: Strength of the covariance's shrinkage; None where there are no weights.
        loss: Cross-validated loss of what was chosen, in nats a text; 0 without texts.
        losses: The same for each candidate, the simplest first: "words", then "bias", or "scale and bias",
            "weighted 0.9", ...
        n: Training texts of all clients.
        held_out: Each client's texts and the sum of their cross-validated losses, by name.
        residual: Largest gradient component at the end.
        exchanges: Messages sent to each client.
        bytes_up: Bytes from each client, by name.
        bytes_down: Bytes to each client, by name.
    """

    kind: Kind
    shrinkage: float | None
    loss: float
    losses: dict[str, float]
    n: int
    held_out: dict[str, tuple[int, float]]
    residual: float
    exchanges: int
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]


async def fit_over_clients(
    clients: Sequence[Answering],
    words: Sequence[int],
    groups: Sequence[Sequence[int]],
    *,
    kind: Kind = "weighted",
) -> tuple[Verbalizer, FitReport]:
    """Fit one verbalizer for all clients; each sends sums over its texts, and no model is called.

    At most 20 exchanges and 256 kB a client. The order of `clients` and of their answers does not matter.

    Args:
        clients: Who holds texts; names must differ.
        words: Token ids of the T <= 128 words, label words first; the same at every client.
        groups: For each label the columns of its words.
        kind: The richest kind allowed; cross-validation may choose a simpler one.

    Raises:
        FitError: No client, names that repeat; or a client that fails, or whose answer cannot be used: it
            has that client's name.
        Exception: Whatever else a client's `answer` raises.
    """
    names = [client.name for client in clients]
    if not names or len(set(names)) != len(names):
        raise FitError(f"expected clients with different names, got {names}")
    ordered = sorted(clients, key=lambda client: client.name)
    up, down = dict.fromkeys(sorted(names), 0), dict.fromkeys(sorted(names), 0)
    talk = protocol(words, groups, kind)
    exchanges = 0
    try:
        message = next(talk)
        while True:
            data = encode(message)
            answers = await asyncio.gather(*(_answer(client, data) for client in ordered))
            exchanges += 1
            for client, answer in zip(ordered, answers, strict=True):
                up[client.name] += len(answer)
                down[client.name] += len(data)
            read = [
                _checked(client.name, Asked(len(groups), len(words), client.n), message, answer)
                for client, answer in zip(ordered, answers, strict=True)
            ]
            message = talk.send(read)
    except StopIteration as end:
        return _report(end.value, exchanges, up, down)


async def _answer(client: Answering, question: bytes) -> bytes:
    """A client's answer; what goes wrong at it is told with its name.

    Raises:
        FitError: It failed.
    """
    try:
        return await client.answer(question)
    except FitError:
        raise
    except QuotaError:
        raise
    except BudgetSpent as end:
        if not end.own:
            raise
        raise FitError(f"{client.name}: its own budget is spent", "", client.name) from end
    except (FedbptError, TimeoutError) as error:
        told = error.message if isinstance(error, FedbptError) else "no answer in time"
        hint = error.hint if isinstance(error, FedbptError) else ""
        raise FitError(f"{client.name}: {told}", hint, client.name) from error


def _checked(name: str, asked: Asked, question: Message, answer: bytes) -> Message:
    """An answer, read.

    Raises:
        FitError: It is none to the question, or cannot be true.
    """
    try:
        message = decode(answer)
    except FitError as error:
        raise FitError(f"{name}: {error.message}", error.hint, name, refused=True) from error
    if found := problem(asked, question, message):
        why = f"{name} cannot take part in a fit: {found}"
        raise FitError(why, "do all run the same version?", name, refused=True)
    return message


def fit(
    logprobs: npt.ArrayLike,
    labels: Ints,
    words: Sequence[int],
    groups: Sequence[Sequence[int]],
    *,
    kind: Kind = "weighted",
    exact: Bools | None = None,
) -> tuple[Verbalizer, FitReport]:
    """Fit a verbalizer on texts that lie in one place.

    Args:
        logprobs: Natural-log probabilities of the T words, shape [n, T].
        labels: Indices of `groups`, shape [n].
        words: Token ids of the T words, label words first.
        groups: For each label the columns of its words.
        kind: The richest kind allowed.
        exact: False where `logprobs` are bounds, shape [n, T]; all are values where not given.
    """
    client = ClientFit("all", logprobs, labels, groups, exact=exact)
    talk = protocol(words, groups, kind)
    exchanges, up, down = 0, 0, 0
    try:
        message = next(talk)
        while True:
            data = encode(message)
            answer = encode(client.reply(decode(data)))
            exchanges, up, down = exchanges + 1, up + len(answer), down + len(data)
            message = talk.send([decode(answer)])
    except StopIteration as end:
        return _report(end.value, exchanges, {"all": up}, {"all": down})


def _report(
    outcome: Outcome, exchanges: int, up: dict[str, int], down: dict[str, int]
) -> tuple[Verbalizer, FitReport]:
    """What `protocol` returned, with what the transport counted."""
    report = FitReport(
        kind=outcome.verbalizer.kind,
        shrinkage=outcome.shrinkage,
        loss=outcome.loss,
        losses=outcome.losses,
        n=outcome.n,
        held_out=dict(zip(sorted(up), outcome.held_out, strict=True)),
        residual=outcome.residual,
        exchanges=exchanges,
        bytes_up=up,
        bytes_down=down,
    )
    return outcome.verbalizer, report
