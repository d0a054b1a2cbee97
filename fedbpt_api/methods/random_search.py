"""Random search: prompts drawn as CMA-ES draws its first generation, each judged in full."""

from __future__ import annotations

import numpy as np

from fedbpt_api.methods.searching import Searching, Stop
from fedbpt_api.run.origins import choose_origin
from fedbpt_api.scoring.budget import BudgetSpent

_PURPOSE = 61
_ROUND = 4  # prompts that are noted together
_MOST_STALE = 2000  # draws in a row that were known already


async def search(run: Searching) -> Stop:
    """Judge the starting prompts, then z ~ N(0, sigma^2 I) around the best of them until the budget ends."""
    run.phase("starting prompts")
    centre, space = await choose_origin(run.assessor, await run.codebook())
    sigma = run.settings.search.sigma
    run.note(run.begun, centre, None, sigma)
    run.phase("search")
    run.space, run.assessor.centre = space, centre
    rng = np.random.default_rng((run.settings.seed, _PURPOSE))
    rounds, stale = 0, 0
    while run.settings.search.rounds is None or rounds < run.settings.search.rounds:
        clock, judged, ended = run.meter(), 0, False
        while judged < _ROUND and not ended:
            z = sigma * rng.standard_normal(space.dimension)
            prompt = space.decode(z)
            if prompt in run.assessor.known:
                stale += 1
                if stale == _MOST_STALE:
                    return "cap"
                continue
            try:
                await run.assessor.assess(prompt, "random", z)
            except BudgetSpent:
                ended = True
            judged, stale = judged + 1, 0
        rounds += 1
        run.note(clock, run.assessor.best(), None, sigma)
        if ended:
            return "budget"
    return "rounds"
