"""Named recipes: ways to come to a prompt, ours and those that it is compared with."""

from fedbpt_api.methods.recipes import DEFAULT, RECIPES, UNSEARCHED, Recipe, with_preset

__all__ = ["DEFAULT", "RECIPES", "UNSEARCHED", "Recipe", "with_preset"]
