"""The openai package as a client of one server: keys, headers, retries of ours, and errors without keys.

Keys come from environment variables only. They go into the requests' headers and nowhere else: what a
server says is searched for them before it becomes part of an error, a notice or a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai
import orjson

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_backends.headers import VALUE, filled, secret
from fedbpt_backends.http_json import expected, refusal
from fedbpt_backends.pacing import Pacer, Refusal, Trouble, persist

T = TypeVar("T")
OPENAI = "https://api.openai.com/v1"
_KEEP = 2.0  # seconds that an idle connection is kept: uvicorn closes it after 5
_NO_KEY = "none"  # the package does not start without a key


class Refused(BackendError):
    """A request that the server will not answer, however often it is asked.

    Attributes:
        status: HTTP status.
        words: What the server said about it.
    """

    def __init__(self, message: str, hint: str, status: int, words: str) -> None:
        super().__init__(message, hint)
        self.status, self.words = status, words


class Client:
    """One server.

    Args:
        base_url: Its address with the path before ``/completions``; ``/v1`` where it has no path. For Azure
            the resource's address. OpenAI's own where not given.
        pacer: Bounds requests under way.
        api_key_env: Environment variable with the key, if it wants one.
        headers: More headers; ``${NAME}`` in a value is the environment variable NAME.
        azure_version: Version of Azure's interface, where the server is one of Azure's.
        organization: Whose account pays, as the provider calls it.
        project: Which of the organization's projects.
        timeout: Seconds without a byte after which a request counts as stalled.

    Raises:
        ConfigError: One of these cannot be used, or a variable is not set.
    """

    def __init__(
        self,
        base_url: str | None,
        pacer: Pacer,
        *,
        api_key_env: str | None,
        headers: Mapping[str, str] | None = None,
        azure_version: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        timeout: float = 120.0,
    ) -> None:
        self.base_url = _address(base_url, azure=azure_version is not None)
        self.pacer = pacer
        key = secret(api_key_env)
        if key is not None and not VALUE.fullmatch(key.strip()):
            raise ConfigError(
                f"backend.api_key_env: the value of {api_key_env} holds characters that no key has",
                "look for line breaks and typographic marks in it",
            )
        sent, secrets = filled(headers or {})
        self._secrets = tuple(sorted({*secrets, *([key.strip()] if key else [])}, key=len, reverse=True))
        common: dict[str, Any] = {
            "api_key": key.strip() if key else _NO_KEY,
            "organization": organization,
            "project": project,
            "default_headers": sent,
            "max_retries": 0,  # `persist` tries again; twice would multiply
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
            "http_client": openai.DefaultAsyncHttpxClient(
                limits=httpx2.Limits(
                    max_connections=64, max_keepalive_connections=64, keepalive_expiry=_KEEP
                ),
                follow_redirects=False,  # the keys are for this server
            ),
        }
        self._sdk: openai.AsyncOpenAI
        if azure_version is not None:
            self._sdk = openai.AsyncAzureOpenAI(
                azure_endpoint=self.base_url, api_version=azure_version, **common
            )
        else:
            self._sdk = openai.AsyncOpenAI(base_url=self.base_url, **common)

    async def ask(self, path: str, body: Mapping[str, object], read: Callable[[Any], T]) -> T:
        """What `read` makes of the JSON answer to a JSON body.

        Args:
            path: Behind the base of all addresses.
            body: The request.
            read: Reads an answer; raises `Trouble` where another try may bring a better one.

        Raises:
            BackendError: It was refused (`Refused`), or every attempt failed.
        """

        async def send() -> T:
            return read(await self._send(path, body))

        return await persist(self.pacer, send)

    def strange(self, path: str, error: Exception) -> BackendError:
        """What to raise about an answer of an unknown form."""
        found = expected(self.base_url + path, error)
        return BackendError(self.masked(found.message), found.hint)

    def masked(self, text: str) -> str:
        """`text` with *** in place of every key."""
        for key in self._secrets:
            text = text.replace(key, "***")
        return text

    async def aclose(self) -> None:
        await self._sdk.close()

    async def _send(self, path: str, body: Mapping[str, object]) -> Any:
        place = self.base_url + path
        failed: Exception
        try:
            # The bare answer: typed ones know neither llama.cpp's lists nor vLLM's, and cost time to make.
            answer = await self._sdk.post(path, cast_to=httpx2.Response, body=dict(body))
            self.pacer.read_limits(answer.headers)
            return orjson.loads(answer.content)
        except openai.APIStatusError as error:
            failed = self._refused(error, place)
        except openai.APITimeoutError:
            failed = Trouble(f"{place} did not answer in time")
        except openai.APIConnectionError as error:
            failed = Trouble(self.masked(f"no answer from {place}: {error.__cause__ or error}"))
        except openai.OpenAIError as error:
            failed = BackendError(self.masked(f"{place}: {error}"))
        except orjson.JSONDecodeError as error:
            failed = Trouble(f"{place} sent an answer that is cut off or no JSON ({error})")
        # Not raised in the handlers: the package's errors hold the request with its headers and the server's
        # own words, and would travel along as the context of ours.
        raise failed

    def _refused(self, error: openai.APIStatusError, place: str) -> Trouble | BackendError:
        content = self.masked(error.response.content.decode("utf-8", "replace")).encode()
        said = refusal(error.status_code, content, error.response.headers)
        words = self.masked(said.words)
        failed = Refusal(said.status, words, said.code, said.headers).error(place)
        if type(failed) is BackendError:
            return Refused(failed.message, failed.hint, said.status, words)
        return failed


def _address(base_url: str | None, *, azure: bool) -> str:
    """The base of all addresses, without a slash at its end."""
    if base_url is None:
        if azure:
            raise ConfigError("backend.base_url: expected the address of the Azure resource")
        return OPENAI
    hint = 'give it as "https://gateway.example.org/v1"'
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"backend.base_url: {base_url.split('@')[-1]!r} is not an address", hint)
    if parts.username or parts.password or parts.query or parts.fragment:
        # It is written to the run folder and shown; the parts that may be secret are not repeated here.
        raise ConfigError(
            f"backend.base_url: expected an address of {parts.hostname} with no user, password or query",
            "give keys through backend.api_key_env, or as ${NAME} in backend.headers",
        )
    path = parts.path.rstrip("/") or ("" if azure else "/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"
