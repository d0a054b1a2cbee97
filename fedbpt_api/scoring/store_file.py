"""The shared store's place on disk: where it lies, whether it may be used, how its file is opened.

One SQLite file in the user's cache folder, with a salt beside it. Nothing here happens at import, and while
the store is off no file of it is opened, read or made: all that is looked at is whether the mark that turns
it off is there.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Final

from fedbpt_api.cache_folder import cache_folder
from fedbpt_api.errors import FedbptError

VERSION: Final = 1
FILE: Final = "answers.sqlite"
SALT: Final = "salt"
_KIND: Final = 0x46504254  # "FPBT" at a fixed place in the file's header: SQLite's application id
_SALT_BYTES: Final = 32
_OFF: Final = "scores.off"
_NEVER: Final = "FEDBPT_NO_CACHE"
_PATIENCE = 5.0  # seconds that another process may hold the file
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE servers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    identity BLOB NOT NULL UNIQUE, about TEXT NOT NULL, used REAL NOT NULL
);
CREATE TABLE answers (
    server INTEGER NOT NULL, key BLOB NOT NULL, written REAL NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (server, key)
) WITHOUT ROWID;
"""


class StoreError(FedbptError):
    """The shared store cannot be used. A run goes on without it."""


class ForeignStore(StoreError):
    """What lies in the store's place is of another program or a later version; it is left alone."""


def folder() -> Path:
    """Where the store lies, whether or not there is one."""
    return cache_folder() / "scores"


def why_off() -> str:
    """Why the store may not be used, whatever a configuration says; empty where it may."""
    if os.environ.get(_NEVER, "") not in ("", "0"):
        return f"{_NEVER} is set"
    return "`fedbpt cache off` was said on this machine" if (cache_folder() / _OFF).exists() else ""


def switch(on: bool) -> None:
    """Allow the store on this machine, or forbid it for every run from now on; what is in it stays.

    Raises:
        StoreError: The cache folder cannot be written.
    """
    mark = cache_folder() / _OFF
    try:
        if on:
            mark.unlink(missing_ok=True)
        else:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    except OSError as error:
        raise StoreError(
            f"{mark} cannot be {'removed' if on else 'written'}: {error.strerror}",
            f"set {_NEVER}=1 to do without the store, or FEDBPT_CACHE to another folder",
        ) from error


def make(place: Path) -> bytes:
    """Make the store in the folder `place` where there is none, and check the one that is there.

    Returns:
        The salt.

    Raises:
        StoreError: The folder cannot be written; or what is there is damaged, no store, of a later version,
            or was made with another salt.
    """
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        salt = _salt(place / SALT)
    except OSError as error:
        raise StoreError(
            f"the store of answers in {place} cannot be used: {error.strerror}",
            "set FEDBPT_CACHE to a folder that can be written",
        ) from error
    connection = connect(place)
    try:
        _settle(connection, place, salt)
    except sqlite3.Error as error:
        raise explained(error, place) from error
    finally:
        connection.close()
    return salt


def connect(place: Path, patience: float = _PATIENCE) -> sqlite3.Connection:
    """A connection to the store's file; every statement is a transaction unless one is begun.

    Args:
        place: The store's folder.
        patience: Seconds to wait while another process writes.

    Raises:
        StoreError: The file cannot be opened.
    """
    try:
        connection = sqlite3.connect(
            place / FILE, timeout=patience, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise explained(error, place) from error
    try:
        connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last answers, no others
    except sqlite3.Error as error:
        connection.close()
        raise explained(error, place) from error
    return connection


def check_kind(connection: sqlite3.Connection, place: Path) -> bool:
    """Whether there is a store yet, in a file that may be empty.

    Raises:
        StoreError: It is something else, or of a later version.
        sqlite3.Error: It cannot be read.
    """
    kind, version, tables = (
        connection.execute(query).fetchone()[0]
        for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if not tables and not kind:
        return False
    if kind != _KIND:
        raise ForeignStore(
            f"{place / FILE} is no store of answers", "move it away, or set FEDBPT_CACHE to another folder"
        )
    if version > VERSION:
        raise ForeignStore(f"{place / FILE} is of version {version}", "use a newer fedbpt_api")
    return True


def explained(error: sqlite3.Error, place: Path) -> StoreError:
    """What SQLite says, with what to do about it."""
    advice = "`fedbpt cache prune --all` makes a new one; what runs have paid for is in their folders"
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        advice = "another process holds it: try again when that is done"
    elif isinstance(error, sqlite3.OperationalError) and ("readonly" in str(error) or "open" in str(error)):
        advice = "set FEDBPT_CACHE to a folder that can be written"
    return StoreError(f"the store of answers {place / FILE} cannot be used: {error}", advice)


def files(place: Path) -> list[Path]:
    """What the store has on disk: its file, what SQLite keeps beside it, the salt."""
    names = (FILE, f"{FILE}-wal", f"{FILE}-shm", SALT)
    return [path for name in names if (path := place / name).is_file()]


def _salt(path: Path) -> bytes:
    """The salt that is there; else a new one, the same for all that make it at the same time."""
    if not path.exists():
        mine = path.with_name(f".{SALT}-{os.getpid()}-{os.urandom(4).hex()}")
        with open(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
            file.write(os.urandom(_SALT_BYTES))
        try:
            os.link(mine, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                mine.replace(path)
        finally:
            mine.unlink(missing_ok=True)
    salt = path.read_bytes()
    if len(salt) != _SALT_BYTES:
        raise StoreError(f"{path} is damaged", "`fedbpt cache prune --all` makes a new store")
    return salt


def _settle(connection: sqlite3.Connection, place: Path, salt: bytes) -> None:
    """Make the tables in a file that is empty; refuse one that is something else."""
    check = hashlib.blake2b(b"store", digest_size=8, key=salt).digest()
    if not connection.execute("PRAGMA page_count").fetchone()[0]:
        connection.execute("PRAGMA journal_mode = WAL")  # it stays so: readers do not wait for writers
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not check_kind(connection, place):
            for statement in _TABLES.split(";")[:-1]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_KIND}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("INSERT INTO meta VALUES ('check', ?)", (check,))
        elif connection.execute("SELECT value FROM meta WHERE name = 'check'").fetchone() != (check,):
            raise StoreError(
                f"{place / FILE} was made with another salt than {place / SALT}",
                "bring the two files back together, or make a new store with `fedbpt cache prune --all`",
            )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
