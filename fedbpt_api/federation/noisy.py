"""A party that answers with noise (`noise`): few questions, each with a sensitivity that is known.

A prompt is judged by two kinds of release: sums of centred label log-probabilities over training texts, from
which the server fits a bias, and sums of clipped losses. CMA-ES's mean and loss are one release together; its
step sizes are told as those that it began with. Whatever else a party can be asked is refused, and so is what
a release could fail for: whether it did would be told without noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import sqrt
from typing import Any, Final, Literal

import numpy as np

from fedbpt_api.aggregate import Update
from fedbpt_api.federation import plain
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.envelope import Envelope, seal
from fedbpt_api.federation.forgotten import Forgotten
from fedbpt_api.federation.local_search import Plan, Reference
from fedbpt_api.federation.messages import Broadcast, MessageError, encode_broadcast, encode_update
from fedbpt_api.federation.noise import Noise, bounded, clipped, whole_counts
from fedbpt_api.federation.responder import Act, Responder
from fedbpt_api.federation.tally import Contestant, PairedCounts, Tally, rivals_of
from fedbpt_api.prompts.space import Asked, Ids, PromptSpace
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer import Reading

ANSWERED: Final = frozenset({"facts", "words", "write", "label sums", "evaluate", "rounds", "search", "test"})
"""Questions that are answered; "facts" and "write" are not about texts, but for what `promise` says."""

KINDS: Final = ("words", "bias")
"""Verbalizers that texts are read by: weights, divided by what one likes, could pick texts out."""

_PAIRED = ("both", "wins", "losses", "neither")


class NoisyResponder(Responder):
    """Answers for one client, with noise.

    Args:
        client: As for `Responder`.
        noise: Its releases.
        labels: How many the task has.
        tokens: As for `Responder`.
        life: As for `Responder`.
        batch: As for `Responder`.
    """

    def __init__(
        self,
        client: Client,
        noise: Noise,
        labels: int,
        tokens: Ids = (),
        life: str = "",
        batch: int = 1,
    ) -> None:
        super().__init__(client, tokens, life, batch=batch)
        self._labels = labels
        self._noise = noise
        self._promise = noise.promise

    @property
    def _told(self) -> dict[str, object]:
        """Its releases so far: not private, as they follow from what it was asked."""
        return {"released": dict(self._noise.counts)}

    @plain.reading
    def _question(self, kind: str, fields: Mapping[str, Any], body: bytes) -> Act:
        if kind not in ANSWERED:
            raise MessageError(f"{kind!r} is not answered with noise", "set privacy.mode alike on all sides")
        if kind == "label sums":
            if not self._client.scorer.words:
                raise Forgotten(f"{self._client.name} was started again")
            groups = [plain.to_ids(group) for group in fields["groups"]]
            if any(not 0 <= column < self._width for group in groups for column in group):
                raise ValueError("a label's column is none of the words")
            if len(groups) != self._labels or not all(groups):
                raise ValueError(f"groups of words for other than the task's {self._labels} labels")
            return partial(self._label_sums, plain.to_prompt(fields["prompt"]), groups)
        return super()._question(kind, fields, body)

    def _fits_words(self, reading: Reading) -> bool:
        """Whether it reads the words that were told, as noise takes it; asked of all that texts are read by.

        Raises:
            ValueError: It is of another kind, or for another number of labels.
        """
        if reading.kind not in KINDS:
            raise ValueError(f"a verbalizer of kind {reading.kind!r}, where noise takes {KINDS}")
        if len(reading.groups) != self._labels:
            raise ValueError(f"a verbalizer of other than the task's {self._labels} labels")
        return super()._fits_words(reading)

    async def _label_sums(self, prompt: Asked, groups: Sequence[Sequence[int]]) -> Envelope:
        most = self._promise.clip_logits
        told = {"prompt": plain.of_prompt(prompt), "groups": [list(group) for group in groups]}
        found = await self._noise.released(
            "train",
            _asked("label sums", told),
            2 * most,
            lambda: self._client.label_sums(prompt, groups, most),
        )
        return Envelope("label sums", {"sums": found.tolist()})

    async def _evaluate(
        self, prompt: Asked, reading: Reading, part: Literal["train", "dev"], repeat: int
    ) -> Envelope:
        most = self._promise.clip_loss
        n = self._client.n_train if part == "train" else self._client.n_dev

        async def loss() -> Floats:
            sums = await self._client.evaluate(prompt, reading, part, most=most)
            return np.array([sums.loss])

        told = {"prompt": plain.of_prompt(prompt), "verbalizer": reading.to_dict(), "part": part}
        (found,) = await self._noise.released(part, _asked("evaluate", told), most, loss)
        return Envelope("sums", {"n": n, "loss": float(found), "correct": None})

    async def _search(self, broadcast: Broadcast, rounds: tuple[PromptSpace, Plan, Reference]) -> Envelope:
        d = len(broadcast.mean)
        length = self._promise.clip_mean * sqrt(d)
        most = self._promise.clip_loss
        client, plan = self._client, rounds[1]

        async def both() -> Floats:
            """Displacement and loss, each within a ball of radius 1/2."""
            update = (await client.search(broadcast, *rounds)).update
            (away,) = clipped((update.mean - broadcast.mean)[None], length)
            return np.append(away / (2 * length), bounded(np.array([update.loss]), most) / most - 0.5)

        asked = _asked("search", {}, encode_broadcast(broadcast))
        # The mean of a search moves as far for one text as for all; so the unit makes no difference to it.
        unit = 1 if self._promise.unit == "text" else max(1, client.n_train)
        found = await self._noise.released("train", asked, sqrt(2) / unit, both)
        mean = broadcast.mean + 2 * length * found[:-1]
        update = self._update(broadcast, plan, mean, most * (float(found[-1]) + 0.5))
        told = {"distinct": 1.0, "spent": False, "moved": True}
        return Envelope("update", told, encode_update(update))

    async def _test(self, contestants: Sequence[Contestant], common: int) -> Envelope:
        client = self._client

        async def counted() -> Floats:
            return _row(await client.test(contestants, common))

        labels = self._labels
        methods = [*(c.method for c in contestants), "majority"]
        rivals = rivals_of(methods)
        told = {"contestants": [plain.of_contestant(c) for c in contestants], "common": common}
        # A text counts once in each table; another in its place moves one count to another cell.
        sensitivity = sqrt(2 * (len(methods) + len(rivals)))
        row = await self._noise.released("test", _asked("test", told), sensitivity, counted)
        return Envelope("tally", plain.of_tally(_tally(row, methods, rivals, labels, client.n_test)))

    def _update(self, broadcast: Broadcast, plan: Plan, mean: Floats, loss: float) -> Update:
        client = self._client
        return Update(
            client=client.name,
            round=broadcast.round,
            mean=mean,
            loss=loss,
            step_sizes=(broadcast.sigma,) * plan.iterations,
            population=plan.population,
            n=client.n_train,
            scored=client.search_cost(plan),
        )


def _asked(kind: str, fields: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A question's canonical bytes, whatever else travelled with it."""
    return seal(Envelope(kind, fields, body))


def _row(tally: Tally) -> Floats:
    """All counts of a tally, shape [M C^2 + 4 R]."""
    tables = [counts.ravel().astype(np.float64) for counts in tally.confusions.values()]
    fours = [np.array([getattr(counts, name) for name in _PAIRED], float) for counts in tally.paired.values()]
    return np.concatenate([*tables, *fours])


def _tally(row: Floats, methods: Sequence[str], rivals: Sequence[str], labels: int, n: int) -> Tally:
    """Counts of n texts again, from what noise has made of them."""
    cut = labels**2 * len(methods)
    tables = [whole_counts(part, n) for part in row[:cut].reshape(len(methods), -1)]
    fours = [whole_counts(part, n) for part in row[cut:].reshape(len(rivals), len(_PAIRED))]
    shape = (labels, labels)
    return Tally(
        {m: np.array(table, dtype=np.int64).reshape(shape) for m, table in zip(methods, tables, strict=True)},
        {
            r: PairedCounts(**dict(zip(_PAIRED, four, strict=True)))
            for r, four in zip(rivals, fours, strict=True)
        },
    )
