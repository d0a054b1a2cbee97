"""JSON over HTTP to one server: paced, retried, with the server's own words in errors.

Keys come from the environment and are never part of an error, a log or a file.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx
import orjson

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_backends.headers import NAME, VALUE
from fedbpt_backends.pacing import Pacer, Refusal, Trouble, persist
from fedbpt_backends.ways import Spoiled

_USER = re.compile(r"//[^/@]*@")  # in an address: name and password
SHAPE_ERRORS = (AttributeError, KeyError, IndexError, TypeError, ValueError)
T = TypeVar("T")
_KEEP = 2.0  # seconds that an idle connection is kept: uvicorn closes it after 5


class Http:
    """One server.

    Args:
        base_url: Where it is, such as ``http://127.0.0.1:8000``.
        pacer: Bounds requests under way.
        headers: Sent with every request.
        timeout: Seconds without a byte after which a request counts as stalled.

    Raises:
        ConfigError: `base_url` is no address.
    """

    def __init__(
        self,
        base_url: str,
        pacer: Pacer,
        headers: Mapping[str, str] | None = None,
        timeout: float = 120.0,
        most: int = 64,
    ) -> None:
        self.pacer = pacer
        self.base_url = _USER.sub("//", base_url.rstrip("/"))  # it is shown and kept, the password is not
        _check(headers or {})
        try:
            url = httpx.URL(base_url.rstrip("/"))
            if url.scheme not in ("http", "https") or not url.host:
                raise ValueError("it needs http:// or https:// and a host")
            self._client = httpx.AsyncClient(
                auth=(url.username, url.password) if url.userinfo else None,
                headers=dict(headers or {}),
                timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
                limits=httpx.Limits(
                    max_connections=most, max_keepalive_connections=most, keepalive_expiry=_KEEP
                ),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(
                f"backend.base_url: {self.base_url!r} is not an address: {error}",
                'give it as "http://127.0.0.1:8000"',
            ) from error

    async def post(self, path: str, body: object, read: Callable[[Any], T]) -> T:
        """What `read` makes of the JSON answer to a JSON body.

        An answer that `read` refuses (a BackendError, or another form than it expects) is asked for again:
        a server or a gateway may have stumbled.

        Raises:
            BackendError: It was refused, or every attempt failed.
        """
        content, place = orjson.dumps(body), f"{self.base_url}{path}"

        async def send() -> T:
            answer = await self._send("POST", path, content)
            try:
                return read(answer)
            except BackendError as error:
                chance = isinstance(error, Spoiled)
                raise Trouble(error.message, hint=error.hint, chance=chance) from error
            except SHAPE_ERRORS as error:
                wrong = expected(place, error)
                raise Trouble(wrong.message, hint=wrong.hint) from error

        return await persist(self.pacer, send)

    async def get(self, path: str) -> Any:
        return await persist(self.pacer, lambda: self._send("GET", path, None))

    async def peek(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and answer, whatever it is; status 0 where nothing came back.

        What may pass is tried again, so that a busy moment is not taken for an inability.
        """
        content = None if body is None else orjson.dumps(body)
        place = f"{self.base_url}{path}"
        last: tuple[int, Any] = 0, ""

        async def send() -> tuple[int, Any]:
            nonlocal last
            try:
                response = await self._client.request(method, place, content=content, headers=_json(content))
            except httpx.TransportError as error:
                last = 0, f"{type(error).__name__}: {error}"
                if isinstance(error, httpx.ConnectError):  # nothing listens
                    return last
                raise Trouble(f"no answer from {place}: {last[1]}") from error
            try:
                last = response.status_code, orjson.loads(response.content)
            except orjson.JSONDecodeError as error:
                last = response.status_code, response.text
                if response.content[:1] in (b"{", b"["):
                    raise Trouble(f"{place} sent an answer that is cut off ({error})") from error
            if response.status_code >= 300:
                raise refusal(response.status_code, response.content, response.headers).error(place)
            return last

        with contextlib.suppress(BackendError):
            await persist(self.pacer, send)
        return last

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _send(self, method: str, path: str, content: bytes | None) -> Any:
        place = f"{self.base_url}{path}"
        try:
            response = await self._client.request(method, place, content=content, headers=_json(content))
        except httpx.TimeoutException as error:
            raise Trouble(f"{place} did not answer in time ({type(error).__name__})") from error
        except httpx.TransportError as error:
            raise Trouble(f"no answer from {place}: {error or type(error).__name__}") from error
        if response.status_code >= 300:
            raise refusal(response.status_code, response.content, response.headers).error(place)
        self.pacer.read_limits(response.headers)
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise Trouble(f"{place} sent an answer that is cut off or no JSON ({error})") from error


def refusal(status: int, content: bytes, headers: Mapping[str, str]) -> Refusal:
    """What a server's refusal says."""
    try:
        words, code = error_words(orjson.loads(content))
    except orjson.JSONDecodeError:
        words, code = content.decode("utf-8", "replace")[:300], ""
    return Refusal(status, words, code, headers)


def error_words(body: object) -> tuple[str, str]:
    """Message and code of an error body, in any of the usual forms."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        words = error.get("message") or error.get("detail") or error
        names = [str(error[key]) for key in ("code", "type") if error.get(key)]
        return str(words)[:600], next((name for name in names if not name.isdigit()), "")
    return str(error)[:300], ""


def expected(place: object, error: Exception) -> BackendError:
    """An answer of another form is the server's fault, not ours."""
    return BackendError(
        f"{place} gave an answer of an unknown form ({type(error).__name__}: {error})",
        "is it the kind of server that backend.kind says, and a recent one?",
    )


def _check(headers: Mapping[str, object]) -> None:
    """Refuse headers that HTTP does not allow, without their values: libraries' own errors show them."""
    for name, value in headers.items():
        if not NAME.fullmatch(name) or not isinstance(value, str) or not VALUE.fullmatch(value):
            raise ConfigError(
                f"backend.headers: {name!r} or its value holds characters that HTTP does not allow",
                "look for line breaks and blanks at its ends, also in the variable of backend.api_key_env",
            )


def _json(content: bytes | None) -> dict[str, str]:
    return {} if content is None else {"Content-Type": "application/json"}
