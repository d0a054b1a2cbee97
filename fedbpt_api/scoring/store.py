"""The shared store: answers that earlier runs on this machine have paid for. Off unless asked for.

A run that uses it looks for an answer in its own memory, in its journal, here, and then asks the server.
What the server says is written here after it is in the journal, by a thread of its own; what is found here
goes into the journal too, at no cost, so that a run can be resumed and replayed without the store.

**Keys.** A keyed hash of everything that an answer depends on (`Server`, the question with its
words in their order, the exact token ids of the whole input, a continuous prompt by its digest), and of
which part of the data the text is. Answers depend on no part, so the part is there for trust alone: a score
of a training text never answers for a development or test text, be they the same. It costs nothing within a
run, where the same input is asked once whatever its part; another split of the same file pays again. Second
looks at a noisy server (`repeat`) are neither kept nor found: they are there to be new.

**Values.** Log-probabilities of the named words [T] as float32, with the journal's sign for bounds, or a
list of probable words. They never change: who comes second finds the first one's. Each has a checksum keyed
by the salt over key and value; one that does not agree is not used, and removed.

**Secrecy.** Keys are keyed by a salt that lies beside the file, and values masked by it, so the file alone
(a copy, a backup of it) tells nothing about texts or answers: only the servers' names and how many answers
each gave. Who has the salt too can check a guess of a text, as can who may run commands as this user.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import time
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from fedbpt_api.scoring.backend import Prompt
from fedbpt_api.scoring.journal import Answer
from fedbpt_api.scoring.known import Question, Rows
from fedbpt_api.scoring.store_file import StoreError, connect, explained, make

SAMPLING: Final = "none: the first token's log-probabilities at temperature 1, nothing cut off"
_PLACE = 6  # bytes of a key that are the same for the texts of a prompt: they lie side by side in the file
_KEY = 16  # bytes of a key that tell an answer from every other
_CHECK = 8  # bytes
_AT_ONCE = 500  # keys in one query
_WAIT = 30.0  # seconds that the writing thread waits for other processes
_NAMED, _LIST = b"\0", b"\1"


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers: everything about a server that a score may depend on. Equal facts, equal answers.

    Attributes:
        about: Name to value for people, shown by `fedbpt cache list`: no secrets. At least "kind", "model",
            "url", "fingerprint" and "way".
        more: What tells it from others beside that, JSON types; only a hash of it is kept.
    """

    about: Mapping[str, str]
    more: Mapping[str, Any]

    def identity(self, salt: bytes) -> bytes:
        """16 bytes that are the same for the same facts."""
        facts = {"about": dict(self.about), "more": dict(self.more), "sampling": SAMPLING}
        data = orjson.dumps(facts, option=orjson.OPT_SORT_KEYS, default=str)
        return hashlib.blake2b(data, digest_size=16, key=salt, person=b"server").digest()


