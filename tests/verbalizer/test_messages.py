"""The messages of a fit: the same numbers on the other side, and no bytes that do more than be refused."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedbpt_api.verbalizer import FitError, decode, encode
from fedbpt_api.verbalizer.messages import AskMoments, AskSums, Begin, Cross, Message, Sums

SINGLE = np.array([[1.5, -0.25]], dtype=np.float32)
SUMS = Sums(np.array([0.1]), SINGLE, np.zeros((0, 0), dtype=np.float32))


def test_the_bytes_of_a_small_message() -> None:
    assert encode(SUMS) == (
        b'{"version":3,"kind":"Sums",'
        b'"arrays":{"losses":["<f8",1],"gradients":["<f4",1,2],"curvature":["<f4",0,0]}}\n'
        b"\x9a\x99\x99\x99\x99\x99\xb9\x3f\x00\x00\xc0\x3f\x00\x00\x80\xbe"
    )


@pytest.mark.parametrize(
    "message",
    [
        AskMoments(True),
        SUMS,
        Begin(
            *(np.array(values) for values in ([1, 2], [0.3, 0.4], [[0.1], [0.2]], [0.7], [0.5], [[1 / 3]]))
        ),
        AskSums(np.array([0]), SINGLE),
        Cross(7, np.array([0.5, 0.25]), np.array([[1.0, 2.0], [2.0, 5.0]]), SINGLE),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_arrives_is_what_was_sent(message: Message) -> None:
    again = decode(encode(message))
    assert type(again) is type(message)
    for field in fields(message):
        sent, got = getattr(message, field.name), getattr(again, field.name)
        assert np.array_equal(sent, got)
        assert np.shape(sent) == np.shape(got)


HEAD = b'{"version":3,"kind":"Cross","n":1,"arrays":'


@given(st.binary(max_size=200))
@example(b"")
@example(encode(SUMS)[:-1])
@example(encode(SUMS) + b"x")
@example(encode(SUMS).replace(b'"version":3', b'"version":1'))
@example(encode(SUMS).replace(b'"Sums"', b'"Summs"'))
@example(encode(SUMS).replace(b'"losses"', b'"lasses"'))
@example(encode(AskMoments(True)).replace(b"true", b'"8"'))
@example(HEAD + b'{"sums":["<f8",1]}}\n' + bytes(8))
@example(encode(SUMS).replace(b'["<f8",1]', b'["<f8",1' + b",1" * 9 + b"]"))
@example(HEAD + b'{"sums":["<f8",-1],"products":["<f8",0],"gradients":["<f8",0]}}\n')
@example(HEAD + b'{"sums":["<f8",0,9000000000000000000],"products":["<f8",0],"gradients":["<f8",0]}}\n')
@example(HEAD + b'{"sums":["|O8",1],"products":["<f8",0],"gradients":["<f8",0]}}\n' + bytes(8))
@example(
    HEAD + b'{"sums":["<f8",1],"products":["<f8",0],"gradients":["<f8",0]}}\n' + np.array([np.nan]).tobytes()
)
@example(b"[]\n")
@example(b'{"version":3,"kind":[],"arrays":{}}\n')
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FitError, match="no message of a verbalizer's fit"):
        decode(data)
