"""The journal of scores: what was written is read, whatever happens to the end of the file."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import RunFolderError
from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import EncodedText, Encoder
from fedbpt_api.scoring.journal import Answer, Journal, Record, read_journal, secret_of
from fedbpt_api.scoring.known import asked_key
from fedbpt_api.scoring.scorer import Scorer, Stopped
from toy import LABEL_WORDS, TEMPLATE, ToyBackend, make_examples

WORDS = (3, 4, 5)


SOME, OTHERS = make_examples(6, 0), make_examples(6, 1)


def texts(n: int, seed: int = 0) -> tuple[EncodedText, ...]:
    return asyncio.run(Encoder(ToyBackend(), TEMPLATE, LABEL_WORDS).texts(make_examples(n, seed)))


def written(path: Path, records: int = 4, width: int = 2, seed: int = 0) -> list[Record]:
    """A journal of named words and lists, and what was put into it."""
    rng, made = np.random.default_rng(seed), []
    journal = Journal(path, b"secret")
    for number in range(records):
        n = int(rng.integers(1, 33))
        keys = tuple(rng.bytes(16) for _ in range(n))
        rows: list[Answer] = list(rng.normal(size=(n, width)).astype(np.float32))
        if number % 2:
            rows = [{int(t): float(np.float32(rng.normal())) for t in range(7)} for _ in range(n)]
        made.append(Record(keys, tuple(rows), Usage(n, 40 * n, 3 * n, n), number + 0.5))
        journal.append(keys, rows, made[-1].usage, made[-1].seconds)
    journal.close()
    return made


def same(first: list[Record], second: list[Record]) -> bool:
    """Whether they are equal bit for bit (NaN would not be equal to itself)."""
    return [plain(record) for record in first] == [plain(record) for record in second]


def plain(record: Record) -> tuple[object, ...]:
    rows = [a.tobytes() if isinstance(a, np.ndarray) else a for a in record.answers]
    return record.keys, rows, record.usage, record.seconds


@given(records=st.integers(0, 5), width=st.integers(1, 128), seed=st.integers(0, 9))
def test_what_was_written_is_read_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, records: int, width: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "scores.journal"
    assert same(written(path, records, width, seed), list(read_journal(path)))


def test_cut_anywhere_it_gives_the_records_that_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "scores.journal"
    made = written(path)
    data = path.read_bytes()
    start = data.index(b"\n") + 1
    counts = []
    for cut in range(start, len(data) + 1):
        path.write_bytes(data[:cut])
        found = list(read_journal(path))
        assert same(made[: len(found)], found)
        counts.append(len(found))
    assert counts[0] == 0 and counts[-1] == 4 and counts == sorted(counts) and set(counts) == {0, 1, 2, 3, 4}


def test_a_flipped_bit_is_found_and_never_answers(tmp_path: Path) -> None:
    path = tmp_path / "scores.journal"
    made = written(path)
    data = bytearray(path.read_bytes())
    start, random = data.index(b"\n") + 1, Random(0)
    for _ in range(200):
        place, bit = random.randrange(start, len(data)), 1 << random.randrange(8)
        data[place] ^= bit
        path.write_bytes(data)
        found = []
        try:
            found += list(read_journal(path))
        except RunFolderError as error:
            assert "damaged at byte" in str(error)
        else:
            assert len(found) < len(made)
        assert same(made[: len(found)], found)
        data[place] ^= bit


def test_on_a_full_disk_the_error_is_clear_and_later_records_are_whole(tmp_path: Path) -> None:
    """A real limit on the file's size, in a process of its own: the second record does not fit."""
    program = (
        "import resource, signal, sys, numpy as np; from pathlib import Path\n"
        "from fedbpt_api.errors import RunFolderError\n"
        "from fedbpt_api.scoring.backend import Usage\n"
        "from fedbpt_api.scoring.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "journal = Journal(Path(sys.argv[1]), b'secret')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))\n"
        "for number, width in enumerate((9, 9000, 7)):\n"
        "    rows = [np.full(width, number, np.float32)] * 2\n"
        "    try:\n"
        "        journal.append([bytes([number]) * 16, bytes([number + 9]) * 16], rows, Usage(2, 1, 0, 2))\n"
        "    except RunFolderError as error:\n"
        "        print(number, error.message, error.hint)\n"
        "journal.close()\n"
    )
    path = tmp_path / "scores.journal"
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(f"1 {path} cannot be written: File too large make room")
    assert [len(record.answers[0]) for record in read_journal(path)] == [9, 7]


@pytest.mark.parametrize(("content", "message"), [(b"", "no fedbpt-journal"), (b"{}\n", "no fedbpt-journal")])
def test_another_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(RunFolderError, match=message):
        list(read_journal(tmp_path / "x"))


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'{"format":"fedbpt-journal","version":3}\n')
    with pytest.raises(RunFolderError, match="version 3"):
        list(read_journal(tmp_path / "x"))


def test_a_journal_goes_on_behind_its_last_whole_record(tmp_path: Path) -> None:
    path = tmp_path / "x"
    made = written(path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[-9:])  # what a dying process left
    journal = Journal(path, b"secret")
    row = np.array([[1.0, 2.0]], np.float32)
    journal.append([b"k" * 16], row, Usage(1, 2, 3, 4), 9.0)
    journal.close()
    assert same([*made, Record((b"k" * 16,), (row[0],), Usage(1, 2, 3, 4), 9.0)], list(read_journal(path)))


