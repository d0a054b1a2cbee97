"""What can go wrong, as types a program can catch and sentences a person can act on."""

from __future__ import annotations


class FedbptError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: What was wrong and where, in one sentence.
        hint: What to do about it, in one sentence.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class ConfigError(FedbptError):
    """The configuration or the data cannot be used; nothing has been scored yet.

    Args:
        problems: Every problem found, each a sentence with file, line or key.
    """

    def __init__(self, problems: list[str] | str, hint: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        head = self.problems[0] if len(self.problems) == 1 else "\n".join(f"- {p}" for p in self.problems)
        super().__init__(head, hint)


class BackendError(FedbptError):
    """The model's server (or the embedded model) cannot answer."""


class QuotaError(BackendError):
    """The account may spend no more: trying again is useless until somebody pays."""


class RunFolderError(FedbptError):
    """A run folder is missing, in use, incomplete or was tampered with."""


class QuorumError(FedbptError):
    """Too few clients answered for the run to go on; everything paid for is on disk."""
