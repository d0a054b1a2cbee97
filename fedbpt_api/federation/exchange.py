"""How envelopes reach a party, and when it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from fedbpt_api.errors import FedbptError

Exchange = Callable[[bytes], Awaitable[bytes]]
"""Brings an envelope to the party, and its answer back. May raise a FedbptError or a TimeoutError."""

MOST_FAILURES: Final = 10
"""Failures in a row after which a party is left out of the run."""


class GivingUp:
    """An `Exchange` that ends when the party has failed ten times in a row, what is under way included.

    Questions that were under way together fail together, and count once.

    Args:
        name: The party's.
        exchange: How envelopes reach it.
    """

    def __init__(self, name: str, exchange: Exchange) -> None:
        self._name = name
        self._exchange = exchange
        self._failures = 0
        self._failed = 0.0  # when
        self._under_way: set[asyncio.Future[bytes]] = set()

    async def __call__(self, envelope: bytes) -> bytes:
        """The answer.

        Raises:
            FedbptError: There is none, or there will be none any more.
        """
        if self._failures >= MOST_FAILURES:
            raise self._left_out()
        clock = asyncio.get_running_loop().time
        begun, asking = clock(), asyncio.ensure_future(self._exchange(envelope))
        self._under_way.add(asking)
        try:
            answer = await asking
        except (FedbptError, TimeoutError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling():
                raise self._left_out() from error  # it was given up, below
            if begun >= self._failed:
                self._failures, self._failed = self._failures + 1, clock()
            raise
        finally:
            self._under_way.discard(asking)
            if self._failures >= MOST_FAILURES:
                for other in self._under_way:
                    other.cancel()
        self._failures = 0
        return answer

    def _left_out(self) -> FedbptError:
        return FedbptError(f"{self._name} is left out: it has failed {MOST_FAILURES} times in a row")
