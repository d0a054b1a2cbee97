"""The loop of each `search.algorithm`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fedbpt_api.methods import calibration, edits, given, in_context, random_search, rounds
from fedbpt_api.methods.searching import Loop

LOOPS: Final[Mapping[str, Loop]] = {
    "rounds": rounds.search,
    "start": given.start,
    "prompts": given.prompts,
    "calibration": calibration.search,
    "random": random_search.search,
    "in-context": in_context.search,
    "edits": edits.search,
}
