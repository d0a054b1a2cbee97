"""A party's side of sums that hide their parts: no answer about its texts leaves it unless it is masked.

A mask belongs to a question and to all that the answer depends on but the party's texts: the task, the words
that are read, what a fit is of, where a search began. So parties that were told different things have masks
that do not vanish, and nobody can have the same question answered of one thing by one and of another by all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from fedbpt_api.aggregate.fedbpt import constants
from fedbpt_api.aggregate.state import GlobalState, Update
from fedbpt_api.aggregate.summed import Weighing, weighed
from fedbpt_api.federation import plain
from fedbpt_api.federation.envelope import Envelope, seal
from fedbpt_api.federation.forgotten import Forgotten
from fedbpt_api.federation.local_search import Searched
from fedbpt_api.federation.masks import LEAST, Masks
from fedbpt_api.federation.messages import Broadcast, MessageError, decode_update, encode_update
from fedbpt_api.federation.summable import packed
from fedbpt_api.prompts.tuned import read_json, write_json
from fedbpt_api.verbalizer.discriminant import square

OPEN: Final = frozenset({"done", "facts", "lines", "keys", "scalars"})
"""Kinds of answers that tell nothing of texts, or what `docs/deploy.md` says is told."""

_LIMIT = 10_000_000  # bytes of the file of weighings
_MOST_TOKENS = 1 << 22
_SLIGHTEST = 0.01  # of the largest weight, that the third largest must have


class Hidden:
    """What a party needs to mask its answers.

    Args:
        masks: Its masks.
        about: The task that it was told; the same for all.
        place: Where it keeps what its searches were weighed with; None keeps it in memory.
    """

    def __init__(self, masks: Masks, about: bytes = b"", place: Path | None = None) -> None:
        self._masks = masks
        self._about = digest(about)
        self._words = self._rounds = self._begun = b""  # what was told last, and where the last search began
        self._fits: dict[str, bytes] = {}
        self._place = place
        self._weighings: dict[str, str] = {}  # of each round, a hash
        if place is not None and place.exists():
            self._weighings = {str(k): str(v) for k, v in read_json(place, _LIMIT)["rounds"].items()}
        self._last: tuple[Broadcast, Update] | None = None  # its last search, of which only sums are told

    def keys(self) -> Envelope:
        """Its public key."""
        return Envelope("keys", {"key": self._masks.public.hex()})

    def peers(self, fields: Mapping[str, Any]) -> Envelope:
        """Take the others' keys."""
        self._masks.meet({str(name): bytes.fromhex(key) for name, key in fields["keys"].items()})
        return Envelope("done", {})

    def hide(self, question: Envelope, answer: Envelope) -> Envelope:
        """The answer as it may leave.

        Raises:
            Forgotten: The party was started again, and has agreed with nobody.
            MessageError: It cannot be masked.
        """
        state = self._state(question)
        if answer.kind in OPEN:
            return answer
        if not self._masks.agreed:
            raise Forgotten(f"{self._masks.name} was started again")
        size = question.fields.get("size", 0)
        if answer.kind == "weighed":
            layout, row = ["weighed"], np.frombuffer(answer.body)
        else:
            layout, row = packed(answer, plain.whole(size, 0, _MOST_TOKENS))
        fields = {"layout": layout, "agreed": self._masks.agreed.hex()}
        return Envelope("masked", fields, self._masks.masked(state + common(question), row))

    def _state(self, question: Envelope) -> bytes:
        """What an answer depends on beside the question; what this question tells is remembered."""
        told = digest(common(question))
        match question.kind:
            case "words":
                self._words = told
            case "rounds":
                self._rounds = digest(self._words + told)
            case "search":
                self._begun = digest(self._rounds + told)
            case "fit":
                self._fits[str(question.fields["fit"])] = digest(self._words + told)
            case "fit message":
                return digest(self._about + self._fits.get(str(question.fields["fit"]), b""))
            case "weighed":
                return digest(self._about + self._begun)
            case "word sums":
                return self._about  # it is not of the words that are read, which some may know already
        return digest(self._about + self._words)

    def scalars(self, broadcast: Broadcast, searched: Searched) -> Envelope:
        """All that is told of a search before it is weighed."""
        update = decode_update(encode_update(searched.update))  # rounded as every update is that travels
        self._last = (broadcast, update)
        told = update.to_dict()
        del told["mean"]
        return Envelope(
            "scalars",
            told | {"distinct": searched.distinct, "spent": searched.spent, "moved": searched.moved},
        )

    def weighed(self, fields: Mapping[str, Any], body: bytes) -> Envelope:
        """Its last search's part of the sums.

        Raises:
            Forgotten: It has not searched in that round.
            MessageError: The weights would show one party more than the others.
        """
        if self._last is None or self._last[0].round != plain.whole(fields["round"]):
            raise Forgotten(f"{self._masks.name} was started again")
        broadcast, update = self._last
        told = Weighing(
            {str(name): plain.finite(weight) for name, weight in fields["weights"].items()},
            plain.finite(fields["sigma"]),
            fields["second"] is True,
        )
        _check(told, len(update.mean))
        self._weigh_once(broadcast.round, fields["weights"])
        count = sum(weight > 0 for weight in told.weights.values())
        row = weighed(update.mean, _state(broadcast, body), told, update.client, count)
        return Envelope("weighed", {}, row.astype("<f8").tobytes())

    def _weigh_once(self, number: int, weights: Mapping[str, float]) -> None:
        """Refuse to weigh a round's search twice, or another in its place, drawn from the same numbers.

        Raises:
            MessageError: It was weighed otherwise.
        """
        told = digest(self._begun + orjson.dumps(weights, option=orjson.OPT_SORT_KEYS)).hex()
        if self._weighings.get(str(number), told) != told:
            raise MessageError("a round is weighed once: sums with other weights would tell its searches")
        if str(number) not in self._weighings:
            self._weighings[str(number)] = told
            if self._place is not None:
                write_json(self._place, {"rounds": self._weighings})


