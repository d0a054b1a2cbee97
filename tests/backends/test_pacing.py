"""The pacer and its retries: the limit's bounds, nobody forgotten, pauses obeyed, refusals passed on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import BackendError, QuotaError
from fedbpt_backends import pacing
from fedbpt_backends.pacing import (
    ATTEMPTS,
    CHANCES,
    PATIENCE,
    Pacer,
    Refusal,
    Trouble,
    asked_wait,
    duration,
    persist,
)

BUSY = Trouble("busy", busy=True)


class Clock:
    """A time that passes only where somebody sleeps; `slept` are the moments at which that ended."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now = max(self.now, self.now + seconds)
        self.slept.append(self.now)
        await asyncio.sleep(0)


@contextmanager
def fake_time() -> Iterator[Clock]:
    """A clock of its own for `pacing`, and no waits between attempts but those that servers ask for."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pacing, "time", SimpleNamespace(monotonic=clock.monotonic, time=clock.monotonic))
        names = {name: getattr(asyncio, name) for name in ("get_running_loop", "Future", "CancelledError")}
        patch.setattr(pacing, "asyncio", SimpleNamespace(**names, sleep=clock.sleep))
        patch.setattr(pacing, "_backoff", lambda state: 0.0)
        yield clock


async def turns(n: int = 20) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


# The limit --------------------------------------------------------------------------------------


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from(["answered", "cached", "busy", "trouble"]), st.integers(0, 9))),
)
def test_the_limit_stays_between_1_and_the_most_and_is_halved_once_a_window(
    start: int, most: int, events: list[tuple[str, int]]
) -> None:
    with fake_time() as clock:
        pacer = Pacer(start, most)
        cut = -math.inf
        for what, age in events:
            clock.now += 1.0
            before, sent = pacer.limit, clock.now - age
            if what in ("answered", "cached"):
                pacer.answered(fresh=what == "answered")
                assert before <= pacer.limit <= before + (what == "answered")
                assert pacer.notice == ""
            else:
                pacer.troubled(Trouble("overloaded", busy=what == "busy"), sent)
                assert pacer.notice == "overloaded"
                if what == "busy" and sent >= cut:
                    cut = clock.now
                    assert before / 2 - 1 <= pacer.limit <= max(before / 2 + 1, 1)
                else:
                    assert pacer.limit == before
            assert 1 <= pacer.limit <= most


def test_a_window_of_answers_adds_one_request() -> None:
    pacer = Pacer(4, 32)
    for _ in range(5):
        pacer.answered()
    assert pacer.limit == 5
    for _ in range(2000):
        pacer.answered()
    assert pacer.limit == 32


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 12)), max_size=16),
)
def test_all_who_wait_are_served_whoever_gives_up(limit: int, askers: list[tuple[int, bool, int]]) -> None:
    """Each asker holds its place for some turns; some are cancelled after some, waiting or not."""

    async def scenario() -> None:
        pacer = Pacer(limit, limit)
        flying = 0

        async def ask(turns_held: int) -> None:
            nonlocal flying
            async with pacer.slot():
                flying += 1
                assert flying <= limit
                try:
                    await turns(turns_held)
                finally:
                    flying -= 1

        tasks = [asyncio.create_task(ask(held)) for held, _, _ in askers]
        for turn in range(13):
            for task, (_, gives_up, when) in zip(tasks, askers, strict=True):
                if gives_up and when == turn:
                    task.cancel()
            await asyncio.sleep(0)
        await turns(200)
        assert all(task.done() for task in tasks)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [r for r in results if isinstance(r, AssertionError)]
        assert all(
            result is None for result, (_, gives_up, _) in zip(results, askers, strict=True) if not gives_up
        )
        assert pacer.free == limit

    asyncio.run(scenario())


async def test_a_place_given_to_somebody_who_gives_up_at_that_moment_goes_to_the_next() -> None:
    pacer = Pacer(1, 1)
    leave = asyncio.Event()

    async def hold() -> None:
        async with pacer.slot():
            await leave.wait()

    first, second, third = [asyncio.create_task(hold()) for _ in range(3)]
    await turns()
    first.cancel()
    while not first.done():  # its place is the second's in the same turn
        await asyncio.sleep(0)
    second.cancel()
    await turns()
    leave.set()
    await turns()
    assert third.done() and second.cancelled()
    assert pacer.free == 1


# Pauses -----------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 400.0), min_size=1, max_size=5))
def test_nothing_is_sent_before_every_pause_is_over(pauses: list[float]) -> None:
    async def scenario() -> None:
        with fake_time() as clock:
            pacer = Pacer(4, 4)
            began = clock.now
            for pause in pauses:
                pacer.troubled(Trouble("wait", wait=pause), began)
            async with pacer.slot() as sent:
                assert sent >= began + max(pauses)

    asyncio.run(scenario())


async def test_a_pause_that_is_prolonged_while_somebody_waits_holds_for_them_too() -> None:
    with fake_time() as clock:
        pacer = Pacer(4, 4)
        pacer.troubled(Trouble("wait", wait=5.0), clock.now)
        sent: list[float] = []

        async def ask() -> None:
            async with pacer.slot() as moment:
                sent.append(moment)

        task = asyncio.create_task(ask())
        await asyncio.sleep(0)
        pacer.troubled(Trouble("wait", wait=50.0), clock.now)
        until = clock.now + 50.0
        await task
        assert sent[0] >= until


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}, 90.0),
        ({"x-ratelimit-remaining-tokens": " 0 ", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "999h"}, PATIENCE),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1m30s"}, 0.0),
        ({"x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "0"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0"}, 0.0),
        ({}, 0.0),
    ],
)
async def test_where_nothing_is_left_the_reset_is_waited_for(headers: dict[str, str], wait: float) -> None:
    with fake_time() as clock:
        pacer = Pacer()
        began = clock.now
        pacer.read_limits(headers)
        async with pacer.slot() as sent:
            assert sent - began == pytest.approx(wait)
        assert bool(pacer.notice) == (wait > 0)


# What servers write -----------------------------------------------------------------------------


@given(st.floats(0, 1e6))
def test_a_wait_is_read_in_seconds_in_milliseconds_and_as_a_date(seconds: float) -> None:
    assert asked_wait({"retry-after": f"{seconds:.3f}"}) == pytest.approx(seconds, abs=1e-3)
    assert asked_wait({"retry-after-ms": f"{1000 * seconds:.0f}"}) == pytest.approx(seconds, abs=1e-3)
    both = {"retry-after-ms": f"{1000 * seconds:.0f}", "retry-after": "7"}
    assert asked_wait(both) == pytest.approx(seconds, abs=1e-3)
    assert asked_wait({"retry-after-ms": "soon", "retry-after": "7"}) == 7.0
    with fake_time() as clock:
        then = datetime.fromtimestamp(clock.now, UTC) + timedelta(seconds=int(seconds))
        assert asked_wait({"retry-after": format_datetime(then, usegmt=True)}) == int(seconds)
        past = datetime.fromtimestamp(clock.now - 50, UTC)
        assert asked_wait({"retry-after": format_datetime(past, usegmt=True)}) == 0.0


@given(
    st.text(max_size=30)
    | st.sampled_from(["nan", "inf", "-inf", "1e999", "-3", "", "Mon, 01 Jan 0001 00:00:00 -0000"])
)
def test_nonsense_is_no_wait_and_no_crash(text: str) -> None:
    for found in (asked_wait({"retry-after": text}), asked_wait({"retry-after-ms": text}), duration(text)):
        assert found is None or 0.0 <= found < math.inf


def test_durations_are_read_as_servers_write_them() -> None:
    read = {text: duration(text) for text in ("6m0s", "1s", "120ms", "2", "1h2m3.5s", " 7s ", "-4")}
    assert read == {
        "6m0s": 360.0, "1s": 1.0, "120ms": 0.12, "2": 2.0, "1h2m3.5s": 3723.5, " 7s ": 7.0, "-4": 0.0,
    }  # fmt: skip
    assert [duration(text) for text in ("soon", "", "5 minutes", "1s?", "s", "nan")] == [None] * 6


# Trying again -----------------------------------------------------------------------------------


class Sender:
    """Raises what it is given, in order; then answers."""

    def __init__(self, errors: Sequence[Exception]) -> None:
        self.errors, self.sent = list(errors), 0

    async def __call__(self) -> str:
        self.sent += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


@given(st.integers(0, 9), st.sampled_from([0.0, None, 3.0, PATIENCE]))
def test_trouble_is_tried_again_a_few_times_after_the_wait_that_was_asked_for(
    failures: int, wait: float | None
) -> None:
    async def scenario() -> None:
        with fake_time() as clock:
            began, pacer = clock.now, Pacer()
            sender = Sender([Trouble("the server is busy", busy=True, wait=wait)] * failures)
            if failures < ATTEMPTS:
                assert await persist(pacer, sender) == "answer"
                assert sender.sent == failures + 1
                assert pacer.notice == ""
            else:
                with pytest.raises(BackendError, match="the server is busy") as caught:
                    await persist(pacer, sender)
                assert caught.value.hint
                assert sender.sent == ATTEMPTS
            assert clock.now - began >= (sender.sent - 1) * (wait or 0.0)
            assert pacer.free == pacer.limit

    asyncio.run(scenario())


@given(st.integers(0, CHANCES + 2))
def test_what_fails_by_chance_is_tried_many_times_with_hardly_a_wait(failures: int) -> None:
    async def scenario() -> None:
        with fake_time() as clock:
            began, pacer = clock.now, Pacer()
            sender = Sender([Trouble("another one's", chance=True)] * failures)
            if failures < CHANCES:
                assert await persist(pacer, sender) == "answer"
            else:
                with pytest.raises(BackendError, match=f"{CHANCES} times"):
                    await persist(pacer, sender)
            assert sender.sent == min(failures + 1, CHANCES)
            assert clock.now - began <= 0.2 * failures

    asyncio.run(scenario())


async def test_answers_let_more_requests_go_at_the_same_time() -> None:
    pacer = Pacer(1, 8)
    for _ in range(100):
        await persist(pacer, Sender([]))
    assert pacer.limit == 8


@pytest.mark.parametrize("error", [BackendError("400: no"), QuotaError("used up"), ValueError("a bug")])
async def test_anything_else_ends_it_at_once_as_it_is(error: Exception) -> None:
    sender, pacer = Sender([error]), Pacer()
    with pytest.raises(type(error)) as caught:
        await persist(pacer, sender)
    assert caught.value is error
    assert sender.sent == 1
    assert pacer.free == pacer.limit


async def test_a_wait_that_is_too_long_ends_it_with_the_server_s_words() -> None:
    sender = Sender([Trouble("come back tomorrow", busy=True, wait=PATIENCE + 1)])
    with pytest.raises(BackendError, match=r"come back tomorrow.*301 s") as caught:
        await persist(Pacer(), sender)
    assert "later" in caught.value.hint
    assert sender.sent == 1


@given(st.integers(300, 599), st.sampled_from(["", "rate_limit_exceeded", "insufficient_quota"]))
def test_a_refusal_is_trouble_only_where_another_try_may_help(status: int, code: str) -> None:
    error = Refusal(status, "words of the server", code, {"retry-after": "4"}).error("http://there/path")
    again = status in (408, 409, 425, 429) or status in (500, 502, 503, 504, 520, 522, 524, 529)
    assert isinstance(error, Trouble) == (again and code != "insufficient_quota")
    assert isinstance(error, QuotaError) == (code == "insufficient_quota")
    assert all(part in str(error) for part in ("words of the server", str(status), "http://there/path"))
    if isinstance(error, Trouble):
        assert (error.busy, error.wait) == (status == 429, 4.0)
    if status in (401, 403) and not code:
        assert isinstance(error, BackendError) and "api_key_env" in error.hint
