"""The journal: every answered request on disk before its scores are used, so that nothing is paid for twice.

One file a client (`record_file`). A record's payload is a head (kind, pairs n, values a pair, seconds since
the run began, usage), one 16-byte key a pair, and the values. Named words are stored as float32, exactly as
the run uses them (above 0: a bound, with its sign turned); a list of probable words as token ids (i32) and
log-probabilities (float32). All numbers are little-endian. A request that failed after it had cost something
leaves a record without pairs; answers from the shared store (`store`) are a record that cost nothing. Since
version 2 the kind says too whether it was the test's.

A key says which pair (prompt, text) with which question a value belongs to. It is a hash keyed by the
client's whole data, so no text can be read from it, or guessed without the other texts. The values are the
model's answers: who has the same model can check a guess against them, so a journal stays with its client.

A run that goes on, and a replay, find here what was answered before (`recall`): the run is computed anew from
its beginning, and where it stands follows from the answers that are there. There is no other record of it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import orjson

from fedbpt_api.errors import RunFolderError
from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.encode import EncodedText
from fedbpt_api.scoring.known import Rows
from fedbpt_api.scoring.record_file import Contents, RecordFile, read_records
from fedbpt_api.task import Example

FORMAT: Final = "fedbpt-journal"
VERSION: Final = 2
_TELLS_TESTS: Final = 2  # the version from which records do
_KEY = 16  # bytes
_HEAD = struct.Struct("<BIIdIIII")  # kind, pairs, values a pair, seconds, and the usage's four numbers
_NAMED, _LISTS, _COST = 0, 1, 2
_TEST = 4  # added to the kind

Row = npt.NDArray[np.float32]
Answer = Row | dict[int, float]


@dataclass(frozen=True, slots=True)
class Record:
    """One answered request.

    Attributes:
        keys: One a pair; none where it failed and cost something all the same.
        answers: For each pair the log-probabilities of the named words [T], or {token id: log-probability}.
        usage: What it cost.
        seconds: Since the run began, all its sessions together.
    """

    keys: tuple[bytes, ...]
    answers: tuple[Answer, ...]
    usage: Usage
    seconds: float


def as_rows(answers: Sequence[Answer]) -> Rows:
    """Answers, all of one kind, as an array: [n, T] float32, or [n] of lists."""
    if any(isinstance(answer, dict) for answer in answers):
        rows = np.empty(len(answers), dtype=object)
        rows[:] = answers
        return rows
    return np.array(answers, dtype=np.float32)


class Past:
    """The answers that a journal held when it was opened, found by key.

    Args:
        records: The journal's payloads.
        place: Its path, for messages.
        told_apart: Whether records say if they are the test's; in version 1 they did not.
    """

    def __init__(self, records: Sequence[memoryview], place: Path, told_apart: bool = True) -> None:
        heads = [_head(payload, place) for payload in records]
        pairs = np.array([head.pairs for head in heads], dtype=np.int64)
        keys = b"".join(
            bytes(r[_HEAD.size : _HEAD.size + h.pairs * _KEY]) for r, h in zip(records, heads, strict=True)
        )
        self._of = np.repeat(np.arange(len(heads)), pairs)  # the record of each pair
        halves = np.frombuffer(keys, dtype="<u8").reshape(-1, 2)
        tested = np.array([head.test for head in heads], dtype=bool)[self._of]
        self._sorted = {}  # halves of keys, and which pairs they are: of the search, and of the test
        for test in (False, True):
            own = np.flatnonzero(tested == test) if told_apart else np.arange(len(halves))
            order = own[np.argsort(halves[own, 0], kind="stable")]
            self._sorted[test] = halves[order], order
        self._first = np.concatenate([[0], np.cumsum(pairs)])  # the first pair of each record
        self._records, self._heads, self._place = list(records), heads, place

    def __len__(self) -> int:
        return len(self._of)

    @property
    def seconds(self) -> float:
        """When the last answer came, since the run began."""
        return max((head.seconds for head in self._heads), default=0.0)

    def when(self, pairs: Sequence[int]) -> float:
        """When the last of these answers came, in seconds since the run began."""
        return max(self._heads[number].seconds for number in self._by_record(pairs))

    @property
    def scored(self) -> int:
        """Scored examples that the answers cost."""
        return (self.paid() + self.paid(test=True)).scored

    def paid(self, *, test: bool = False) -> Usage:
        """What all requests of the search, or of the test, cost, those that failed too."""
        return sum((head.usage for head in self._heads if head.test == test), Usage())

    def lost(self, *, test: bool = False) -> Usage:
        """What those of them cost that failed all the same."""
        failed = (head.usage for head in self._heads if head.kind == _COST and head.test == test)
        return sum(failed, Usage())

    def find(self, keys: Sequence[bytes], *, test: bool = False) -> list[int | None]:
        """For each key the number of its pair in the search, or in the test, or None."""
        halves, order = self._sorted[test]
        if not len(order):
            return [None] * len(keys)
        wanted = np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)
        at = np.minimum(np.searchsorted(halves[:, 0], wanted[:, 0]), len(order) - 1)
        same = (halves[at] == wanted).all(axis=1)
        pairs = zip(order[at].tolist(), same.tolist(), strict=True)
        return [pair if found else None for pair, found in pairs]

    def rows(self, pairs: Sequence[int]) -> Rows:
        """Answers of pairs, all of one kind: [n, T] float32, or [n] of lists."""
        answers: list[Answer] = [{}] * len(pairs)
        for number, places in self._by_record(pairs).items():
            found = _answers(self._records[number], self._heads[number], self._place)
            first = int(self._first[number])
            for place in places:
                answers[place] = found[pairs[place] - first]
        return as_rows(answers)

    def usage(self, pairs: Sequence[int]) -> Usage:
        """What pairs cost: their requests' usage, shared evenly among each one's pairs."""
        total = Usage()
        for number, places in self._by_record(pairs).items():
            head, first = self._heads[number], int(self._first[number])
            if len(places) == head.pairs:
                total = total + head.usage
                continue
            for place in places:
                total = total + _share(head.usage, pairs[place] - first, head.pairs)
        return total

    def free(self, pairs: Sequence[int]) -> int:
        """How many of these answers cost nothing: they came from the shared store."""
        found = self._by_record(pairs).items()
        return sum(len(places) for number, places in found if self._heads[number].usage == Usage())

    def _by_record(self, pairs: Sequence[int]) -> dict[int, list[int]]:
        """For each record that some of `pairs` are in, their places in `pairs`."""
        found: dict[int, list[int]] = {}
        for place, number in enumerate(self._of[list(pairs)].tolist()):
            found.setdefault(number, []).append(place)
        return found


class Journal:
    """A client's journal, open for what comes and for what is there.

    Args:
        path: The file; made where it does not exist.
        secret: What keys are hashed with; see `secret_of`.
        ended: For a replay: what is raised where more is asked for than was answered. Nothing is added then.
        counted: Whether what it holds is on the budget already: for a party that goes on in the middle of a
            run, which is not computed anew from its beginning.

    Raises:
        RunFolderError: It cannot be read or written, or belongs to other texts.
    """

    def __init__(
        self, path: Path, secret: bytes, ended: Exception | None = None, *, counted: bool = False
    ) -> None:
        self.ended, self.counted = ended, counted
        self._secret = secret
        check = hashlib.blake2b(b"journal", digest_size=8, key=secret).hexdigest()
        header = {"format": FORMAT, "version": VERSION, "check": check}
        there = path.exists() or ended is not None
        found = read_records(path, FORMAT, VERSION) if there else Contents(header, (), 0)
        if found.header.get("check") != check:
            raise RunFolderError(
                f"{path} was written for other texts", "use the data files that the run began with"
            )
        self.past = Past(found.payloads, path, found.header.get("version", VERSION) >= _TELLS_TESTS)
        self._file = None if ended else RecordFile(path, header, found.whole if there else None)

    def key(self, asked: bytes, text: EncodedText) -> bytes:
        """The key of a text for a question about a prompt (`known.asked_key`): 16 bytes."""
        return hashlib.blake2b(asked + text.key, digest_size=_KEY, key=self._secret).digest()

    def make_room(self) -> None:
        """Called before a request is sent, so that its answer can be kept.

        Raises:
            RunFolderError: The disk is full, or gone.
        """
        if self._file is not None:
            self._file.make_room()

    def append(
        self,
        keys: Sequence[bytes],
        answers: Rows | Sequence[Answer],
        usage: Usage,
        seconds: float = 0.0,
        *,
        test: bool = False,
    ) -> None:
        """Add an answered request, of the search or of the test; it is on disk when this returns.

        Raises:
            RunFolderError: The disk is full, or gone.
        """
        assert self._file is not None, "a journal that is only read was written to"
        if not keys and usage == Usage():
            return
        kind, width, values = _packed(answers) if keys else (_COST, 0, b"")
        numbers = (usage.scored, usage.prompt_tokens, usage.cached_tokens, usage.requests)
        head = _HEAD.pack(kind + _TEST * test, len(keys), width, seconds, *numbers)
        self._file.append(head + b"".join(keys) + values)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def secret_of(*parts: Sequence[Example]) -> bytes:
    """A client's secret: a hash of all its texts, so it need not be stored anywhere."""
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        digest.update(orjson.dumps([(example.text, example.text_b, example.label) for example in part]))
    return digest.digest()


