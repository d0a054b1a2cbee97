"""Whole cache blocks: whether the search's prompts are padded or trimmed to them, decided like the layout.

The user's own prompts are never touched, and neither are continuous ones, whose length is fixed. With the
example first, what inputs share is a text with its own length, so nothing is done there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fedbpt_api.prompts.codebook import CodebookSpace
from fedbpt_api.prompts.padding import evaluated, missing, pad, typical
from fedbpt_api.prompts.space import PromptSpace
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.events import Noted

_GAIN = 0.1  # of the tokens evaluated for each text, below which "auto" leaves prompts as they are
_SHARE = 0.1  # of a budget that the trial may take


class Blocks(NamedTuple):
    """What decides how many tokens are evaluated.

    Attributes:
        block: Tokens that every client's server keeps together.
        lead: Tokens that inputs share beside the prompt.
        texts: Texts that a prompt of the search is scored on, at the mean client.
        own: Tokens that an input shares with no other, at the mean text.
    """

    block: int
    lead: int
    texts: float
    own: float

    def cost(self, prompt: int) -> float:
        """Tokens of what inputs share that are evaluated for each text, for a prompt of so many tokens."""
        return evaluated(self.lead + prompt, self.block, self.texts)


def blocks_of(assessor: Assessor) -> Blocks | None:
    """The blocks to be filled; None where the user wants none, or no server has any."""
    settings = assessor.settings
    block = math.lcm(*(client.info.block for client in assessor.parties.clients))
    if settings.prompt_padding == "off" or block == 1:
        return None
    clients, most = assessor.parties.local, settings.search.minibatch or math.inf
    texts = float(np.mean([min(client.n_train, most) for client in clients]))
    own = float(np.mean([n for client in clients for n in client.own_lengths]))
    return Blocks(block, clients[0].lead, texts, own)


async def settle_padding(
    assessor: Assessor, centre: Assessment, space: PromptSpace
) -> tuple[Assessment, PromptSpace]:
    """Decide whether the search's prompts fill whole cache blocks, and say so.

    Args:
        assessor: Has judged the centre.
        centre: The prompt that the space was made around.
        space: The space.

    Returns:
        Centre and space to go on with: the padded ones, or those that were given.

    Raises:
        BudgetSpent: The padded prompt does not fit into the budget.
    """
    blocks = blocks_of(assessor)
    if blocks is None:
        if assessor.settings.prompt_padding == "on":
            assessor.tell(Noted("prompts not padded: the server's cache has no blocks, or does not say so"))
        return centre, space
    if not isinstance(space, CodebookSpace):
        why, chosen = "prompts not padded: continuous ones are as long as they are", None
    else:
        why, chosen = await _settle(assessor, centre, space, blocks)
    assessor.tell(Noted(why))
    return chosen or (centre, space)


async def _settle(
    assessor: Assessor, centre: Assessment, space: CodebookSpace, blocks: Blocks
) -> tuple[str, tuple[Assessment, PromptSpace] | None]:
    """Why, and what to go on with instead of what was given."""
    trying = assessor.settings.prompt_padding == "auto"
    fit = _best_fit(space, blocks, assessor.settings.search.sigma)
    why_not = _ruled_out(assessor, fit, blocks, trying)
    if why_not:
        return f"prompts not padded: {why_not}", None
    padded = await pad(assessor.parties.backend, fit.space, blocks.lead, blocks.block)
    if padded is None:
        return "prompts not padded: every padding joins what follows it when it is tokenised", None
    start = await assessor.assess(padded.decode(np.zeros(padded.dimension)), "padded start")
    if start.clients:
        common, kind = start.clients & centre.clients, "held-out"
        losses = start.loss_on(common), centre.loss_on(common)
    else:  # its training texts ruled it out
        kind, losses = "training", (start.train_loss, centre.train_loss)
    compared = f"{kind} loss {losses[0]:.3f} padded, {losses[1]:.3f} as it was"
    worse = not start.clients or centre.beats(start)
    if trying and worse:
        return f"prompts not padded, though that costs more: {compared}", None
    cut = len(space.anchors) - len(fit.space.anchors)
    trimmed = f", {cut} of {len(space.anchors)} words left out" if cut else ""
    saved = f"{fit.gain:.0%} fewer tokens evaluated for each text"
    why = f"prompts fill whole blocks of {blocks.block}{trimmed} ({saved}): {compared}"
    return why, (centre if worse else start, padded)


class _Fit(NamedTuple):
    """The space that leaves fewest tokens to evaluate once it is padded, and what that saves, as a share."""

    space: CodebookSpace
    gain: float


def _best_fit(space: CodebookSpace, blocks: Blocks, sigma: float) -> _Fit:
    """All positions with padding, or fewer of them; the more the better where the cost is the same."""
    options = (space, *space.shorter())
    costs = [typical(option, blocks.lead, blocks.block, blocks.texts, sigma) for option in options]
    padded = [cost for _, cost in costs]
    plain = costs[0][0]
    return _Fit(options[int(np.argmin(padded))], (plain - min(padded)) / (plain + blocks.own))


def _ruled_out(assessor: Assessor, fit: _Fit, blocks: Blocks, trying: bool) -> str:
    """Why no padding is tried, without a call; empty where it is worth it."""
    parties = assessor.parties
    if parties.local[0].example_first:
        return "with the example first, a cache keeps the text and not them"
    if fit.gain <= 0.0 or (trying and fit.gain < _GAIN):
        saved = f"{max(fit.gain, 0.0):.0%} of the tokens evaluated for each text"
        return f"whole blocks of {blocks.block} would save {saved}"
    longest = max(n + missing(blocks.lead + n, blocks.block) for n in fit.space.lengths)
    if longest > parties.room:
        return f"with {longest} tokens they would not fit beside the longest text"
    budgets = [(parties.budget, assessor.cost)]
    budgets += [(c.budget, c.n_train + c.n_dev) for c in parties.clients]
    if trying and any(budget.limits.tokens for budget, _ in budgets):
        return "the budget counts tokens, those in a cache too"
    if trying and any(budget.used(cost) - budget.used() > _SHARE for budget, cost in budgets):
        return f"trying it takes {assessor.cost} scored examples, too many here"
    return ""