class Store:
    """The store, open for one run. All that can go wrong with it ends in a warning, never in the run's end.

    Args:
        place: Its folder; made where there is none.
        trouble: Where sentences for people go when something goes wrong.

    Raises:
        StoreError: It cannot be used.
    """

    def __init__(self, place: Path, trouble: list[str] | None = None) -> None:
        self.place = place
        self.trouble = trouble if trouble is not None else []
        self._salt = make(place)
        self._reading = connect(place, 1.0)
        self._writing = connect(place, _WAIT)
        self._thread = ThreadPoolExecutor(1, "answers-store")
        self._servers: dict[int, tuple[bytes, str]] = {}
        self._failed = False
        self._spoilt = 0

    @property
    def usable(self) -> bool:
        """Whether nothing has gone wrong that ends its use."""
        return not self._failed

    def shelf(self, server: Server, scope: bytes = b"") -> Shelf:
        """The answers of one server.

        Args:
            server: The server.
            scope: What lists of probable words depend on beside the server and the input: a server that is
                asked with text can only name words that the run has seen.

        Raises:
            StoreError: It cannot be written.
        """
        identity = server.identity(self._salt)
        about = orjson.dumps(dict(server.about)).decode()
        try:
            number = self._thread.submit(self._number, identity, about).result()
        except sqlite3.Error as error:
            raise explained(error, self.place) from error
        self._servers[number] = identity, about
        return Shelf(self, number, self._salt + identity, scope)

    def read(self, server: int, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there; none once the store has failed."""
        found: dict[bytes, bytes] = {}
        try:
            for begin in range(0, len(keys) if self.usable else 0, _AT_ONCE):
                part = keys[begin : begin + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, value FROM answers WHERE server = ? AND key IN ({marks})"
                rows = self._reading.execute(query, (server, *part))
                found.update((key, value) for key, value in rows if isinstance(value, bytes))
        except sqlite3.Error as error:
            self._fail(error)
            return {}
        return found

    def write(self, server: int, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep (key, value) pairs, soon; a key that has a value keeps it."""
        now = time.time()
        self._later(
            "INSERT OR IGNORE INTO answers (server, key, written, value) VALUES (?, ?, ?, ?)",
            [(server, key, now, value) for key, value in rows],
        )

    def remove(self, server: int, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Drop pairs whose value is damaged, so that a new one can be kept."""
        self._later(
            "DELETE FROM answers WHERE server = ? AND key = ? AND value = ?",
            [(server, key, value) for key, value in rows],
        )
        if not self._spoilt:
            self.trouble.append(
                f"the store of answers in {self.place} holds damaged answers; they are not used, and removed"
            )
        self._spoilt += len(rows)

    def close(self) -> None:
        """Wait until everything is written, and let go of the files. May be called twice."""
        self._thread.shutdown(wait=True)
        self._reading.close()
        self._writing.close()

    def _number(self, identity: bytes, about: str) -> int:
        """The server's number, given when it is first seen; in the writing thread."""
        number = self._writing.execute(
            "INSERT INTO servers (identity, about, used) VALUES (?, ?, ?) "
            "ON CONFLICT (identity) DO UPDATE SET used = excluded.used RETURNING number",
            (identity, about, time.time()),
        ).fetchone()[0]
        return int(number)

    def _later(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        if self.usable:
            self._thread.submit(self._write, statement, rows).add_done_callback(self._wrote)

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """One transaction, in the writing thread."""
        if self._failed:
            return
        self._writing.execute("BEGIN IMMEDIATE")
        try:
            self._writing.executemany(statement, rows)
            for number, (identity, about) in self._servers.items():  # they may have been pruned meanwhile
                self._writing.execute(
                    "INSERT OR IGNORE INTO servers (number, identity, about, used) VALUES (?, ?, ?, ?)",
                    (number, identity, about, time.time()),
                )
            self._writing.execute("COMMIT")
        finally:
            if self._writing.in_transaction:
                self._writing.execute("ROLLBACK")

    def _wrote(self, done: Future[None]) -> None:
        if isinstance(error := done.exception(), sqlite3.Error):
            self._fail(error)

    def _fail(self, error: sqlite3.Error) -> None:
        if not self._failed:
            self._failed = True
            self.trouble.append(f"{explained(error, self.place)}\n  The run goes on without it.")


class Shelf:
    """The answers of one server within a store.

    Args:
        store: The store.
        number: The server's there.
        secret: What keys and masks are made with: the salt and the server's identity.
        scope: See `Store.shelf`.

    Attributes:
        charged: Whether what is found counts as if it were asked for anew: for runs that are compared.
    """

    def __init__(self, store: Store, number: int, secret: bytes, scope: bytes) -> None:
        self.number = number
        self.charged = False
        self._store, self._scope = store, scope
        self._secret = hashlib.blake2b(secret, digest_size=32, person=b"shelf").digest()

    def key(self, question: Question, prompt: Prompt, part: str) -> bytes:
        """The key of an input's answer.

        Args:
            question: What is asked.
            prompt: The whole input. Where its shared beginning ends counts too: it only costs an answer that
                another cut of the same tokens would have found.
            part: Which part of the data its text is of; empty for none.
        """
        scope = self._scope if question[0] == "top" else b""
        head = orjson.dumps([question, part, scope.hex(), prompt.at if prompt.soft is not None else -1])
        head = struct.pack("<I", len(head)) + head + (prompt.soft.digest if prompt.soft is not None else b"")
        ids = array("q", prompt.ids).tobytes()
        place = hashlib.blake2b(head + ids[: 8 * prompt.shared], digest_size=_PLACE, key=self._secret)
        whole = hashlib.blake2b(head + ids, digest_size=_KEY, key=self._secret, person=b"answer")
        return place.digest() + whole.digest()

    def find(self, keys: Sequence[bytes]) -> list[Answer | None]:
        """For each key its answer, or None where there is none that can be trusted."""
        values = self._store.read(self.number, keys)
        answers = {key: self._opened(key, value) for key, value in values.items()}
        damaged = [(key, values[key]) for key, answer in answers.items() if answer is None]
        if damaged:
            self._store.remove(self.number, damaged)
        return [answers.get(key) for key in keys]

    def keep(self, keys: Sequence[bytes], rows: Rows | Sequence[Answer]) -> None:
        """Keep answers, in the order of their keys: [n, T] float32, or lists."""
        if self._store.usable:
            sealed = [(key, self._sealed(key, row)) for key, row in zip(keys, rows, strict=True)]
            self._store.write(self.number, sealed)

    def _sealed(self, key: bytes, row: Answer) -> bytes:
        if isinstance(row, dict):
            tokens = np.fromiter(row.keys(), dtype="<i4", count=len(row))
            values = np.fromiter(row.values(), dtype="<f4", count=len(row))
            plain = _LIST + tokens.tobytes() + values.tobytes()
        else:
            plain = _NAMED + np.asarray(row, dtype="<f4").tobytes()
        return self._masked(key, plain) + self._check(key, plain)

    def _opened(self, key: bytes, value: bytes) -> Answer | None:
        plain = self._masked(key, value[:-_CHECK])
        if value[-_CHECK:] != self._check(key, plain):
            return None
        kind, data = plain[:1], plain[1:]
        if kind == _NAMED:
            return np.frombuffer(data, dtype="<f4")
        half = len(data) // 2
        tokens, values = np.frombuffer(data[:half], "<i4"), np.frombuffer(data[half:], "<f4")
        return dict(zip(tokens.tolist(), values.tolist(), strict=True))

    def _check(self, key: bytes, plain: bytes) -> bytes:
        return hashlib.blake2b(key + plain, digest_size=_CHECK, key=self._secret, person=b"check").digest()

    def _masked(self, key: bytes, data: bytes) -> bytes:
        """Data that only who has the salt can read; applied twice, the data itself."""
        stream = hashlib.shake_256(self._secret + key).digest(len(data))
        return (int.from_bytes(data, "little") ^ int.from_bytes(stream, "little")).to_bytes(
            len(data), "little"
        )


__all__ = ["SAMPLING", "Server", "Shelf", "Store", "StoreError"]
