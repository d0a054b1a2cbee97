"""A float tensor as ``torch.save`` writes it, by hand: so that no torch is needed to talk to vLLM.

The format (torch/serialization.py, zip format 3): a zip archive, nothing compressed, of a pickle that
describes one tensor and a file with its raw little-endian numbers. ``torch.load(weights_only=True)``
reads it.
"""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import numpy.typing as npt

_STAMP = (1980, 1, 1, 0, 0, 0)  # the same tensor gives the same bytes


def torch_bytes(tensor: npt.NDArray[np.float32]) -> bytes:
    """A matrix [n, D] of float32 as the bytes of a bfloat16 tensor file."""
    rows, columns = tensor.shape
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (
            ("data.pkl", _pickle(rows, columns)),
            ("byteorder", b"little"),
            ("data/0", bfloat16(tensor).tobytes()),
            ("version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", _STAMP), data)
    return buffer.getvalue()


def bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 numbers, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return np.where(np.isnan(values), 0x7FC0, rounded >> 16).astype("<u2")


def _pickle(rows: int, columns: int) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage, 0, (rows, columns), (columns, 1), False, OrderedDict())."""
    return b"".join((
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(",  # protocol 2; the function; the arguments
        b"(", _text("storage"), b"ctorch\nBFloat16Storage\n", _text("0"), _text("cpu"),
        _number(rows * columns), b"tQ",  # the storage is a persistent id
        _number(0), _number(rows), _number(columns), b"\x86", _number(columns), _number(1), b"\x86",
        b"\x89ccollections\nOrderedDict\n)RtR.",
    ))  # fmt: skip


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)
