"""Tensor files without torch: the numbers are rounded right, and the pickle names nothing it may not."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedbpt_backends.tensor_file import bfloat16, torch_bytes

ALLOWED = {"torch._utils _rebuild_tensor_v2", "torch BFloat16Storage", "collections OrderedDict"}
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(width=32))


def widened(half: int) -> float:
    """The float32 whose upper half this is."""
    return float(np.array([half << 16], dtype="<u4").view("<f4")[0])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_number_becomes_the_nearest_bfloat16_and_the_even_one_of_two(number: float) -> None:
    """By exact fractions: 8 bits of precision, the next above the largest counts as 2^128."""
    (got,) = bfloat16(np.array([number], dtype=np.float32)).tolist()
    below = int(np.array([number], dtype="<f4").view("<u4")[0]) >> 16  # towards zero
    magnitude = below & 0x7FFF

    def value(half: int) -> Fraction:
        return Fraction(2) ** 128 if half == 0x7F80 else Fraction(widened(half))

    exact = abs(Fraction(number))
    down, up = exact - value(magnitude), value(magnitude + 1) - exact
    assert down >= 0 and up > 0
    nearest = magnitude + (down > up or (down == up and magnitude % 2 == 1))
    assert got == (below & 0x8000) + nearest


@pytest.mark.parametrize(
    ("bits", "half"),
    [
        (0x7F800000, 0x7F80), (0xFF800000, 0xFF80),  # infinities
        (0x00000000, 0x0000), (0x80000000, 0x8000),  # zeros
        (0x3F808000, 0x3F80), (0x3F818000, 0x3F82),  # ties
        (0x7F7FFFFF, 0x7F80),  # above the largest
        (0x00008001, 0x0001),  # subnormal
    ],
)  # fmt: skip
def test_the_corners(bits: int, half: int) -> None:
    assert bfloat16(np.array([bits], dtype="<u4").view("<f4")).tolist() == [half]


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFC00001])
def test_what_is_no_number_stays_none(bits: int) -> None:
    (half,) = bfloat16(np.array([bits], dtype="<u4").view("<f4")).tolist()
    assert np.isnan(widened(half))


@given(MATRICES)
def test_the_file_holds_the_numbers_row_by_row_and_is_the_same_every_time(
    matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    content = torch_bytes(matrix)
    assert torch_bytes(np.asfortranarray(matrix)) == content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        assert archive.namelist() == [
            f"archive/{name}" for name in ("data.pkl", "byteorder", "data/0", "version")
        ]
        assert archive.read("archive/byteorder") == b"little"
        halves = np.frombuffer(archive.read("archive/data/0"), "<u2")
    np.testing.assert_array_equal(halves, bfloat16(matrix).reshape(-1))


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (1, 1), (3, 1), (2, 576), (300, 2), (70000, 1)])
def test_the_pickle_describes_the_tensor_and_names_only_what_torch_allows(rows: int, columns: int) -> None:
    data = _pickled(torch_bytes(np.zeros((rows, columns), dtype=np.float32)))
    names = {op.name for op, _, _ in pickletools.genops(data)}
    assert {arg for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"} == ALLOWED
    assert not names & {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
    assert _Reader(io.BytesIO(data)).load() == (
        ("storage", "BFloat16Storage", "0", "cpu", rows * columns),
        0, (rows, columns), (columns, 1), False, OrderedDict(),
    )  # fmt: skip


def _pickled(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read("archive/data.pkl")


class _Reader(pickle.Unpickler):
    """Shows what torch would be called with."""

    def persistent_load(self, pid: object) -> object:
        return pid

    def find_class(self, module: str, name: str) -> object:
        if name == "_rebuild_tensor_v2":
            return lambda *arguments: arguments
        return OrderedDict if name == "OrderedDict" else name
