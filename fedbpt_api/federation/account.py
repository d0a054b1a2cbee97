"""What a party behind a network has spent, as it tells."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

from fedbpt_api.federation import plain
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.federation.promise import PARTS, Part
from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.budget import Budget

_MOST: Final = 2  # times what was granted: requests that failed, and were made again, cost twice
_LIFE: Final = 64  # characters
_LIVES: Final = 1000
_USAGE: Final = tuple(part.name for part in fields(Usage))


@dataclass
class Account:
    """A party's costs on the server's side.

    Attributes:
        name: The party's.
        budget: What its questions have cost; its parent is the run's.
        tested: What its test has cost; None before it.
        released: Answers with noise from each part of its texts, as it counts them over all its life.
    """

    name: str
    budget: Budget
    tested: Budget | None = None
    released: dict[Part, int] = field(default_factory=dict)
    _spent: dict[str, list[dict[str, int]]] = field(default_factory=dict)  # as told, each time it was started

    def count(self, told: object, granted: int | None, longest: int) -> None:
        """Take what an answer cost off the budgets: the search's, and the test's.

        A party tells all that it has spent since it was started, so an answer that was lost is counted with
        the next one.

        Args:
            told: What it tells.
            granted: Scored examples that it was granted in all for the search, until now; None believes it.
            longest: Tokens that one of them may have.

        Raises:
            MessageError: That is none, or more than it may have spent; then nothing is counted.
        """
        try:
            if not isinstance(told, dict):
                raise ValueError("it is missing")
            life = str(told["life"])[:_LIFE]
            if life not in self._spent and len(self._spent) == _LIVES:
                raise ValueError(f"it has been started again more than {_LIVES:,} times")
            both = [
                {key: plain.whole(told[part][key]) for key in (*_USAGE, "duplicates", "stored")}
                for part in ("search", "test")
            ]
            released = told.get("released", {})
            released = {part: plain.whole(released[part]) for part in PARTS if part in released}
        except (KeyError, TypeError, ValueError) as error:
            raise MessageError(f"{self.name} does not say what it has spent: {error}") from error
        for part, count in released.items():  # a party that answers twice at once may tell the later first
            self.released[part] = max(count, self.released.get(part, 0))
        known = self._spent.get(life, [dict.fromkeys(one, 0) for one in both])
        search, test = (
            {key: max(0, now[key] - then[key]) for key in now} for now, then in zip(both, known, strict=True)
        )
        before = self.budget.spent
        scored, tokens = before.scored + search["scored"], before.prompt_tokens + search["prompt_tokens"]
        if granted is not None and (scored > _MOST * granted or tokens > _MOST * granted * longest):
            raise MessageError(
                f"{self.name} tells of {scored:,} scored examples and {tokens:,} tokens, "
                f"but was granted {granted:,} of at most {longest:,} each"
            )
        self._spent[life] = [
            {key: then[key] + more[key] for key in then}
            for then, more in zip(known, (search, test), strict=True)
        ]
        if any(test.values()):
            self.tested = self.tested or Budget()
            self.tested.settle(Usage(), Usage(**{key: test[key] for key in _USAGE}))
            self.tested.stored += test["stored"]
        self.budget.count_duplicates(search["duplicates"])
        self.budget.count_stored(search["stored"])
        self.budget.settle(Usage(), Usage(**{key: search[key] for key in _USAGE}))
