"""Random search: prompts drawn as CMA-ES draws its first generation, each judged in full."""

from __future__ import annotations

import numpy as np

from fedbpt_api.methods.drawing import A_ROUND, Plan, judge_draws
from fedbpt_api.methods.searching import Searching, Stop
from fedbpt_api.prompts.space import Asked
from fedbpt_api.run.origins import choose_origin
from fedbpt_api.run.padding import settle_padding
from fedbpt_api.scoring.backend import Floats

_PURPOSE = 61
_MOST_STALE = 2000  # draws in a row that were known already


async def search(run: Searching) -> Stop:
    """Judge the starting prompts, then z ~ N(0, sigma^2 I) around the best of them until the budget ends."""
    run.phase("starting prompts")
    centre, space, _ = await choose_origin(run.assessor, await run.codebook())
    centre, space = await settle_padding(run.assessor, centre, space)
    sigma = run.settings.search.sigma
    run.note(run.begun, centre, None, sigma)
    run.phase("search")
    run.space, run.assessor.centre = space, centre
    rng = np.random.default_rng((run.settings.seed, _PURPOSE))

    async def draw() -> tuple[Asked, Floats]:
        z: Floats = sigma * rng.standard_normal(space.dimension)
        return space.decode(z), z

    return await judge_draws(run, draw, Plan("random", A_ROUND, _MOST_STALE, sigma))
