"""A party's socket: bundles in and out, only for its own user, and no trace of one that died."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from fedbpt_api.errors import FedbptError
from fedbpt_api.flower.bundle import pack, unpack
from fedbpt_api.flower.carry import ask
from fedbpt_api.flower.node import listen


async def upper(data: bytes) -> bytes:
    return data.upper()


async def test_a_bundle_is_answered_envelope_by_envelope(tmp_path: Path) -> None:
    path = tmp_path / "party.sock"
    path.write_bytes(b"left by one that died")
    server = await listen(path, upper)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        answers = await asyncio.to_thread(ask, path, pack([b"a", b"", b"b" * 100_000]))
        assert unpack(answers) == [b"A", b"", b"B" * 100_000]
        with pytest.raises(FedbptError, match="it has ended"):
            await asyncio.to_thread(ask, path, b"no bundle")
    finally:
        server.close()


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FedbptError, match="no party at"):
        ask(tmp_path / "party.sock", b"")


async def test_a_path_that_is_too_long_is_said(tmp_path: Path) -> None:
    with pytest.raises(FedbptError, match="no socket"):
        await listen(tmp_path / ("x" * 200) / "party.sock", upper)
