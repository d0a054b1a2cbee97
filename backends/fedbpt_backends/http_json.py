"""JSON over HTTP to one server: paced, retried, with the server's own words in errors.

Keys come from the environment and are never part of an error, a log or a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_backends.pacing import Pacer, Refusal, Trouble, persist

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
        self.base_url = base_url.rstrip("/")
        try:
            if httpx.URL(self.base_url).scheme not in ("http", "https") or not httpx.URL(self.base_url).host:
                raise ValueError("it needs http:// or https:// and a host")
            self._client = httpx.AsyncClient(
                headers=dict(headers or {}),
                timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
                limits=httpx.Limits(
                    max_connections=most, max_keepalive_connections=most, keepalive_expiry=_KEEP
                ),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(
                f"backend.base_url: {base_url!r} is not an address: {error}",
                'give it as "http://127.0.0.1:8000"',
            ) from error

    async def post(self, path: str, body: object) -> Any:
        """The JSON answer to a JSON body.

        Raises:
            BackendError: It was refused, or every attempt failed.
        """
        content = orjson.dumps(body)
        return await persist(self.pacer, lambda: self._send("POST", path, content))

    async def get(self, path: str) -> Any:
        return await persist(self.pacer, lambda: self._send("GET", path, None))

    async def peek(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and answer of one attempt, whatever it is; status 0 where nothing came back."""
        content = None if body is None else orjson.dumps(body)
        try:
            response = await self._client.request(
                method, self.base_url + path, content=content, headers=_json(content)
            )
        except httpx.TransportError as error:
            return 0, f"{type(error).__name__}: {error}"
        try:
            return response.status_code, orjson.loads(response.content)
        except orjson.JSONDecodeError:
            return response.status_code, response.text

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
        return str(words)[:600], str(error.get("code") or error.get("type") or "")
    return str(error)[:300], ""


def secret(variable: str | None) -> str | None:
    """The key in an environment variable.

    Raises:
        ConfigError: The variable is not set.
    """
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(
            f"backend.api_key_env: the environment variable {variable} is not set",
            f"export {variable}=... before you start; keys are never read from a file",
        )
    return value


def bearer(variable: str | None, headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Headers with the key of an environment variable as a bearer token."""
    key = secret(variable)
    return dict(headers or {}) | ({"Authorization": f"Bearer {key}"} if key else {})


def expected(place: object, error: Exception) -> BackendError:
    """An answer of another form is the server's fault, not ours."""
    return BackendError(
        f"{place} gave an answer of an unknown form ({type(error).__name__}: {error})",
        "is it the kind of server that backend.kind says, and a recent one?",
    )


def _json(content: bytes | None) -> dict[str, str]:
    return {} if content is None else {"Content-Type": "application/json"}
