"""The Gaussian mechanism where a party's answers leave it: clipped, with noise, counted, never drawn twice.

A question that comes again (a server that was started again) is given the same answer: it is on disk before
it leaves, and another draw would cost privacy once more. Every release is counted, on disk too, before its
answer is computed: one that fails, or is never finished, may have told something by that. Noise is drawn from
the system's randomness, not from the run's seed, which the server knows.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.federation.promise import PARTS, Part, Promise
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.record_file import RecordFile, read_records

_KIND: Final = "file of releases"
_VERSION: Final = 2
_KEY: Final = 16


class Noise:
    """A party's releases.

    Args:
        promise: What is promised of them.
        texts: The party's texts of each part.
        place: Where releases are kept; None keeps them in memory.
        rng: Draws the noise; where not given, generators that the system's randomness seeds anew each time.
        ended: For a replay: what is raised where something else is asked; nothing is written then.

    Raises:
        ConfigError: The promise cannot be kept, or is another than that of the releases that were made.
        RunFolderError: The file is damaged, or cannot be written.
    """

    def __init__(
        self,
        promise: Promise,
        texts: Mapping[Part, int],
        place: Path | None = None,
        rng: np.random.Generator | None = None,
        ended: Exception | None = None,
    ) -> None:
        self.promise = promise
        self.counts: Counter[Part] = Counter()
        self._ended = ended
        self._texts = texts
        self._multipliers = {part: promise.multiplier(part) for part in PARTS}
        self._rng = rng
        self._known: dict[bytes, Floats] = {}
        self._begun: set[bytes] = set()
        self._told: set[bytes] = set()
        self._file: RecordFile | None = None
        if place is not None:
            whole = None
            if place.exists():
                contents = read_records(place, _KIND, _VERSION)
                if contents.header.get("promise") != promise.to_dict():
                    raise ConfigError(
                        f"{place}: what was answered in this run was promised otherwise (privacy)",
                        "keep unit, epsilon, delta, numbers of prompts and rounds, and clips as they were; "
                        "another promise is another run, which spends privacy once more",
                    )
                whole = contents.whole
                for payload in map(bytes, contents.payloads):
                    key, part, values = payload[:_KEY], PARTS[payload[_KEY]], payload[_KEY + 1 :]
                    if values:
                        self._known[key] = np.frombuffer(values, dtype="<f8")
                    else:
                        self._begun.add(key)
                        self.counts[part] += 1
                self._told = set(self._known)
            if ended is None:
                header = {"format": _KIND, "version": _VERSION, "promise": promise.to_dict()}
                self._file = RecordFile(place, header, whole)

    async def released(
        self, part: Part, question: bytes, sensitivity: float, compute: Callable[[], Awaitable[Floats]]
    ) -> Floats:
        """An answer with noise.

        Args:
            part: The texts that it is about.
            question: What was asked; the same question has the same answer.
            sensitivity: How far the answer may move when one text is replaced, clipped as it is.
            compute: Gives the answer without noise.

        Raises:
            BudgetSpent: All that was promised of this part is spent.
            FedbptError: What was computed is no finite number; it counts all the same.
        """
        key = hashlib.blake2b(question, digest_size=_KEY).digest()
        if key in self._told:  # before this process: what it cost is counted again, from answers on disk
            self._told.remove(key)
            await compute()
        if key in self._known:
            return self._known[key]
        if self._ended is not None:
            raise self._ended
        self._count(part, key)
        values = await compute()
        if key in self._known:  # it was asked twice at the same time
            return self._known[key]
        if not np.isfinite(values).all():
            raise FedbptError("an answer is no finite number, which no noise would hide")
        unit = 1 if self.promise.unit == "text" else max(1, self._texts[part])
        rng = self._rng or np.random.default_rng(secrets.randbits(256))
        noisy = values + rng.normal(0.0, self._multipliers[part] * sensitivity * unit, values.shape)
        self._keep(part, key, noisy.astype("<f8").tobytes())
        self._known[key] = noisy
        return noisy

    def _count(self, part: Part, key: bytes) -> None:
        """Count a release, once however often it is begun: asked again, it tells nothing new of the texts.

        So a release that a budget's end has cut off, or a process's, needs not be told from others: it is
        counted, and finished when it is asked for again.
        """
        if key in self._begun:
            return
        if self.counts[part] >= self.promise.releases[part]:
            raise BudgetSpent(f"privacy of {part} texts", own=True)
        self._keep(part, key, b"")
        self._begun.add(key)
        self.counts[part] += 1

    def _keep(self, part: Part, key: bytes, values: bytes) -> None:
        """Put a release on disk: that it was begun (no values), or what it told."""
        if self._file is not None:
            self._file.append(key + bytes([PARTS.index(part)]) + values)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def clipped(rows: Floats, length: float) -> Floats:
    """Rows of shape [n, k], those that are longer than `length` shortened to it, those without one made 0."""
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows * np.minimum(1.0, length / np.maximum(lengths, 1e-300)))


def bounded(losses: Floats, most: float) -> Floats:
    """Losses within 0 and `most`; what is no number counts for the most."""
    return np.clip(np.nan_to_num(losses, nan=most, posinf=most, neginf=0.0), 0.0, most)


def whole_counts(counts: Floats, total: int) -> list[int]:
    """Whole numbers from 0 up that add up to `total`, near to noisy ones (the largest remainders)."""
    positive = np.maximum(counts, 0.0)
    if not positive.sum() > 0:
        positive = np.ones_like(positive)
    shares = positive * total / positive.sum()
    floors = np.floor(shares).astype(int)
    for place in np.argsort(floors - shares, kind="stable")[: total - int(floors.sum())]:
        floors[place] += 1
    return [int(count) for count in floors]
