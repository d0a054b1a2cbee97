"""Recipes: a name, where it comes from, and the settings it stands for.

`method = "..."` in a config puts a recipe's settings beneath the user's own: what the config says wins. The
loop that a recipe runs is its `search.algorithm`; `fedbpt_api.methods.loops` has one for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

DEFAULT: Final = "ensemble"

UNSEARCHED: Final = ("start", "prompts", "calibration")
"""Algorithms that end by themselves, whatever the budget."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to come to a prompt.

    Attributes:
        name: What a config calls it.
        summary: What it does, in a sentence.
        source: Where it was published.
        preset: Its settings, as in a config; a key that a config gives itself is the config's.
        private: Whether no text leaves its party.
    """

    name: str
    summary: str
    source: str
    preset: Mapping[str, Any]
    private: bool = True


def _search(algorithm: str, **keys: Any) -> dict[str, Any]:
    return {"algorithm": algorithm, **keys}


# FedBPT's own settings: d = 500 (50 prompt tokens), lambda_k = 5, I = 8, sigma_1 = 1 (section 4.1).
_PAPER: Final = {
    "form": "words",
    "positions": 50,
    "coordinates": 10,
    "dimensions": 500,
    "sigma": 1.0,
    "proposals": 0,
}
_WORDS: Final = {"kind": "words"}
_BIAS: Final = {"kind": "bias"}
_WEIGHTED: Final = {"kind": "weighted"}

RECIPES: Final[Mapping[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "ensemble",
            "prompts with examples that the model writes, CMA-ES around the best; a few answer together",
            "this project, docs/search.md",
            {
                "search": _search("rounds", opening=0.75, choice="committee", ensemble=3),
                "verbalizer": _WEIGHTED,
            },
        ),
        Recipe(
            "rounds",
            "prompts with examples that the model writes, each judged in full; then CMA-ES around the best",
            "this project; rounds and merge: FedBPT",
            {"search": _search("rounds"), "verbalizer": _WEIGHTED},
        ),
        Recipe(
            "start",
            "the first prompt and its label words, nothing fitted",
            "",
            {"search": _search("start"), "verbalizer": _WORDS},
        ),
        Recipe(
            "bias",
            "the first prompt with a fitted bias a label",
            "",
            {"search": _search("start"), "verbalizer": _BIAS},
        ),
        Recipe(
            "weighted",
            "the first prompt with the weighted verbalizer",
            "this project, docs/search.md",
            {"search": _search("start"), "verbalizer": _WEIGHTED},
        ),
        Recipe(
            "calibration",
            "the first prompt; labels divided by what they get for texts without content",
            "contextual calibration, Zhao et al. 2021 (arXiv 2102.09690)",
            {"search": _search("calibration"), "verbalizer": _WORDS},
        ),
        Recipe(
            "prompts",
            "the best of the user's prompts, each with the weighted verbalizer",
            "",
            {"search": _search("prompts"), "verbalizer": _WEIGHTED},
        ),
        Recipe(
            "random",
            "random prompts of the search's space around the best starting prompt, each judged in full",
            "",
            {"search": _search("random"), "verbalizer": _WEIGHTED},
        ),
        Recipe(
            "in-context",
            "the clients' own training texts as examples: not private; the best of several draws and numbers",
            "Brown et al. 2020 (arXiv 2005.14165)",
            {"search": _search("in-context"), "verbalizer": _BIAS},
            private=False,
        ),
        Recipe(
            "edits",
            "edits of the first prompt's phrases: delete, swap, add back, replace; greedy",
            "after GrIPS, Prasad et al. 2023 (arXiv 2203.07281), without its paraphrases",
            {"search": _search("edits"), "verbalizer": _BIAS},
        ),
        Recipe(
            "bbt",
            "CMA-ES over d = 500 with population 20; its means judged every 80 candidates",
            "BBT, Sun et al. 2022 (arXiv 2201.03514)",
            {
                "search": _search("rounds", **_PAPER, popsize=20, iterations=4),
                "federation": {"aggregator": "fedavg"},
                "verbalizer": _WORDS,
            },
        ),
        Recipe(
            "fedavg-bbt",
            "each client runs BBT; the means are averaged by the number of texts",
            "the baseline of FedBPT, section 4.1",
            {
                "search": _search("rounds", **_PAPER, popsize=5, iterations=8),
                "federation": {"aggregator": "fedavg"},
                "verbalizer": _WORDS,
            },
        ),
        Recipe(
            "fedbpt",
            "FedBPT as published: server-level CMA-ES, corrected sigma (6), perturbed loss (7)",
            "FedBPT, Sun et al. 2024 (arXiv 2310.01467)",
            {
                "search": _search("rounds", **_PAPER, popsize=5, iterations=8, perturb=0.5),
                "federation": {"aggregator": "fedbpt", "sigma_rule": "paper"},
                "verbalizer": _WORDS,
            },
        ),
        Recipe(
            "fedone",
            "one client a round, drawn at random, runs BBT from the server's mean",
            "FedOne, Wang et al. 2025 (arXiv 2506.14929)",
            {
                "search": _search("rounds", **_PAPER, popsize=20, iterations=4),
                "federation": {"aggregator": "fedavg", "participation": 1e-9},
                "verbalizer": _WORDS,
            },
        ),
    )
}


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of their recipe beneath; unknown names are left to the schema."""
    recipe = RECIPES.get(values.get("method", DEFAULT))
    return beneath(recipe.preset, values) if recipe is not None else dict(values)


def beneath(preset: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, and what only `preset` has."""
    merged = dict(values)
    for key, value in preset.items():
        if key not in merged:
            merged[key] = deepcopy(value)  # a recipe is not changed by what is set in what came of it
        elif isinstance(value, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = beneath(value, merged[key])
    return merged
