"""Words in a list of probable first tokens that is keyed by text.

A list of a chat server holds " positive", "Positive" and "positive" as different tokens, and all of them
mean the word " positive": their probabilities are added. Every token counts for one word at most:

1. the word that is exactly it;
2. else the word that is it without blanks around (`Match.STRIPPED` and `Match.FOLDED`);
3. else the word that is it but for capital letters (`Match.FOLDED`);
4. else, where the list holds none of these for a word, the word that it begins: at least three letters, and
   the beginning of no other named word. So " pos" counts for a " positive" that is several tokens.

Where two named words would share a token by rule 2, 3 or 4, it counts for neither. A word without any
token is bounded by what the list leaves (`ways.bounded`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

import numpy as np

from fedbpt_backends.ways import NEVER, Reading, bounded

_SHORTEST = 3  # letters of a beginning
_ABSENT = "\x00"  # no token's text, to ask for the bound


class Match(Enum):
    """Which tokens are variants of a word."""

    EXACT = "exact text"  # completions: the text goes on with this very token
    STRIPPED = "without blanks"  # completions of servers whose lists have no blanks (SentencePiece)
    FOLDED = "without blanks and case"  # chat: an answer begins in any of these forms


def _same(text: str) -> str:
    return text


def _folded(text: str) -> str:
    return text.strip().casefold()


_FORMS: dict[Match, tuple[Callable[[str], str], ...]] = {
    Match.EXACT: (_same,),
    Match.STRIPPED: (_same, str.strip),
    Match.FOLDED: (_same, str.strip, _folded),
}


class FirstTokens:
    """Reads the log-probabilities of T named words from lists of first tokens.

    Args:
        words: Their texts, all different.
        match: Which tokens are variants of a word.
    """

    def __init__(self, words: Sequence[str], match: Match) -> None:
        self._forms = _FORMS[match]
        self._tables = [_owners([(form(word), i) for i, word in enumerate(words)]) for form in self._forms]
        names = [self._forms[-1](word) for word in words]
        self._beginnings = _owners(
            [(name[:end], i) for i, name in enumerate(names) for end in range(_SHORTEST, len(name))]
        )
        self._n = len(words)

    def read(self, found: Mapping[str, float]) -> Reading:
        """Values of the words, and where they are no bounds, from a list {text: log-probability}.

        Raises:
            BackendError: The list is empty.
        """
        found = {text: value for text, value in found.items() if value > NEVER}
        bound = bounded(found, [_ABSENT]).logprobs[0]
        values, begun = [-np.inf] * self._n, [-np.inf] * self._n
        for text, value in found.items():
            owner, whole = self._owner(text)
            if owner is not None:
                sums = values if whole else begun
                sums[owner] = float(np.logaddexp(sums[owner], value))
        read = [whole if whole > -np.inf else part for whole, part in zip(values, begun, strict=True)]
        exact = [value > -np.inf for value in read]
        return Reading([v if e else bound for v, e in zip(read, exact, strict=True)], exact)

    def _owner(self, text: str) -> tuple[int | None, bool]:
        """The word that a token counts for, if any, and whether it is the whole word."""
        for form, table in zip(self._forms, self._tables, strict=True):
            name = form(text)
            if name in table:
                return table[name], True
        name = self._forms[-1](text)
        return (self._beginnings.get(name) if len(name.strip()) >= _SHORTEST else None), False


def _owners(names: Sequence[tuple[str, int]]) -> dict[str, int | None]:
    """The one owner of each name; None where there are several."""
    table: dict[str, int | None] = {}
    for name, owner in names:
        table[name] = owner if table.get(name, owner) == owner else None
    return table