def test_a_journal_of_other_texts_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "x")
    with pytest.raises(RunFolderError, match="other texts"):
        Journal(tmp_path / "x", b"another")


def test_space_is_set_aside_before_it_is_needed_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "x"
    journal = Journal(path, b"secret")
    journal.make_room()
    assert path.stat().st_size > 500_000
    journal.append([b"k" * 16], np.zeros((1, 2), np.float32), Usage(1, 1, 0, 1))
    assert len(list(read_journal(path))) == 1  # zeros behind the last record are no damage
    journal.close()
    assert path.stat().st_size < 500


@given(seed=st.integers(0, 5), order=st.permutations(range(20)))
def test_an_earlier_session_s_answers_are_found_by_key(
    tmp_path_factory: pytest.TempPathFactory, seed: int, order: list[int]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "scores.journal"
    made = written(path, seed=seed)
    past = Journal(path, b"secret", Stopped()).past  # for reading alone
    for record in made:
        named = not isinstance(record.answers[0], dict)
        chosen = [i for i in order if i < len(record.keys)]
        found = past.find([record.keys[i] for i in chosen])
        pairs = [pair for pair in found if pair is not None]
        assert len(pairs) == len(chosen)
        for i, row in zip(chosen, past.rows(pairs) if pairs else [], strict=True):
            expected: Any = record.answers[i]
            assert np.array_equal(row, expected) if named else row == expected
    everything = [past.find([key])[0] for record in made for key in record.keys]
    assert sorted(pair for pair in everything if pair is not None) == list(range(len(past)))
    total = past.usage([pair for pair in everything if pair is not None])
    assert total == sum((record.usage for record in made), Usage())
    assert past.find([b"\0" * 16, b"\xff" * 16]) == [None, None]
    assert past.seconds == made[-1].seconds


def test_the_test_s_answers_are_apart_from_the_search_s(tmp_path: Path) -> None:
    """A text may be in both; each has paid for its own answer."""
    path, key = tmp_path / "x", b"k" * 16
    journal = Journal(path, b"secret")
    for value, test in ((1.0, False), (2.0, True)):
        journal.append([key], np.full((1, 2), value, np.float32), Usage(1, 1, 0, 1), test=test)
    journal.append([b"s" * 16], np.zeros((1, 2), np.float32), Usage(1, 1, 0, 1))
    journal.close()
    past = Journal(path, b"secret", Stopped()).past
    for value, test in ((1.0, False), (2.0, True)):
        (pair,) = past.find([key], test=test)
        assert pair is not None and past.rows([pair]).tolist() == [[value, value]]
    assert past.find([b"s" * 16], test=True) == [None]


def test_a_scored_example_takes_at_most_60_bytes_for_two_words_and_4_for_each_further(tmp_path: Path) -> None:
    for width in (2, 3, 128):
        path = tmp_path / f"{width}.journal"
        journal = Journal(path, b"secret")
        before = path.stat().st_size
        journal.append([b"k" * 16] * 32, [np.zeros(width, np.float32)] * 32, Usage(32, 1, 1, 32))
        journal.close()
        assert (path.stat().st_size - before) / 32 <= 60 + 4 * (width - 2)


def test_keys_tell_prompts_texts_questions_and_clients_apart(tmp_path: Path) -> None:
    some = texts(6)
    keys = []
    for name, secret in (("a", secret_of(SOME)), ("b", secret_of(OTHERS))):
        journal = Journal(tmp_path / name, secret)
        for text in some:
            keys += [journal.key(asked_key(("words", WORDS), prompt), text) for prompt in ((), (1,), (1, 2))]
            keys += [
                journal.key(asked_key(other, (1,)), text) for other in (("words", WORDS[:2]), ("top", 3))
            ]
        journal.close()
    assert len(set(keys)) == len(keys) == 2 * 6 * 5
    assert {len(key) for key in keys} == {16}


async def test_what_a_scorer_was_answered_is_in_its_journal_before_it_is_used(tmp_path: Path) -> None:
    encoder = Encoder(ToyBackend(), TEMPLATE, LABEL_WORDS)
    some = await encoder.texts(make_examples(50, 0))
    path = tmp_path / "scores.journal"
    scorer = Scorer(ToyBackend(), Budget(), journal=Journal(path, secret_of(SOME)))
    scorer.use_words(WORDS)
    lists = await scorer.top_words((1,), some, 5)
    scores = await scorer.score((1, 2), some)
    await scorer.score((1, 2), some)  # known: asked for once
    records = list(read_journal(path))
    kept = {
        key: answer for record in records for key, answer in zip(record.keys, record.answers, strict=True)
    }
    assert len(kept) == sum(record.usage.scored for record in records) == scorer.budget.spent.scored
    assert scorer.journal is not None
    for text, row, found in zip(some, scores, lists, strict=True):
        named = kept[scorer.journal.key(asked_key(("words", WORDS), (1, 2)), text)]
        assert isinstance(named, np.ndarray) and np.array_equal(named, row)
        listed = kept[scorer.journal.key(asked_key(("top", 5), (1,)), text)]
        assert listed == pytest.approx(found, rel=1e-6)
    scorer.journal.close()