def _check(told: Weighing, dimension: int) -> None:
    """Refuse weights with which a sum would be nearly one party's.

    Raises:
        MessageError: Fewer than three parties have one; they are none of the rule's; or, where they are
            shares of texts, which this party does not know of others, they fall off too far.
    """
    weights = sorted((weight for weight in told.weights.values() if weight != 0), reverse=True)
    if len(weights) < LEAST or weights[-1] <= 0:
        raise MessageError(f"a sum of steps must be over {LEAST} parties or more")
    if told.second:
        if not np.allclose(weights, constants(dimension, len(weights)).weights, rtol=1e-9, atol=0):
            raise MessageError("weights that are not the rule's")
    elif weights[LEAST - 1] < _SLIGHTEST * weights[0]:
        raise MessageError("weights that hide one party behind next to nothing")


def digest(data: bytes) -> bytes:
    """32 bytes that stand for `data`."""
    return hashlib.blake2b(data, digest_size=32).digest()


def common(question: Envelope) -> bytes:
    """What a question is for all parties: without what each of them is granted."""
    fields = {key: value for key, value in question.fields.items() if key != "grant"}
    return seal(Envelope(question.kind, orjson.loads(orjson.dumps(fields)), question.body))


def _state(broadcast: Broadcast, body: bytes) -> GlobalState:
    """Where the search began, with the server's covariance where it was sent: its upper triangle."""
    state = GlobalState.first(broadcast.mean, broadcast.sigma)
    if not body:
        return state
    d = state.dimension
    upper = np.frombuffer(body, dtype="<f8")
    if upper.size != d * (d + 1) // 2 or not np.isfinite(upper).all():
        raise MessageError(f"a covariance of {upper.size} numbers, for {d} coordinates")
    return replace(state, covariance=square(upper))
