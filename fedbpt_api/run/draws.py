"""Prompts with made-up examples, drawn one after another: one of the user's prompts, and one line a label.

What is drawn depends on the run's seed and the draw's number alone, so that drawing can stop, make room for a
search, and go on where it stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fedbpt_api.prompts.codebook import Codebook, CodebookSpace, demonstrations, drawn_texts
from fedbpt_api.prompts.space import Asked, Ensemble, Ids
from fedbpt_api.prompts.written import Line
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import SPREAD
from fedbpt_api.run.padding import blocks_of
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.search.stopping import expected_gain

MADE_UP = "made-up examples"

_STRIDE = 240  # between the numbers of draws of which one is taken, for the blocks of a cache
_WAVE = 32  # of them judged side by side, where parties are behind a network
_FITTING = 8  # of which one is taken, for the blocks of a cache
FEWEST = 8  # prompts that are judged before the search may end for want of gain
_ORDER = 3  # keys the draw of an order


class Shown(NamedTuple):
    """A label's example as the template has it: ids before its text, after it, and of the label word."""

    before: Ids
    after: Ids
    word: Ids


@dataclass
class Draws:
    """Draws prompts and has them judged.

    Attributes:
        assessor: Judges them.
        codebook: Words that a search may put into them.
        shown: How an example looks, for each label.
        lines: What the model wrote for each label.
        number: The next draw's.
        spaces: The space around each that was judged.
    """

    assessor: Assessor
    codebook: Codebook
    shown: Sequence[Shown]
    lines: list[list[Line]]
    number: int = 0
    spaces: dict[Asked, CodebookSpace] = field(default_factory=dict)

    @property
    def left(self) -> bool:
        """Whether more may be drawn."""
        return self.number < self.assessor.settings.search.draws

    async def judge(self, share: float, *, forced: bool = False) -> None:
        """Draw and judge while a share of the budgets lasts, and some gain is expected of it.

        Args:
            share: Of the run's budget, and of each client's own.
            forced: Whether the first is judged whatever it takes.
        """
        assessor = self.assessor
        apart = assessor.parties.apart
        try:
            while self.left:
                begun, wave = self.number, dict[Asked, CodebookSpace]()
                while self.left and len(wave) < (_WAVE if apart else 1):
                    if not (assessor.affords(len(wave) + 1, share) or (forced and self.number == 0)):
                        break
                    space = await self._drawn(self.number)
                    self.number += 1
                    ids = space.decode(0.0 * space.anchors)
                    fits = space.dimension and len(ids) <= assessor.parties.room
                    if fits and ids not in self.spaces:
                        wave[ids] = space
                if self.number == begun:
                    break
                self.spaces |= wave
                await assessor.assess_all([(ids, None, MADE_UP) for ids in wave])
                if settled(assessor):
                    break
        except BudgetSpent:
            pass  # what was judged until then is in the race
        self.spaces = {ids: space for ids, space in self.spaces.items() if ids in assessor.known}

    async def _drawn(self, draw: int) -> CodebookSpace:
        """The space of a draw; of several where a cache keeps whole blocks, the one that fills them best."""
        settings = self.assessor.settings
        prompts = list(dict.fromkeys(settings.prompts))
        around = [(s.before, s.after + s.word) for s in self.shown]

        def arranged(number: int) -> tuple[list[tuple[Ids, Ids]], list[Ids]]:
            """The labels' examples of a draw, in an order that is drawn too."""
            texts = self._texts(number)
            order = np.random.default_rng((settings.seed, number, _ORDER)).permutation(len(around))
            return [around[k] for k in order], [texts[k] for k in order]

        blocks = blocks_of(self.assessor)
        spaces = [
            await demonstrations(
                self.assessor.parties.backend,
                self.codebook,
                prompts[draw % len(prompts)],
                *arranged(number),
                settings.search.positions,
            )
            for number in range(draw, draw + _STRIDE * (_FITTING if blocks else 1), _STRIDE)
        ]
        if blocks is None:
            return spaces[0]
        return min(spaces, key=lambda s: (not s.dimension, blocks.cost(len(s.decode(0.0 * s.anchors)))))

    def _texts(self, draw: int) -> list[Ids]:
        """The examples' texts of a draw, one a label."""
        settings = self.assessor.settings
        seed = settings.seed * 1000 + draw
        if not all(self.lines):
            return drawn_texts(self.codebook, len(self.lines), settings.search.positions, seed)
        rng = np.random.default_rng((seed, len(self.lines)))
        return [found[int(rng.integers(len(found)))].ids for found in self.lines]


def settled(assessor: Assessor) -> bool:
    """Whether all prompts that the budget still allows are expected to gain less than `search.min_gain`."""
    search, parties = assessor.settings.search, assessor.parties
    words = search.algorithm == "rounds" and search.space == "codebook" and search.choice == "committee"
    if not search.min_gain or not words or assessor.made_up:
        return False
    judged = [a for a in assessor.known.values() if a.dev_sums.n and not isinstance(a.prompt, Ensemble)]
    texts = Counter(a.dev_sums.n for a in judged)  # fewer once a party has dropped out
    n, count = max(texts.items(), key=lambda pair: pair[1], default=(0, 0))
    limit, more = parties.budget.limits.scored, search.draws
    left = more if limit is None else (limit - parties.budget.spent.scored) // assessor.cost
    if count < FEWEST or left < 1:
        return False
    losses = np.array([a.dev_sums.mean_loss for a in judged if a.dev_sums.n == n])
    return expected_gain(losses, n, min(left, more), SPREAD) < search.min_gain
