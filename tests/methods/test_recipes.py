"""Every recipe runs to its end within its budget, and a config's own keys win over a recipe's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedbpt_api.errors import ConfigError
from fedbpt_api.methods import DEFAULT, RECIPES, with_preset
from fedbpt_api.run.config import build_settings
from fedbpt_api.run.schema import SearchSettings
from toy import Toys, make_task
from toy_runs import make_settings, make_values, run_toy, scored


@pytest.mark.parametrize("name", RECIPES)
async def test_a_recipe_runs_within_its_budget_and_is_tested(toys: Toys, name: str) -> None:
    task = make_task()
    changes: dict[str, object] = {"method": name, "budget.scored": 900, "test.compare": "none"}
    result = await run_toy(task, changes)
    assert 0 < scored(result) <= 900
    assert result.test is not None
    methods = {row.method for row in result.test.rows}
    assert "tuned" in methods and not methods & {"start", "start+bias"}
    assert result.rounds and result.rounds[0].round == 0
    assert sum(record.scored for record in result.rounds) == scored(result)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_settings(name: str) -> None:
    values = make_values(make_task(), {"method": name})
    del values["search"]
    del values["verbalizer"]
    settings = build_settings(values, files=False)
    for section, keys in RECIPES[name].preset.items():
        for key, value in keys.items():
            assert getattr(getattr(settings, section), key) == value


def test_what_a_config_says_wins_over_the_recipe() -> None:
    settings = make_settings(make_task(), {"method": "fedbpt", "search.popsize": 7})
    assert (settings.search.popsize, settings.search.perturb) == (7, 0.5)
    again = build_settings(settings.model_dump(), files=False)
    assert again == settings


def test_the_default_is_the_schemas_default_too() -> None:
    assert RECIPES[DEFAULT].preset["search"]["algorithm"] == SearchSettings().algorithm
    assert with_preset({"method": "no such", "search": {}}) == {"method": "no such", "search": {}}


def test_the_documentation_lists_every_recipe() -> None:
    page = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    assert all(f"| `{recipe.name}` | {recipe.summary} |" in page for recipe in RECIPES.values())


def test_an_unknown_recipe_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"method: .*expected one of ensemble, rounds, .*got 'best'"):
        make_settings(make_task(), {"method": "best"})


async def test_fedone_asks_one_client_a_round(toys: Toys) -> None:
    result = await run_toy(make_task(), {"method": "fedone", "search.rounds": 3})
    asked = [[c.client for c in record.clients if c.bytes_up] for record in result.rounds[1:]]
    assert len(asked) == 3 and all(len(names) == 1 for names in asked)


async def test_a_prompt_read_by_label_words_alone_is_tested_with_a_bias_too(toys: Toys) -> None:
    result = await run_toy(make_task(), {"method": "fedbpt", "verbalizer.kind": "words"})
    assert result.test is not None
    assert {"tuned", "tuned+bias"} <= {row.method for row in result.test.rows}
