"""A party is given up after ten failures in a row, with whatever it was still asked."""

from __future__ import annotations

import asyncio

import pytest

from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.exchange import MOST_FAILURES, GivingUp


class Party:
    """Answers, fails, or stays silent, as a question says."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, question: bytes) -> bytes:
        self.asked += 1
        match question:
            case b"fail":
                raise FedbptError("no")
            case b"wait":
                await asyncio.Event().wait()
        return question.upper()


async def fail(exchange: GivingUp, times: int) -> None:
    for _ in range(times):
        with pytest.raises(FedbptError, match="no"):
            await exchange(b"fail")


async def test_failures_in_a_row_end_what_is_under_way_and_what_follows() -> None:
    party = Party()
    exchange = GivingUp("north", party)
    late = asyncio.ensure_future(exchange(b"wait"))
    await asyncio.sleep(0)
    await fail(exchange, MOST_FAILURES)
    with pytest.raises(FedbptError, match="north is left out: it has failed 10 times in a row"):
        await late
    asked = party.asked
    with pytest.raises(FedbptError, match="north is left out"):
        await exchange(b"hello")
    assert party.asked == asked


async def test_an_answer_begins_the_count_anew() -> None:
    exchange = GivingUp("north", Party())
    await fail(exchange, MOST_FAILURES - 1)
    assert await exchange(b"hello") == b"HELLO"
    await fail(exchange, MOST_FAILURES - 1)
    assert await exchange(b"hello") == b"HELLO"


async def test_who_gives_up_waiting_is_not_told_of_it_as_a_failure_of_the_party() -> None:
    """A question that is cancelled ends as cancelled, and counts as one failure."""
    exchange = GivingUp("north", Party())
    await fail(exchange, MOST_FAILURES - 2)
    late = asyncio.ensure_future(exchange(b"wait"))
    await asyncio.sleep(0)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    assert await exchange(b"hello") == b"HELLO"
