"""A party that learns its task from the server: it opens its texts when it is told, and answers from then on.

What goes wrong with its texts, its files or its model server is its own business: the server hears that it
did, and the party's own log says what.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.federation.responder import Responder

_LOG = logging.getLogger(__name__)


class Opened(Protocol):
    """A task that a party has opened."""

    @property
    def responder(self) -> Responder: ...

    async def aclose(self) -> None: ...


Open = Callable[[Mapping[str, Any]], Awaitable[Opened]]
"""Opens the task that is told (`task_envelope`). Raises a FedbptError where this party cannot take part."""


class Host:
    """Answers for a party, whatever it is asked.

    Args:
        name: The party's.
        open_task: Opens a task.
    """

    def __init__(self, name: str, open_task: Open) -> None:
        self.name = name
        self._open_task = open_task
        self._turn = asyncio.Lock()
        self._task: tuple[Mapping[str, Any], Opened] | None = None

    async def answer(self, data: bytes) -> bytes:
        """Answer one envelope; what goes wrong is an answer too."""
        async with self._turn:
            try:
                question = opened(data)
                match question.kind:
                    case "hello":
                        return seal(Envelope("hello", {"answer": {"name": self.name}}))
                    case "task":
                        return seal(await self._told(question.fields))
            except MessageError as error:
                return seal(_failed(error.message, error.hint))
            except FedbptError as error:
                problems = error.problems if isinstance(error, ConfigError) else (error.message,)
                for problem in problems:
                    _LOG.error("cannot take part: %s", problem)
                return seal(_failed(f"{self.name} cannot take part; its own log says why"))
            if self._task is None:
                return seal(Envelope("forgotten", {"answer": {}}))
            return await self._task[1].responder.answer(data)

    async def _told(self, fields: Mapping[str, Any]) -> Envelope:
        """Open the task, if it is not the one that is open."""
        if self._task is None or self._task[0] != fields:
            await self.aclose()
            self._task = (dict(fields), await self._open_task(fields))
        return Envelope("facts", {"answer": self._task[1].responder.facts.told()})

    async def aclose(self) -> None:
        """Close the task that is open."""
        if self._task is not None:
            _, task = self._task
            self._task = None
            await task.aclose()


def task_envelope(run: str, number: int, settings: Mapping[str, Any]) -> bytes:
    """What tells a party its task.

    Args:
        run: The run's name.
        number: The party's, the same in all of the run.
        settings: The public part of the run's settings, as plain values.
    """
    return seal(Envelope("task", {"run": run, "number": number, "settings": dict(settings)}))


def _failed(message: str, hint: str = "") -> Envelope:
    return Envelope("failed", {"answer": {"message": message, "hint": hint}})
