"""Records to JSON and back, and what a reader of a damaged file is told."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import RunFolderError
from fedbpt_api.run.result import ClientRecord, Paired, RoundRecord, Row, RunResult, TestReport


def _through_json(data: dict[str, Any]) -> dict[str, Any]:
    read = json.loads(json.dumps(data, allow_nan=False))
    assert isinstance(read, dict)
    return read


def test_a_test_report_survives_json(report: TestReport) -> None:
    assert TestReport.from_dict(_through_json(report.to_dict())) == report


def test_a_run_survives_json(result: RunResult) -> None:
    read = RunResult.from_dict(_through_json(result.to_dict()))
    assert read.to_dict() == result.to_dict()
    assert read.test == result.test
    assert read.rounds[0] == result.rounds[0]
    assert read.spent == result.spent


def test_nan_is_written_as_null_and_read_as_nan(result: RunResult) -> None:
    lost = next(c for c in result.rounds[4].clients if not c.answered)
    written = _through_json(lost.to_dict())
    assert written["loss"] is None
    assert math.isnan(ClientRecord.from_dict(written).loss)


def test_a_run_without_test_or_folder_survives() -> None:
    bare = RunResult(None, "", "a", "cancelled", (), {"x": {"scored": 1, "seconds": 0.5}}, None)
    assert RunResult.from_dict(_through_json(bare.to_dict())) == bare


@given(
    st.builds(
        ClientRecord,
        loss=st.floats(allow_nan=False, allow_infinity=False),
        dev_loss=st.floats(allow_nan=False, allow_infinity=False),
        dev_accuracy=st.floats(0, 1),
        distinct=st.floats(0, 1),
    )
)
def test_any_client_record_survives_json(record: ClientRecord) -> None:
    assert ClientRecord.from_dict(_through_json(record.to_dict())) == record


def test_older_records_without_the_newer_keys_are_read(result: RunResult) -> None:
    data = result.rounds[1].to_dict()
    for client in data["clients"]:
        del client["bytes_up"], client["bytes_down"], client["note"]
    assert RoundRecord.from_dict(data).clients[0].bytes_up == 0


def test_whole_numbers_are_fine_where_a_float_is_expected(report: TestReport) -> None:
    data = report.rows[0].to_dict() | {"accuracy": 1}
    read = Row.from_dict(data)
    assert isinstance(read.accuracy, float)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rounds", 1, "clients", 2, "scored"), "12", r"rounds\[1\]\.clients\[2\]\.scored: expected a whole"),
        (("rounds", 1, "clients", 2, "answered"), 1, r"answered: expected true or false, found 1"),
        (("rounds", 0, "dev_loss"), True, r"rounds\[0\]\.dev_loss: expected a number, found True"),
        (("rounds", 0, "scored"), 1.5, r"rounds\[0\]\.scored: expected a whole number"),
        (("test", "rows", 3, "confusion"), 7, r"test\.rows\[3\]\.confusion: expected a list"),
        (("test", "labels", 0), None, r"test\.labels\[0\]: expected a string, found None"),
        (("spent", "cars", "scored"), "many", r"spent\.cars\.scored: expected a number"),
        (("spent",), [], r"spent: expected an object"),
        (("prompt",), 3, r"prompt: expected a string, found 3"),
        (("colour",), "red", r"colour: unknown key"),
    ],
)
def test_malformed_input_names_the_key(
    result: RunResult, path: tuple[str | int, ...], value: object, message: str
) -> None:
    data = _through_json(result.to_dict())
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(RunFolderError, match=message):
        RunResult.from_dict(data)


def test_a_missing_key_is_named(report: TestReport) -> None:
    data = report.paired[0].to_dict()
    del data["p_value"]
    with pytest.raises(RunFolderError, match="p_value: missing"):
        Paired.from_dict(data)
