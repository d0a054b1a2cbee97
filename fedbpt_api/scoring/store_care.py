"""Looking after the shared store: what is in it, how large it is, removing answers."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from fedbpt_api.scoring.store_file import (
    FILE,
    ForeignStore,
    StoreError,
    check_kind,
    connect,
    explained,
    files,
    make,
)

_DAY = 86_400.0  # seconds


@dataclass(frozen=True, slots=True)
class Held:
    """What the store holds of one server.

    Attributes:
        number: Its number there.
        about: The server's facts: kind, model, url, fingerprint, way and more.
        answers: How many there are.
        size: Their bytes, without the file's own needs.
        written: When the last of them was given, in seconds since 1970; None where there is none.
        used: When a run last used the server's answers.
    """

    number: int
    about: dict[str, str]
    answers: int
    size: int
    written: float | None
    used: float


def held(place: Path) -> list[Held]:
    """All servers, the one used last first; nothing where there is no store.

    Raises:
        StoreError: The file cannot be read.
    """
    if not (place / FILE).exists():
        return []
    with _open(place) as connection:
        found = connection.execute(
            "SELECT number, about, count(key), ifnull(sum(length(key) + length(value)), 0), max(written), "
            "used FROM servers LEFT JOIN answers ON server = number GROUP BY number "
            "ORDER BY used DESC, number"
        ).fetchall()
    return [Held(number, dict(orjson.loads(about)), *rest) for number, about, *rest in found]


def size(place: Path) -> int:
    """Bytes of everything that the store has on disk."""
    return sum(path.stat().st_size for path in files(place))


def prune(place: Path, *, older_than: float | None = None, servers: frozenset[int] = frozenset()) -> int:
    """Remove answers, and the servers that have none left.

    Args:
        place: The store's folder.
        older_than: Only answers that were given more than this many days ago; all where not given.
        servers: Only those of these servers; of all where empty.

    Returns:
        How many were removed. Their space is given back unless a run is using the store just now.

    Raises:
        StoreError: The file cannot be read or written.
    """
    if not (place / FILE).exists():
        return 0
    limit = time.time() - older_than * _DAY if older_than is not None else float("inf")
    chosen = ",".join(str(int(number)) for number in sorted(servers))
    only = f" AND server IN ({chosen})" if servers else ""
    mine = f" AND number IN ({chosen})" if servers else ""
    with _open(place) as connection:
        connection.execute("BEGIN IMMEDIATE")
        removed = connection.execute(f"DELETE FROM answers WHERE written < ?{only}", (limit,)).rowcount
        connection.execute(
            f"DELETE FROM servers WHERE used < ? AND number NOT IN (SELECT server FROM answers){mine}",
            (limit,),
        )
        connection.execute("COMMIT")
        try:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError:  # in use: later answers take the space
            pass
    return removed


def clear(place: Path) -> int:
    """Remove everything; a store that cannot be used any more is removed with its files.

    Returns:
        How many bytes there were.

    Raises:
        StoreError: It is somebody else's database, or cannot be removed.
    """
    before = size(place)
    try:
        if before:
            make(place)  # whether it could be used
            prune(place)
    except ForeignStore:
        raise
    except StoreError:
        try:
            for path in files(place):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{place} cannot be cleared: {error.strerror}") from error
    return before


@contextmanager
def _open(place: Path) -> Iterator[sqlite3.Connection]:
    """The store's file, if that is what it is."""
    connection = connect(place)
    try:
        check_kind(connection, place)
        yield connection
    except sqlite3.Error as error:
        raise explained(error, place) from error
    finally:
        connection.close()
