"""Runs that are interrupted anywhere and go on: the same prompt, the same numbers, nothing paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedbpt_api.run.result import RunResult
from fedbpt_api.run.resume import resumed
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.backend import Scores, Usage
from toy import ToyBackend, Toys, make_task
from toy_runs import FILES, make_settings, numbers, run_toy, without_times

TASK = make_task()
CHANGES: dict[str, object] = {"search.rounds": 3, "budget.scored": 2500}


class Dying(ToyBackend):
    """Answers so many requests, then no more: the process dies with those that are under way."""

    left = 10**9

    async def score(self, prompts: Any, words: Any) -> Scores:
        self._count()
        return await super().score(prompts, words)

    async def top_words(self, prompts: Any, k: int) -> tuple[list[dict[int, float]], Usage]:
        self._count()
        return await super().top_words(prompts, k)

    def _count(self) -> None:
        if self.left <= 0:
            raise asyncio.CancelledError
        self.left -= 1


def asked(toy: ToyBackend) -> int:
    return toy.requests


async def undisturbed(
    toys: Toys, folder: Path, changes: dict[str, object] = CHANGES
) -> tuple[RunResult, int]:
    toys.opened.clear()
    result = await run_toy(TASK, changes, folder)
    return result, toys["toy"].requests


def same_files(one: Path, other: Path) -> None:
    """But for times, and the order in which clients were answered."""
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()} == FILES
    for name in FILES - {"model.facts", "result.json", "report.html"}:
        if not name.endswith(".journal"):
            assert without_times(one / name) == without_times(other / name), name


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deaths=st.lists(st.integers(0, 120), min_size=1, max_size=4))
def test_a_run_that_dies_anywhere_ends_as_if_it_had_not(
    toys: Toys, tmp_path_factory: pytest.TempPathFactory, deaths: list[int]
) -> None:
    async def work() -> None:
        folder = tmp_path_factory.mktemp("runs")
        whole, requests = await undisturbed(toys, folder / "whole")
        toys.opened.clear()
        toy = Dying()
        toys.opened["toy"] = toy
        tuner: Callable[[], Tuner] = lambda: Tuner(make_settings(TASK, CHANGES), TASK, folder / "run")  # noqa: E731
        for left in deaths:
            toy.left = left
            try:
                result = await tuner().run()
            except asyncio.CancelledError:
                pass
            else:
                break
            tuner = lambda: resumed(folder / "run", TASK)  # noqa: E731
        else:
            toy.left = 10**9
            result = await tuner().run()
        assert numbers(result) == numbers(whole)
        assert result.prompt == whole.prompt
        assert result.test == whole.test
        assert toy.requests == requests
        same_files(folder / "whole", folder / "run")

    asyncio.run(work())
