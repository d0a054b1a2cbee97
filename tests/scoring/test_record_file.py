"""Files of records: whole or absent, whatever the process and the disk do."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import RunFolderError
from fedbpt_api.scoring.record_file import RecordFile, allow_open, read_records

HEADER = {"format": "test", "version": 1}
payloads = st.lists(st.binary(min_size=1, max_size=60), max_size=6)


def written(path: Path, records: list[bytes], *, room: bool = False) -> None:
    file = RecordFile(path, HEADER)
    if room:
        file.make_room()
    for record in records:
        file.append(record)
    if not room:
        file.close()
    else:
        file._file.close()  # as a process that was killed leaves it: zeros behind the records


def read(path: Path) -> list[bytes]:
    return [bytes(payload) for payload in read_records(path, "test", 1).payloads]


@given(records=payloads, room=st.booleans())
def test_what_was_appended_is_read_with_space_set_aside_or_not(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes], room: bool
) -> None:
    path = tmp_path_factory.mktemp("records") / "x"
    written(path, records, room=room)
    assert read(path) == records


@given(records=payloads, cut=st.floats(0, 1), zeros=st.booleans(), more=payloads)
def test_any_prefix_is_a_valid_state_that_goes_on(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes], cut: float, zeros: bool, more: list[bytes]
) -> None:
    """Cut anywhere behind the header, with the zeros of space set aside behind it or without."""
    path = tmp_path_factory.mktemp("records") / "x"
    written(path, records)
    data = path.read_bytes()
    start = data.index(b"\n") + 1
    kept = data[: start + int(cut * (len(data) - start))]
    path.write_bytes(kept + b"\0" * 5000 * zeros)
    found = read_records(path, "test", 1)
    whole = [bytes(p) for p in found.payloads]
    assert whole == records[: len(whole)]
    again = RecordFile(path, HEADER, found.whole)
    for record in more:
        again.append(record)
    again.close()
    assert read(path) == whole + more


@given(data=st.binary(max_size=300))
def test_anything_behind_the_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("records") / "x"
    path.write_bytes(b'{"format":"test","version":1}\n' + data)
    try:
        read(path)
    except RunFolderError as error:
        assert "damaged at byte" in error.message


@pytest.mark.parametrize("version", [0, 2, "1", None, -1])
def test_other_versions_are_refused(tmp_path: Path, version: object) -> None:
    RecordFile(tmp_path / "x", {"format": "test", "version": version}).close()
    with pytest.raises(RunFolderError, match="version"):
        read(tmp_path / "x")


def test_a_new_file_replaces_none(tmp_path: Path) -> None:
    written(tmp_path / "x", [b"a"])
    with pytest.raises(RunFolderError, match="cannot be written"):
        RecordFile(tmp_path / "x", HEADER)
    assert read(tmp_path / "x") == [b"a"]


@pytest.fixture
def few_files() -> Iterator[None]:
    """At most 200 open files for this process, more if it asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_many(folder: Path, stack: contextlib.ExitStack) -> None:
    """300 files, open at the same time."""
    for number in range(300):
        stack.callback(RecordFile(folder / str(number), HEADER).close)


def test_as_many_files_are_open_as_there_are_parties(tmp_path: Path, few_files: None) -> None:
    with contextlib.ExitStack() as stack:
        allow_open(300)
        open_many(tmp_path, stack)


def test_too_many_open_files_are_told_apart_from_a_full_disk(tmp_path: Path, few_files: None) -> None:
    with contextlib.ExitStack() as stack:
        with pytest.raises(RunFolderError, match="Too many open files") as refused:
            open_many(tmp_path, stack)
        assert "ulimit -n" in refused.value.hint and "make room" not in refused.value.hint
