"""Late parties behind a grid: what they found is used, and what was lost is asked for again."""

from __future__ import annotations

import asyncio
import contextlib

import orjson
import pytest

from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.envelope import opened
from fedbpt_api.federation.messages import decode_state
from fedbpt_api.flower.bundle import unpack
from fedbpt_api.flower.coordinator import coordinate
from fedbpt_api.run.result import RunResult
from fedbpt_api.scoring.record_file import read_records
from toy import Toys, make_task
from toy_grid import Federation, ToyGrid, ToyNode
from toy_runs import numbers

CHANGES: dict[str, object] = {"federation.timeout": 3, "search.rounds": 4, "budget.scored": 10_000}
LATE = 101


def rounds_of(data: bytes) -> list[int]:
    """Numbers of the rounds whose search a bundle asks for."""
    questions = [opened(envelope) for envelope in unpack(data)]
    return [decode_state(one.body).round for one in questions if one.kind == "search"]


def notes(result: RunResult) -> list[str]:
    """What the table says of client1, round by round."""
    return [
        client.note for record in result.rounds for client in record.clients if client.client == "client1"
    ]


def freeze(grid: ToyGrid) -> None:
    """The party is frozen from the search of round 1 to the next one's beginning."""

    def before(node: int, data: bytes) -> None:
        for number in rounds_of(data):
            grid.members[LATE].frozen = number == 1

    grid.before = before


async def test_a_late_update_joins_the_next_round(toys: Toys, fed: Federation) -> None:
    task = make_task()
    config, grid = fed.write(task, CHANGES), fed.grid(task)
    freeze(grid)
    result = await coordinate(grid, config, fed.run)
    late = [orjson.loads(one) for one in read_records(fed.run / "late.records", "late searches", 1).payloads]
    assert late == [
        {"round": 1, "joined": [], "waiting": ["client1"]},
        {"round": 2, "joined": ["client1"], "waiting": []},
    ]
    assert notes(result) == ["", "", "no answer within 3 s", "", ""]
    asked = [number for data in grid.members[LATE].seen for number in rounds_of(data)]
    assert asked == [0, 1, 3]


async def test_a_coordinator_that_ends_after_it_merges_the_same_again(toys: Toys, fed: Federation) -> None:
    task = make_task()
    config, grid = fed.write(task, CHANGES), fed.grid(task)
    freeze(grid)
    loop, before = asyncio.get_running_loop(), grid.before

    def die(node: int, data: bytes) -> None:
        before(node, data)
        if 3 in rounds_of(data):
            loop.call_soon_threadsafe(first.cancel)

    grid.before = die
    first = asyncio.create_task(coordinate(grid, config, fed.run))
    with contextlib.suppress(asyncio.CancelledError):
        await first
    assert first.cancelled()
    begun = (fed.run / "prompts.jsonl").read_text().splitlines()
    paid = toys["toy"].scored
    hosts = {number: ToyNode(node.host) for number, node in grid.members.items()}
    again = ToyGrid(hosts)
    result = await coordinate(again, config, fed.run)
    asked = [number for data in again.members[LATE].seen for number in rounds_of(data)]
    assert asked == [3]  # all before is on disk, and leads to the same questions
    assert notes(result)[:3] == ["", "", "no answer within 3 s"]
    after = (fed.run / "prompts.jsonl").read_text().splitlines()
    assert [orjson.loads(one)["prompt"] for one in after[: len(begun)]] == [
        orjson.loads(one)["prompt"] for one in begun
    ]
    assert toys["toy"].scored > paid and len(numbers(result)) == 5


async def test_a_search_that_is_lost_is_asked_for_again_in_the_next_round(
    toys: Toys, fed: Federation
) -> None:
    """Its node was started again: Flower does not say so, but the next message is answered."""
    task = make_task()
    config, grid = fed.write(task, CHANGES), fed.grid(task)

    def before(node: int, data: bytes) -> None:
        grid.members[LATE].loses = node == LATE and 1 in rounds_of(data)

    grid.before = before
    result = await coordinate(grid, config, fed.run)
    assert notes(result) == ["", "", "no answer within 3 s", "", ""]
    asked = [number for data in grid.members[LATE].seen for number in rounds_of(data)]
    assert asked == [0, 2, 3]


async def test_a_party_that_is_lost_while_the_run_is_opened_ends_it_and_is_asked_again(
    toys: Toys, fed: Federation
) -> None:
    """What was sent to it will never be answered; a run that waited for that would wait for ever."""
    task = make_task()
    config, grid = fed.write(task, CHANGES | {"federation.timeout": 3}), fed.grid(task)

    def before(node: int, data: bytes) -> None:
        kinds = [opened(envelope).kind for envelope in unpack(data)]
        grid.members[LATE].loses = node == LATE and "task" in kinds

    grid.before = before
    with pytest.raises(FedbptError, match="client1: no answer within 3 s"):
        await coordinate(grid, config, fed.run)
    hosts = {number: ToyNode(node.host) for number, node in grid.members.items()}
    result = await coordinate(ToyGrid(hosts), config, fed.run)
    assert len(result.rounds) == 5 and not any(notes(result))
