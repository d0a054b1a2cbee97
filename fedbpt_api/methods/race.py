"""Placeholder."""

from fedbpt_api.methods import rounds

search = rounds.search
