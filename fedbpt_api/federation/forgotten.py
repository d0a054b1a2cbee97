"""A party that was started again does not know what it was told; then it is told again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fedbpt_api.errors import FedbptError

T = TypeVar("T")

_RESTARTS = 3  # of a party, while it is asked for one thing


class Forgotten(FedbptError):
    """What a question builds on was told to the party before it was started again."""


async def patiently(ask: Callable[[], Awaitable[T]], again: Callable[[], Awaitable[None]] | None = None) -> T:
    """Ask; where the party has forgotten, do what `again` does, and ask once more, a few times.

    Raises:
        Forgotten: It was started again each time.
    """
    for _ in range(_RESTARTS):
        try:
            return await ask()
        except Forgotten:
            if again is not None:
                await again()
    return await ask()