def read_journal(path: Path) -> Iterator[Record]:
    """The records of a journal, in order. A torn last one (the process died) is left out.

    Raises:
        RunFolderError: It is no journal, of a later version, or damaged before its end.
    """
    for payload in read_records(path, FORMAT, VERSION).payloads:
        head = _head(payload, path)
        at = range(_HEAD.size, _HEAD.size + head.pairs * _KEY, _KEY)
        keys = tuple(bytes(payload[i : i + _KEY]) for i in at)
        yield Record(keys, _answers(payload, head, path), head.usage, head.seconds)


@dataclass(frozen=True, slots=True)
class _Head:
    kind: int
    test: bool
    pairs: int
    width: int
    seconds: float
    usage: Usage


def _head(payload: memoryview, place: Path) -> _Head:
    try:
        told, pairs, width, seconds, *usage = _HEAD.unpack_from(payload)
    except struct.error:
        raise _damaged(place) from None
    kind, test = told & ~_TEST, bool(told & _TEST)
    if kind not in (_NAMED, _LISTS, _COST) or _HEAD.size + pairs * _KEY > len(payload):
        raise _damaged(place)
    return _Head(kind, test, pairs, width, seconds, Usage(*usage))


def _answers(payload: memoryview, head: _Head, place: Path) -> tuple[Answer, ...]:
    at = _HEAD.size + head.pairs * _KEY
    try:
        if head.kind != _LISTS:
            values = np.frombuffer(payload, "<f4", head.pairs * head.width, at)
            return tuple(values.reshape(head.pairs, head.width))
        answers: list[Answer] = []
        for _ in range(head.pairs):
            (count,) = struct.unpack_from("<I", payload, at)
            tokens = np.frombuffer(payload, "<i4", count, at + 4)
            values = np.frombuffer(payload, "<f4", count, at + 4 + 4 * count)
            answers.append(dict(zip(tokens.tolist(), values.tolist(), strict=True)))
            at += 4 + 8 * count
        return tuple(answers)
    except (ValueError, struct.error):
        raise _damaged(place) from None


