"""How fast a server is asked, and which failures are worth another try.

`Pacer` bounds the requests under way: one more after each window of answers, half as many after a 429
(AIMD, Chiu and Jain 1989), a pause after a 5xx, and whatever ``Retry-After`` or rate-limit headers ask
for. `persist` asks again where that may succeed, through tenacity, with exponential waits and jitter.
Edges (`http`, `openai`) translate their library's errors into `Trouble`; nothing here knows of HTTP
libraries.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random, wait_random_exponential

from fedbpt_api.errors import BackendError, QuotaError

T = TypeVar("T")
ATTEMPTS = 6
CHANCES = 30  # where each attempt may fail by chance, and the server is well
PATIENCE = 300.0  # seconds; a server that wants a longer pause ends the run, resumably
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Trouble(Exception):
    """A request that may succeed when it is sent again.

    Args:
        what: What happened, in the server's words where it had any.
        busy: Whether there were too many requests (429).
        down: Whether the server itself is in trouble (5xx): everything pauses.
        chance: Whether it is chance, with nothing amiss: tried many times, nearly at once.
        wait: Seconds that the server asks to wait.
        hint: What to do where it goes on like that.
    """

    def __init__(
        self,
        what: str,
        *,
        busy: bool = False,
        down: bool = False,
        chance: bool = False,
        wait: float | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(what)
        self.what, self.busy, self.down, self.wait, self.hint = what, busy, down, wait, hint
        self.chance = chance
        self.attempts = CHANCES if chance else ATTEMPTS


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is none: status, the server's words, its error code and headers."""

    status: int
    words: str
    code: str
    headers: Mapping[str, str]

    def error(self, place: str) -> Trouble | BackendError:
        """What to raise: `Trouble` where another try may help, else the end."""
        what = f"{place} answered {self.status}: {self.words or 'nothing more'}"
        if self.code in ("insufficient_quota", "billing_hard_limit_reached"):
            return QuotaError(what, "the account's quota is used up; what was paid for is kept")
        if self.status in _AGAIN:
            return Trouble(
                what, busy=self.status == 429, down=self.status >= 500, wait=asked_wait(self.headers)
            )
        if self.status in (401, 403):
            return BackendError(what, "is the key in the environment variable of backend.api_key_env right?")
        return BackendError(what)


class Pacer:
    """Requests under way, bounded.

    Args:
        start: Requests at the same time to begin with.
        most: Never more than these.
    """

    def __init__(self, start: int = 4, most: int = 32) -> None:
        self._limit = float(min(start, most))
        self._most = most
        self._flying = 0
        self._until = 0.0  # nothing is sent before that moment
        self._cut = 0.0  # when the limit was halved last; requests sent before that say nothing new
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._notice = ""
        self.sent = 0

    @property
    def limit(self) -> int:
        """Requests that may be under way now."""
        return max(int(self._limit), 1)

    @property
    def free(self) -> int:
        return max(self.limit - self._flying, 0)

    @property
    def notice(self) -> str:
        """What slows requests down, for people; empty while all is well."""
        return self._notice

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a place, and for the end of a pause; gives the moment of sending."""
        while self._flying >= self.limit:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                self._wake()  # the place may have been this one's already
                raise
        self._flying += 1
        try:
            while (left := self._until - time.monotonic()) > 0:
                await asyncio.sleep(left)
            self.sent += 1
            yield time.monotonic()
        finally:
            self._flying -= 1
            self._wake()

    def answered(self, *, fresh: bool = True) -> None:
        """An answer came: one more request a window. What came from a cache says nothing about load."""
        self._notice = ""
        if fresh and self._limit < self._most:
            self._limit = min(self._limit + 1.0 / self._limit, self._most)
        self._wake()

    def troubled(self, trouble: Trouble, sent: float, pause: float = 0.0) -> None:
        """A request failed that was sent at the moment `sent`; nothing more for `pause` seconds."""
        now = time.monotonic()
        if trouble.busy and sent >= self._cut:
            self._limit, self._cut = max(self._limit / 2.0, 1.0), now
        self._notice = trouble.what
        self._until = max(self._until, now + max(trouble.wait or 0.0, pause))

    def read_limits(self, headers: Mapping[str, str]) -> None:
        """Obey ``x-ratelimit-remaining-*`` and ``x-ratelimit-reset-*``: wait where nothing is left."""
        for what in ("requests", "tokens"):
            left, reset = (
                headers.get(f"x-ratelimit-remaining-{what}"),
                headers.get(f"x-ratelimit-reset-{what}"),
            )
            wait = duration(reset) if reset else None
            if left is not None and left.strip() == "0" and wait:
                self._notice = f"the server's limit of {what} is reached; waiting {wait:.0f} s"
                self._until = max(self._until, time.monotonic() + min(wait, PATIENCE))

    def _wake(self) -> None:
        for _ in range(self.free):
            while self._waiting and self._waiting[0].done():
                self._waiting.popleft()
            if not self._waiting:
                return
            self._waiting.popleft().set_result(None)


async def persist(pacer: Pacer, send: Callable[[], Awaitable[T]]) -> T:
    """Send a request, again where it fails in a way that may pass.

    Args:
        pacer: Bounds it.
        send: One attempt; raises `Trouble` where another may succeed.

    Raises:
        BackendError: It was refused, or every attempt failed.
    """

    def wait(state: RetryCallState) -> float:
        trouble = _trouble(state)
        return _soon(state) if trouble.chance else max(trouble.wait or 0.0, _backoff(state))

    def enough(state: RetryCallState) -> bool:
        return state.attempt_number >= _trouble(state).attempts

    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(Trouble),
            stop=enough,
            wait=wait,
            sleep=asyncio.sleep,
            reraise=True,
        ):
            with attempt:
                async with pacer.slot() as sent:
                    try:
                        answer = await send()
                    except Trouble as trouble:
                        if (trouble.wait or 0.0) > PATIENCE:
                            raise BackendError(
                                f"{trouble.what} (and asks to wait {trouble.wait:.0f} s)",
                                "go on later; what was paid for is kept",
                            ) from trouble
                        pacer.troubled(trouble, sent, _backoff(attempt.retry_state) if trouble.down else 0.0)
                        raise
                    pacer.answered()
                return answer
    except Trouble as trouble:
        raise BackendError(
            f"{trouble.what} ({trouble.attempts} times)",
            trouble.hint or "is the server well? what was paid for is kept",
        ) from trouble
    raise AssertionError("unreachable")


def _trouble(state: RetryCallState) -> Trouble:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, Trouble) else Trouble("nothing has failed")


_backoff = wait_random_exponential(multiplier=0.5, max=20)
_soon = wait_random(0, 0.2)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds of ``retry-after-ms`` or ``Retry-After`` (seconds or a date); None where not asked."""
    milliseconds, after = headers.get("retry-after-ms"), headers.get("retry-after")
    if milliseconds is not None and (number := _number(milliseconds)) is not None:
        return number / 1000.0
    if after is None:
        return None
    if (number := _number(after)) is not None:
        return number
    with contextlib.suppress(ValueError, OverflowError):
        return max(parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
    return None


def duration(text: str) -> float | None:
    """Seconds of ``6m0s``, ``1s``, ``120ms`` or a bare number; None where it is none of them."""
    if (bare := _number(text)) is not None:
        return bare
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _number(text: str) -> float | None:
    """A number that is not below 0; None where it is none, or is no amount (nan, inf)."""
    with contextlib.suppress(ValueError):
        number = float(text)
        return max(number, 0.0) if math.isfinite(number) else None
    return None
