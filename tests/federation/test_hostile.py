"""One of ten parties lies in all its answers, in each of six ways: the result is hardly worse for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedbpt_api.federation.responder import Responder
from fedbpt_api.run.events import Event, Warned
from fedbpt_api.run.result import RunResult
from fedbpt_api.task import Task
from lies import LIES, lying
from toy import Toys, make_task
from toy_wires import run_between

LIAR = "client4"
SETTINGS: dict[str, object] = {
    "budget.scored": 20_000,
    "search.choice": "committee",
    "search.ensemble": 3,
    "search.rounds": 2,
    "search.form": "auto",
    "search.opening": 0.15,
}
NAMED = {"NaN", "sign flip", "100 x norm", "random"}
"""Lies of which some cannot be true, or harm the others."""


def accuracy(result: RunResult, names: frozenset[str]) -> float:
    """Test accuracy of the tuned prompt over the texts of these parties, in points."""
    assert result.test is not None
    rows = [row for row in result.test.rows if row.client in names and row.method == "tuned"]
    return 100 * sum(row.correct for row in rows) / sum(row.n for row in rows)


def tasks() -> tuple[Task, Task]:
    """With the liar, and without it."""
    task = make_task(clients=10, test=20)
    return task, replace(task, clients=tuple(c for c in task.clients if c.name != LIAR))


@pytest.mark.parametrize("lie", LIES)
async def test_one_liar_of_ten_costs_less_than_a_point_and_a_half(toys: Toys, lie: str) -> None:
    task, others = tasks()
    events: list[Event] = []
    without = await run_between(others, SETTINGS, lambda client: Responder(client).answer)
    with_it = await run_between(task, SETTINGS, lying(lie, LIAR), events.append)
    honest = frozenset(client.name for client in others.clients)
    assert accuracy(with_it, honest) >= accuracy(without, honest) - 1.5
    told = [event.message for event in events if isinstance(event, Warned)]
    assert not [line for line in told if "left out" in line and not line.startswith(LIAR)]
    if lie in NAMED:
        assert any(line.startswith(f"{LIAR} is left out of the run") for line in told)
        (note,) = (c.note for c in with_it.rounds[-1].clients if c.client == LIAR)
        assert note.startswith("left out of the run: ")
