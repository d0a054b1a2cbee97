"""Recipes side by side: a grid of runs, resumable, and the tables and plots that a paper would print."""

from fedbpt_api.bench.grid import Cell, cells
from fedbpt_api.bench.runner import run_suite
from fedbpt_api.bench.suite import Suite, load_suite
from fedbpt_api.bench.summary import Entry, summarise

__all__ = ["Cell", "Entry", "Suite", "cells", "load_suite", "run_suite", "summarise"]
