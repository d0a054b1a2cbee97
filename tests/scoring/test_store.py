"""The shared store of answers: what it hands out is what was answered to exactly that, or nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.scoring import store_file
from fedbpt_api.scoring.backend import Prompt, Soft
from fedbpt_api.scoring.known import Question
from fedbpt_api.scoring.store import Server, Shelf, Store, StoreError

ABOUT = {"kind": "vllm", "model": "m", "url": "http://a:1", "fingerprint": "f", "way": "ids", "version": "1"}
MORE: dict[str, Any] = {"tokenizer": "t", "options": {"system": "Be brief.", "top_k": 20}, "labels": []}
SERVER = Server(ABOUT, MORE)
WORDS: Question = ("words", (5, 6, 7))
PROMPT = Prompt((1, 2, 3))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "scores")
    yield opened
    opened.close()


def keys(shelf: Shelf, n: int, part: str = "train") -> list[bytes]:
    return [shelf.key(WORDS, Prompt((i, 2, 3)), part) for i in range(n)]


def rows(n: int, width: int = 3, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def reopened(store: Store, server: Server = SERVER) -> tuple[Store, Shelf]:
    store.close()
    again = Store(store.place)
    return again, again.shelf(server)


# Keys -------------------------------------------------------------------------------------------


def test_every_fact_about_a_server_makes_another_server(store: Store) -> None:
    others = [Server({**ABOUT, name: value + "x"}, MORE) for name, value in ABOUT.items()]
    others += [Server(ABOUT, {**MORE, name: "other"}) for name in MORE]
    others += [
        Server({**ABOUT, "more": "1"}, MORE),
        Server(ABOUT, {**MORE, "options": {"system": "Be brief"}}),
    ]
    shelves = [store.shelf(server) for server in (SERVER, *others)]
    assert len({shelf.key(WORDS, PROMPT, "dev") for shelf in shelves}) == len(shelves)
    same = Server(dict(reversed(ABOUT.items())), dict(reversed(MORE.items())))
    assert store.shelf(same).key(WORDS, PROMPT, "dev") == shelves[0].key(WORDS, PROMPT, "dev")


IDS = st.lists(st.integers(-3, 2**31 - 1), max_size=5).map(tuple)
QUESTIONS = st.one_of(
    st.tuples(st.just("words"), IDS),
    st.tuples(st.sampled_from(["words, repeat 1", "words, repeat 2"]), IDS),
    st.tuples(st.just("top"), st.integers(1, 600)),
)
INPUTS = st.tuples(
    IDS, st.none() | st.integers(0, 2), st.integers(0, 3), st.sampled_from(["", "train", "dev", "test"])
)


@given(st.lists(st.tuples(QUESTIONS, INPUTS), min_size=2, max_size=12))
def test_keys_are_equal_exactly_where_everything_is(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[Question, Any]]
) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "keys")
    shelf, meanings, found = store.shelf(SERVER), set(), set()
    for question, (ids, soft, at, part) in asked:
        vectors = None if soft is None else Soft(np.full((2, 2), soft, dtype=np.float32))
        meanings.add((question, ids, soft, at if soft is not None else 0, part))
        found.add(shelf.key(question, Prompt(ids, len(ids) // 2, vectors, at), part))
    store.close()
    assert len(found) == len(meanings)


def test_training_and_development_data_never_answer_for_each_other(store: Store) -> None:
    shelf = store.shelf(SERVER)
    shelf.keep(keys(shelf, 4, "train"), rows(4))
    again, shelf = reopened(store)
    assert shelf.find(keys(shelf, 4, "dev") + keys(shelf, 4, "test") + keys(shelf, 4, "")) == [None] * 12
    assert all(answer is not None for answer in shelf.find(keys(shelf, 4, "train")))
    again.close()


def test_lists_of_probable_words_are_found_in_the_same_scope_only(store: Store) -> None:
    top: Question = ("top", 3)
    here, there = store.shelf(SERVER, b"texts"), store.shelf(SERVER, b"other texts")
    assert here.key(top, PROMPT, "train") != there.key(top, PROMPT, "train")
    assert here.key(WORDS, PROMPT, "train") == there.key(WORDS, PROMPT, "train")


# Values -----------------------------------------------------------------------------------------


@given(n=st.integers(1, 9), width=st.integers(1, 128), seed=st.integers(0, 9))
def test_what_was_kept_is_found_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, n: int, width: int, seed: int
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    shelf, kept = store.shelf(SERVER), rows(n, width, seed)
    lists = [{int(t): float(v) for t, v in enumerate(row)} for row in kept]
    shelf.keep(keys(shelf, n, "train"), kept)
    shelf.keep(keys(shelf, n, "dev"), lists)
    again, shelf = reopened(store)
    found = shelf.find(keys(shelf, n, "train"))
    assert np.array_equal(np.array(found), kept)
    assert shelf.find(keys(shelf, n, "dev")) == lists
    again.close()


def test_values_never_change(store: Store) -> None:
    shelf = store.shelf(SERVER)
    shelf.keep(keys(shelf, 3), rows(3, seed=1))
    shelf.keep(keys(shelf, 3), rows(3, seed=2))
    again, shelf = reopened(store)
    found = shelf.find(keys(shelf, 3))
    assert np.array_equal(np.array(found), rows(3, seed=1))
    assert isinstance(found[0], np.ndarray)
    with pytest.raises(ValueError, match="read-only"):
        found[0][0] = 0.0
    again.close()


def test_no_damaged_answer_is_used_and_a_new_one_takes_its_place(store: Store) -> None:
    shelf, n = store.shelf(SERVER), 40
    asked = keys(shelf, n)
    shelf.keep(asked, rows(n))
    store.close()
    random, spoilt = Random(0), set()
    with sqlite3.connect(store.place / store_file.FILE) as connection:
        for number in range(0, n, 2):
            (value,) = connection.execute(
                "SELECT value FROM answers WHERE key = ?", asked[number : number + 1]
            ).fetchone()
            data = bytearray(value)
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            changed = bytes(data) if number % 4 else value[: random.randrange(len(value))]
            connection.execute("UPDATE answers SET value = ? WHERE key = ?", (changed, asked[number]))
            spoilt.add(number)
        # a whole value under another's key
        connection.execute(
            "UPDATE answers SET value = (SELECT value FROM answers WHERE key = ?) WHERE key = ?",
            (asked[3], asked[1]),
        )
    connection.close()
    spoilt.add(1)
    again, shelf = reopened(store)
    found = shelf.find(asked)
    assert {number for number, answer in enumerate(found) if answer is None} == spoilt
    assert all(
        np.array_equal(np.asarray(answer), row)
        for answer, row in zip(found, rows(n), strict=True)
        if answer is not None
    )
    assert len(again.trouble) == 1 and "damaged answers" in again.trouble[0]
    shelf.keep(asked, rows(n))
    again, shelf = reopened(again)
    assert all(answer is not None for answer in shelf.find(asked)) and not again.trouble
    again.close()


def test_the_file_alone_tells_nothing_about_texts_or_answers(store: Store, tmp_path: Path) -> None:
    """Two stores, one world: without its salt neither keys nor values of one say anything about the other."""
    other = Store(tmp_path / "other")
    held = []
    for each in (store, other):
        shelf = each.shelf(SERVER)
        shelf.keep(keys(shelf, 20), rows(20))
        each.close()
        with sqlite3.connect(each.place / store_file.FILE) as connection:
            held.append(connection.execute("SELECT key, value FROM answers").fetchall())
        connection.close()
        whole = b"".join(path.read_bytes() for path in each.place.iterdir())
        assert rows(20)[0].tobytes() not in whole and b"Be brief" not in whole
        assert (each.place / store_file.SALT).stat().st_mode & 0o077 == 0
    assert not {k for k, _ in held[0]} & {k for k, _ in held[1]}
    assert not {v for _, v in held[0]} & {v for _, v in held[1]}


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"x" * 5000, b"SQLite format 3\0" + b"\1" * 4084], ids=["text", "header"]
)
def test_a_damaged_file_is_told_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / store_file.FILE).write_bytes(content)
    with pytest.raises(StoreError, match=r"(?s)answers.sqlite.*fedbpt cache prune --all"):
        Store(tmp_path)
    assert (tmp_path / store_file.FILE).read_bytes() == content


def test_somebody_else_s_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / store_file.FILE) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    before = (tmp_path / store_file.FILE).read_bytes()
    with pytest.raises(StoreError, match="is no store of answers"):
        Store(tmp_path)
    assert (tmp_path / store_file.FILE).read_bytes() == before


def test_a_later_version_and_another_salt_are_refused(store: Store) -> None:
    store.close()
    salt = (store.place / store_file.SALT).read_bytes()
    (store.place / store_file.SALT).write_bytes(salt[::-1])
    with pytest.raises(StoreError, match="another salt"):
        Store(store.place)
    (store.place / store_file.SALT).write_bytes(salt)
    with sqlite3.connect(store.place / store_file.FILE) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StoreError, match="version 2"):
        Store(store.place)


@pytest.mark.parametrize("place", ["/proc/fedbpt/scores", "{file}/scores"])
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="FEDBPT_CACHE"):
        Store(Path(place.format(file=tmp_path / "file")))


def test_a_file_cut_off_in_mid_run_ends_the_store_s_use_and_nothing_else(store: Store) -> None:
    shelf = store.shelf(SERVER)
    shelf.keep(keys(shelf, 900), rows(900))
    again, shelf = reopened(store)
    path = store.place / store_file.FILE
    path.write_bytes(path.read_bytes()[:8192])
    found = shelf.find(keys(shelf, 900))
    shelf.keep(keys(shelf, 9), rows(9))
    again.close()
    assert found == [None] * 900 and not again.usable
    assert len(again.trouble) == 1 and "goes on without it" in again.trouble[0]


def test_what_another_process_locks_ends_the_store_s_use(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = store.shelf(SERVER)
    store._writing.execute("PRAGMA busy_timeout = 1")
    holder = sqlite3.connect(store.place / store_file.FILE, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    shelf.keep(keys(shelf, 2), rows(2))
    store.close()
    holder.close()
    assert not store.usable
    assert "locked" in store.trouble[0] and "another process holds it" in store.trouble[0]


PROCESS = """
import sys, numpy as np
from pathlib import Path
from fedbpt_api.scoring.backend import Prompt
from fedbpt_api.scoring.store import Server, Store
store = Store(Path(sys.argv[1])); number = int(sys.argv[2])
shelf = store.shelf(Server({"kind": "toy"}, {}))
for begin in range(0, 1000, 20):
    keys = [shelf.key(("words", (1, 2)), Prompt((i,)), "train") for i in range(begin, begin + 20)]
    for i, answer in zip(range(begin, begin + 20), shelf.find(keys), strict=True):
        assert answer is None or answer.tolist() == [i, i], answer
    shelf.keep(keys, np.array([[i, i] for i in range(begin, begin + 20)], dtype=np.float32))
store.close()
print(store.trouble)
"""


def test_processes_share_a_store_that_they_make_at_the_same_time(tmp_path: Path) -> None:
    place = tmp_path / "new" / "scores"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(place), str(i)], stdout=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    assert [process.communicate()[0] for process in running] == ["[]\n"] * 3
    store = Store(place)
    shelf = store.shelf(Server({"kind": "toy"}, {}))
    found = shelf.find([shelf.key(("words", (1, 2)), Prompt((i,)), "train") for i in range(1000)])
    assert [None if a is None else [float(v) for v in a] for a in found] == [[i, i] for i in range(1000)]
    store.close()
    assert sorted(path.name for path in place.iterdir()) == [store_file.FILE, store_file.SALT]


def test_a_server_seen_again_is_the_same_one(store: Store) -> None:
    assert store.shelf(SERVER).number == store.shelf(replace(SERVER)).number
