"""A party's side of sums that hide their parts: no answer about its texts leaves it unless it is masked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import orjson

from fedbpt_api.aggregate.state import GlobalState, Update
from fedbpt_api.aggregate.summed import Weighing, weighed
from fedbpt_api.federation import plain
from fedbpt_api.federation.envelope import Envelope, seal
from fedbpt_api.federation.forgotten import Forgotten
from fedbpt_api.federation.local_search import Searched
from fedbpt_api.federation.masks import Masks
from fedbpt_api.federation.messages import Broadcast, MessageError, decode_update, encode_update
from fedbpt_api.federation.summable import packed
from fedbpt_api.verbalizer.discriminant import square

OPEN: Final = frozenset({"done", "facts", "lines", "keys", "scalars"})
"""Kinds of answers that tell nothing of texts, or what `docs/deploy.md` says is told."""

_MOST_TOKENS = 1 << 22


class Hidden:
    """What a party needs to mask its answers.

    Args:
        masks: Its masks.
    """

    def __init__(self, masks: Masks) -> None:
        self._masks = masks
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
        return Envelope("masked", fields, self._masks.masked(common(question), row))

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
        """Its last search's part of the sums."""
        if self._last is None or self._last[0].round != plain.whole(fields["round"]):
            raise Forgotten(f"{self._masks.name} was started again")
        broadcast, update = self._last
        told = Weighing(
            {str(name): plain.finite(weight) for name, weight in fields["weights"].items()},
            plain.finite(fields["sigma"]),
            fields["second"] is True,
        )
        count = sum(weight > 0 for weight in told.weights.values())
        row = weighed(update.mean, _state(broadcast, body), told, update.client, count)
        return Envelope("weighed", {}, row.astype("<f8").tobytes())


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
