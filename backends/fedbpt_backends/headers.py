"""What requests carry beside their bodies: a config's headers, and keys that only the environment holds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from fedbpt_api.errors import ConfigError

NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE: Final = re.compile(r"[!-~](?:[ -~\t]*[!-~])?|")
"""What HTTP allows (RFC 9110, 5.1 and 5.5), and no more than visible ASCII of it."""

_FROM_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")
_CREDENTIALS = frozenset(
    {
        "authorization", "api-key", "x-api-key", "ocp-apim-subscription-key", "x-goog-api-key", "cookie",
        "proxy-authorization",
    }
)  # fmt: skip


def secret(variable: str | None, key: str = "backend.api_key_env") -> str | None:
    """The key in an environment variable.

    Args:
        variable: Its name.
        key: The setting that names it.

    Raises:
        ConfigError: The variable is not set.
    """
    if variable is None:
        return None
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(
            f"{key}: the environment variable {variable} is not set",
            f"export {variable}=... before you start; keys are never read from a file",
        )
    return value


def bearer(variable: str | None, headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Headers with the environment's values, and the key of a variable as a bearer token.

    Raises:
        ConfigError: As from `secret` and `filled`.
    """
    key = secret(variable)
    return filled(headers or {})[0] | ({"Authorization": f"Bearer {key}"} if key else {})


def filled(headers: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Headers with the environment's values, and those values: ``${NAME}`` is the variable NAME.

    Raises:
        ConfigError: HTTP does not allow one, a variable is not set, or a key stands in the config.
    """
    sent: dict[str, str] = {}
    secrets: list[str] = []
    for name, value in headers.items():
        if not isinstance(value, str) or not NAME.fullmatch(name):
            raise ConfigError(f"backend.headers: {name!r} is no header, or its value is no text")
        names = _FROM_ENVIRONMENT.findall(value)
        if name.lower() in _CREDENTIALS and not names:
            raise ConfigError(
                f"backend.headers: expected {name} to name an environment variable, as in ${{GATEWAY_KEY}}",
                "keys are never read from a file",
            )
        for variable in names:
            secrets.append(secret(variable, "backend.headers") or "")
            value = value.replace(f"${{{variable}}}", secrets[-1])
        if not VALUE.fullmatch(value):
            raise ConfigError(
                f"backend.headers: the value of {name} holds characters that HTTP does not allow",
                "look for line breaks, also in the environment variables that it names",
            )
        sent[name] = value
    return sent, secrets