def _damaged(place: Path) -> RunFolderError:
    return RunFolderError(f"{place} holds a record that says what cannot be", "restore it from a copy")


def _share(usage: Usage, number: int, pairs: int) -> Usage:
    """The part of a request's usage that falls to one of its pairs; the parts add up to the whole."""
    numbers = (usage.scored, usage.prompt_tokens, usage.cached_tokens, usage.requests)
    return Usage(*(total // pairs + (number < total % pairs) for total in numbers))


def _packed(answers: Rows | Sequence[Answer]) -> tuple[int, int, bytes]:
    """Kind, values a pair (0 where lists say it themselves), and the values as bytes."""
    if isinstance(answers, np.ndarray) and answers.dtype != object:
        return _NAMED, answers.shape[1], answers.astype("<f4").tobytes()
    rows = [answer for answer in answers if isinstance(answer, np.ndarray)]
    if len(rows) == len(answers):
        return _NAMED, len(rows[0]), np.asarray(rows, dtype="<f4").tobytes()
    return _LISTS, 0, b"".join(_packed_list(a) for a in answers if isinstance(a, dict))


def _packed_list(found: Mapping[int, float]) -> bytes:
    tokens = np.fromiter(found.keys(), dtype="<i4", count=len(found))
    values = np.fromiter(found.values(), dtype="<f4", count=len(found))
    return struct.pack("<I", len(found)) + tokens.tobytes() + values.tobytes()
