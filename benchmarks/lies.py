"""Parties that lie in every answer, to measure what one of them can do to a run.

A liar stands between a party and the server, as a party with changed software would, and changes the numbers
of each answer on their way: of the word list, of made-up lines, of a verbalizer's fit, of losses, of
searches. How many texts it holds it says truly (every answer is held against that), and so it
counts its test texts: of these nobody else knows anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np

from fedbpt_api.federation.client import Client
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.messages import decode_update, encode_update
from fedbpt_api.federation.party import Party
from fedbpt_api.federation.remote import RemoteParty
from fedbpt_api.federation.responder import Responder
from fedbpt_api.run.config import Settings
from fedbpt_api.run.opening import open_parties
from fedbpt_api.run.parties import Keep, Parties, PartiesOpener
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.task import Task
from fedbpt_api.verbalizer import decode, encode

LIES: Final = ("NaN", "sign flip", "100 x norm", "always the lowest loss", "copied", "random")
"""What a liar does to its numbers."""

_COUNTS = frozenset({"labels", "n", "bounded"})  # of a fit's messages: told truly
_FAR = 3.0  # where the search of who always has the lowest loss ends, in every coordinate
_LOWEST = -1e30


def reached_through(between: Callable[[Client], Exchange]) -> PartiesOpener:
    """Opens parties in this process that are reached by envelopes only, through whatever stands between."""

    async def opener(settings: Settings, task: Task, stopping: Callable[[], bool], keep: Keep) -> Parties:
        parties = await open_parties(settings, task, stopping, keep)
        remote: list[Party] = []
        for client in parties.local:
            client.budget.parent = Budget()
            remote.append(await RemoteParty.reach(between(client), parties.budget))
        parties.clients[:] = remote
        return parties

    return opener


def lying(lie: str, liar: str, seed: int = 0) -> Callable[[Client], Exchange]:
    """What makes the exchange with each party; that of the liar changes every answer.

    Args:
        lie: One of `LIES`.
        liar: Name of the party.
        seed: Of random numbers.
    """
    rng = np.random.default_rng(seed)
    seen: dict[bytes, Envelope] = {}  # what others answered, by question

    def between(client: Client) -> Exchange:
        responder = Responder(client)

        async def exchange(data: bytes) -> bytes:
            question, answer = opened(data), opened(await responder.answer(data))
            asked = seal(replace(question, fields={**question.fields, "grant": 0}))
            if client.name != liar:
                seen.setdefault(asked, answer)
                return seal(answer)
            told = answer.fields["answer"]
            if lie == "copied":
                if answer.kind == "update":
                    return seal(_copied_update(answer, seen, client))
                other = seen.get(asked)
                if other is None or other.kind not in _CHANGED:
                    return seal(answer)
                fields_ = {**answer.fields, "answer": other.fields["answer"]}
                return seal(Envelope(answer.kind, fields_, other.body))
            if answer.kind not in _CHANGED:
                return seal(answer)
            told, body = _CHANGED[answer.kind](lie, rng, told, answer.body)
            return seal(Envelope(answer.kind, {**answer.fields, "answer": told}, body))

        return exchange

    return between


def changed(values: Floats, lie: str, rng: np.random.Generator) -> Floats:
    """Numbers that are lied about; 0 stays 0, random ones have the signs and the size of the true ones."""
    match lie:
        case "NaN":
            return np.full_like(values, np.nan)
        case "sign flip":
            return -values
        case "100 x norm":
            return 100 * values
        case "always the lowest loss":
            return np.zeros_like(values)
    size = float(np.abs(values).max(initial=0.0)) * rng.random(values.shape)
    mixed = bool((values < 0).any() and (values > 0).any())
    signs = rng.choice([-1.0, 1.0], values.shape) if mixed else np.sign(values)
    return np.where(values == 0, 0.0, signs * size)


Told = dict[str, Any]
Change = Callable[[str, np.random.Generator, Told, bytes], tuple[Told, bytes]]


def _number(value: float, lie: str, rng: np.random.Generator) -> float | None:
    """One number, as JSON has it."""
    found = float(changed(np.array([float(value)]), lie, rng)[0])
    return None if np.isnan(found) else found


def _word_sums(lie: str, rng: np.random.Generator, told: Told, body: bytes) -> tuple[Told, bytes]:
    return {"pairs": [[token, _number(total, lie, rng)] for token, total in told["pairs"]]}, body


def _lines(lie: str, rng: np.random.Generator, told: Told, body: bytes) -> tuple[Told, bytes]:
    """Lines for the wrong label, whose label is certain."""
    labels = [line["label"] for line in told["lines"]]
    sure = None if lie == "NaN" else 1.0 if lie == "sign flip" else 0.0
    lines = [
        {**line, "label": label, "confidence": sure}
        for line, label in zip(told["lines"], labels[::-1], strict=True)
    ]
    return {"lines": lines}, body


def _sums(lie: str, rng: np.random.Generator, told: Told, body: bytes) -> tuple[Told, bytes]:
    correct = {"always the lowest loss": told["n"], "random": int(rng.integers(told["n"] + 1))}
    loss = _number(told["loss"], lie, rng)
    return {"n": told["n"], "loss": loss, "correct": correct.get(lie, told["correct"])}, body


def _joint_losses(lie: str, rng: np.random.Generator, told: Told, body: bytes) -> tuple[Told, bytes]:
    return {"losses": [_number(value, lie, rng) for value in told["losses"]]}, body


def _moments(lie: str, rng: np.random.Generator, told: Told, body: bytes) -> tuple[Told, bytes]:
    parts = [_message(body[: told["plain"]], lie, rng), _message(body[told["plain"] :], lie, rng)]
    return {"plain": len(parts[0])}, b"".join(parts)


def _fit_message(lie: str, rng: np.random.Generator, told: Told, body: bytes) -> tuple[Told, bytes]:
    return told, _message(body, lie, rng)


def _message(data: bytes, lie: str, rng: np.random.Generator) -> bytes:
    """A message of a fit, its counts as they are; who has the lowest loss tells of texts as they are."""
    message: Any = decode(data)
    names = {field.name for field in fields(message)} - _COUNTS
    if lie == "always the lowest loss" and "means" in names:
        return data
    return encode(replace(message, **{name: changed(getattr(message, name), lie, rng) for name in names}))


def _update(lie: str, rng: np.random.Generator, told: Told, body: bytes) -> tuple[Told, bytes]:
    update = decode_update(body)
    match lie:
        case "NaN":
            return told, body[: -4 * len(update.mean)] + np.full(len(update.mean), np.nan, "<f4").tobytes()
        case "always the lowest loss":
            update = replace(update, mean=update.mean + _FAR, loss=_LOWEST)
        case "random":
            update = replace(update, mean=rng.normal(size=len(update.mean)), loss=float(rng.normal()))
        case _:
            update = replace(update, mean=changed(update.mean, lie, rng))
    return told, encode_update(update)


def _proposal(lie: str, rng: np.random.Generator, told: Told, body: bytes) -> tuple[Told, bytes]:
    numbers = np.frombuffer(body, dtype="<f4").astype(np.float64)
    found = numbers + _FAR if lie == "always the lowest loss" else changed(numbers, lie, rng)
    return told, found.astype("<f4").tobytes()


_CHANGED: Final[Mapping[str, Change]] = {
    "word sums": _word_sums,
    "lines": _lines,
    "moments": _moments,
    "fit message": _fit_message,
    "sums": _sums,
    "joint losses": _joint_losses,
    "update": _update,
    "proposal": _proposal,
}


def _copied_update(answer: Envelope, seen: Mapping[bytes, Envelope], client: Client) -> Envelope:
    """Another's last update, under the liar's name."""
    others = [decode_update(other.body) for other in seen.values() if other.kind == "update"]
    own = decode_update(answer.body)
    found = [other for other in others if other.round == own.round]
    if not found:
        return answer
    copy = replace(found[0], client=client.name, n=own.n, scored=own.scored)
    return Envelope(answer.kind, answer.fields, encode_update(copy))
