"""Bundles: what was packed comes out, and nothing else is taken."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.federation.messages import MessageError
from fedbpt_api.flower.bundle import MOST, pack, unpack


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_what_was_packed_comes_out(envelopes: list[bytes]) -> None:
    assert unpack(pack(envelopes)) == envelopes


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_are_a_bundle(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert pack(unpack(data)) == data


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.integers(1, 4), st.booleans())
def test_a_bundle_that_is_cut_or_has_more_is_refused(envelopes: list[bytes], by: int, cut: bool) -> None:
    data = pack(envelopes)
    with pytest.raises(MessageError):
        unpack(data[:-by] if cut else data + bytes(by))


def test_there_is_a_limit() -> None:
    with pytest.raises(MessageError, match=f"at most {MOST}"):
        unpack(struct.pack("<I", MOST + 1))
