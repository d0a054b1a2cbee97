"""A federation whose parties are closed at the end, killed ones included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from toy_grid import Federation


@pytest.fixture
async def fed(tmp_path: Path) -> AsyncIterator[Federation]:
    federation = Federation(tmp_path)
    yield federation
    for host in federation.hosts:
        await host.aclose()
