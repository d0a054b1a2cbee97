"""The Gaussian mechanism where a party's answers leave it: clipped, with noise, counted, never drawn twice.

A question that comes again (a server that was started again) is given the same answer: it is on disk before
it leaves, and another draw would cost privacy once more. Noise is drawn from the system's randomness, not
from the run's seed, which the server knows.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from fedbpt_api.federation.promise import PARTS, Part, Promise
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.record_file import RecordFile, read_records

_KIND: Final = "file of releases"
_VERSION: Final = 1
_KEY: Final = 16


class Noise:
    """A party's releases.

    Args:
        promise: What is promised of them.
        texts: The party's texts of each part.
        place: Where releases are kept; None keeps them in memory.
        rng: Draws the noise; the system's randomness where not given.
        ended: For a replay: what is raised where something else is asked; nothing is written then.

    Raises:
        ConfigError: The promise cannot be kept.
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
        self._rng = rng or np.random.default_rng(secrets.randbits(256))
        self._known: dict[bytes, Floats] = {}
        self._told: set[bytes] = set()
        self._file: RecordFile | None = None
        if place is not None:
            whole = None
            if place.exists():
                contents = read_records(place, _KIND, _VERSION)
                whole = contents.whole
                for payload in map(bytes, contents.payloads):
                    key, part = payload[:_KEY], PARTS[payload[_KEY]]
                    self._known[key] = np.frombuffer(payload[_KEY + 1 :], dtype="<f8")
                    self.counts[part] += 1
                self._told = set(self._known)
            if ended is None:
                self._file = RecordFile(place, {"format": _KIND, "version": _VERSION}, whole)

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
        """
        key = hashlib.blake2b(question, digest_size=_KEY).digest()
        if key in self._told:  # before this process: what it cost is counted again, from answers on disk
            self._told.remove(key)
            await compute()
        if key in self._known:
            return self._known[key]
        if self._ended is not None:
            raise self._ended
        if self.counts[part] >= self.promise.releases[part]:
            raise BudgetSpent(f"privacy of {part} texts", own=True)
        values = await compute()
        if key in self._known:  # it was asked twice at the same time
            return self._known[key]
        unit = 1 if self.promise.unit == "text" else max(1, self._texts[part])
        noisy = values + self._rng.normal(0.0, self._multipliers[part] * sensitivity * unit, values.shape)
        if self._file is not None:
            payload = key + bytes([PARTS.index(part)]) + noisy.astype("<f8").tobytes()
            self._file.append(payload)
        self.counts[part] += 1
        self._known[key] = noisy
        return noisy

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def clipped(rows: Floats, length: float) -> Floats:
    """Rows of shape [n, k], those that are longer than `length` shortened to it."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows * np.minimum(1.0, length / np.maximum(lengths, 1e-300)))


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
