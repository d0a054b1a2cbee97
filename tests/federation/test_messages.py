"""The wire format: sizes, exactness, and that no bytes at all can do more than be refused."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbpt_api.aggregate import FedBPT, GlobalState, Update
from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.messages import (
    MAX_CLIENT,
    MAX_COUNT,
    Broadcast,
    MessageError,
    decode_state,
    decode_update,
    encode_state,
    encode_update,
)

singles = st.floats(width=32, allow_nan=False, allow_infinity=False)
steps = st.floats(2.0**-100, 2.0**100, width=32)
UPDATE = Update("acme", 7, np.array([1.5, -0.25]), 0.75, (1.0, 0.5), 6, n=32, scored=768)
STATE = replace(GlobalState.first([0.5, -2.0], 0.25), round=7)


def test_the_bytes_of_a_small_message() -> None:
    assert encode_state(STATE) == (
        b'{"version":1,"kind":"state","round":7,"d":2}\n'
        b"\x00\x00\x00\x3f\x00\x00\x00\xc0\x00\x00\x80\x3e"  # 0.5, -2, 0.25 as little-endian float32
    )
    assert encode_update(UPDATE) == (
        b'{"version":1,"kind":"update","client":"acme","round":7,"population":6,"n":32,"scored":768,'
        b'"d":2,"steps":2}\n'
        b"\x00\x00\xc0\x3f\x00\x00\x80\xbe\x00\x00\x80\x3f\x00\x00\x00\x3f\x00\x00\x40\x3f"
    )


@given(
    st.lists(singles, min_size=1, max_size=40),
    st.lists(steps, min_size=1, max_size=10),
    singles,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_CLIENT),
    st.integers(0, MAX_COUNT),
)
def test_single_precision_comes_through_unchanged(
    mean: list[float], sizes: list[float], loss: float, client: str, count: int
) -> None:
    update = Update(client, count, np.array(mean), loss, tuple(sizes), count + 1 if count < 9 else count, n=3)
    assert decode_update(encode_update(update)) == update
    state = replace(GlobalState.first(mean, sizes[0]), round=count)
    assert decode_state(encode_state(state)) == Broadcast(count, state.mean, sizes[0])


def test_double_precision_is_rounded_once() -> None:
    rng = np.random.default_rng(1)
    update = replace(UPDATE, mean=rng.standard_normal(30), loss=1 / 3)
    arrived = decode_update(encode_update(update))
    np.testing.assert_array_equal(arrived.mean, update.mean.astype(np.float32).astype(np.float64))
    assert arrived.loss == float(np.float32(1 / 3))
    assert encode_update(arrived) == encode_update(update)


def test_four_kilobytes_are_enough_for_500_coordinates_and_8_iterations() -> None:
    rng = np.random.default_rng(2)
    worst_name = "\x01" * MAX_CLIENT  # six bytes a character in JSON
    updates = [
        Update(name, MAX_COUNT, rng.standard_normal(500), 1e-9, (0.1,) * 8, MAX_COUNT, MAX_COUNT, MAX_COUNT)
        for name in ("a", "b", worst_name)
    ]
    assert max(len(encode_update(update)) for update in updates) <= 4096
    state = FedBPT().merge(replace(GlobalState.first(np.zeros(500), 1.0), round=MAX_COUNT), updates)
    assert len(encode_state(replace(state, round=MAX_COUNT))) <= 4096


def test_the_servers_own_figures_do_not_travel() -> None:
    secret = replace(STATE, covariance=np.eye(2) * 3, path_c=np.ones(2), path_sigma=np.ones(2), generation=4)
    assert encode_state(secret) == encode_state(STATE)
    assert [field.name for field in fields(Broadcast)] == ["round", "mean", "sigma"]


@pytest.mark.parametrize(
    "bad",
    [
        replace(UPDATE, loss=math.nan),
        replace(UPDATE, loss=1e39),
        replace(UPDATE, mean=np.array([math.inf])),
        replace(UPDATE, mean=np.array([])),
        replace(UPDATE, step_sizes=()),
        replace(UPDATE, step_sizes=(1e-60,)),
        replace(UPDATE, step_sizes=(1.0,) * 257),
        replace(UPDATE, client=""),
        replace(UPDATE, client="x" * 129),
        replace(UPDATE, client="\ud800"),
        replace(UPDATE, round=-1),
        replace(UPDATE, n=0),
        replace(UPDATE, scored=2**53),
        replace(UPDATE, scored=2**70),
        replace(UPDATE, population=True),
    ],
)
def test_what_cannot_be_read_is_not_written(bad: Update) -> None:
    with pytest.raises(MessageError):
        encode_update(bad)


def header(**changes: object) -> bytes:
    fields_of_state: dict[str, object] = {"version": 1, "kind": "state", "round": 7, "d": 2}
    return orjson.dumps({**fields_of_state, **changes})


BODY = np.array([0.5, -2.0, 0.25], dtype="<f4").tobytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no header line"),
        (b"{" + b" " * 2000 + b"}\n", "no header line"),
        (b"[]\n", "not a JSON object"),
        (b"{]\n", "not JSON"),
        (b"\xff\n", "not JSON"),
        (header(version=2) + b"\n" + BODY, "has version 2, but 1 is understood"),
        (header(version=True) + b"\n" + BODY, "has version True"),
        (header(version=1.0) + b"\n" + BODY, "has version 1.0"),
        (header(kind="update") + b"\n" + BODY, "has kind 'update'"),
        (header(kind=["state"]) + b"\n" + BODY, "has kind"),
        (header(extra=1) + b"\n" + BODY, "exactly the fields"),
        (header(round=-1) + b"\n" + BODY, "field round"),
        (header(round=None) + b"\n" + BODY, "field round"),
        (header(round="7") + b"\n" + BODY, "field round"),
        (header(d=2.0) + b"\n" + BODY, "field d"),
        (header(d=10**9) + b"\n" + BODY, "field d"),
        (header() + b" \n" + BODY, "canonical"),
        (b'{"version":1,"kind":"state","round":1,"round":7,"d":2}\n' + BODY, "canonical"),
        (header() + b"\n" + BODY[:-1], "11 bytes of numbers, but its header promises 12"),
        (header() + b"\n" + BODY + b"\0", "13 bytes of numbers"),
        (header() + b"\n" + BODY[:8] + b"\0\0\0\0", "must be above 0"),
        (header() + b"\n" + BODY[:8] + b"\0\0\xc0\x7f", "not finite"),
    ],
)
def test_anything_else_is_refused_with_a_reason(data: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        decode_state(data)


def refused_or_canonical(data: bytes) -> None:
    """Both decoders raise `FedbptError`, or have read a message that encodes to the same bytes."""
    try:
        update = decode_update(data)
    except FedbptError:
        pass
    else:
        assert encode_update(update) == data
    try:
        told = decode_state(data)
    except FedbptError:
        pass
    else:
        assert encode_state(replace(GlobalState.first(told.mean, told.sigma), round=told.round)) == data


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    refused_or_canonical(data)
    refused_or_canonical(header() + b"\n" + data)


@settings(max_examples=500)
@given(
    st.sampled_from([encode_state(STATE), encode_update(UPDATE)]),
    st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=3), st.integers(0, 3)), max_size=4),
    st.integers(0, 200),
)
def test_damaged_messages_are_refused(data: bytes, edits: list[tuple[int, bytes, int]], length: int) -> None:
    for place, new, old in edits:
        data = data[:place] + new + data[place + old :]
    refused_or_canonical(data)
    refused_or_canonical(data[:length])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text("a\x00é"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(["version", "kind", "round", "d"]), json_values)
def test_headers_of_other_types_are_refused(name: str, value: object) -> None:
    refused_or_canonical(header(**{name: value}) + b"\n" + BODY)
