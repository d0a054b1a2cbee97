"""The user's own prompts: the first one, or the best of them. Nothing is searched."""

from __future__ import annotations

from collections.abc import Sequence

from fedbpt_api.methods.searching import Searching, Stop
from fedbpt_api.run.assess import START


async def start(run: Searching) -> Stop:
    """The first prompt alone."""
    return await _judge(run, run.settings.prompts[:1])


async def prompts(run: Searching) -> Stop:
    """All prompts that the user gave."""
    return await _judge(run, run.settings.prompts)


async def _judge(run: Searching, texts: Sequence[str]) -> Stop:
    run.phase("starting prompts")
    for text in dict.fromkeys(texts):
        await run.assessor.assess(await run.parties.backend.tokenize(text), START)
    run.note(run.begun, run.assessor.best(), None, run.settings.search.sigma)
    return "rounds"
