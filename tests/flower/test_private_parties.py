"""Parties behind a network in the modes of `privacy`: whatever ends in between, and whatever is asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path

import pytest

from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.federation.envelope import opened
from fedbpt_api.federation.hidden import OPEN
from fedbpt_api.federation.promise import PARTS
from fedbpt_api.flower.coordinator import coordinate
from fedbpt_api.run import enclosed, node
from fedbpt_api.run.config import load_settings
from fedbpt_api.run.private import promise_of
from fedbpt_api.run.result import RunResult
from fedbpt_api.scoring.record_file import read_records
from toy import Toys, make_task
from toy_grid import Federation, ToyGrid, ToyNode
from toy_runs import run_toy

UNPROPOSED: dict[str, object] = {
    "budget.scored": 10_000,
    "search.opening": 0.15,
    "search.choice": "committee",
    "search.ensemble": 2,
    "search.form": "demonstrations",
    "search.proposals": 0,
    "test.compare": "all",
}  # one party's candidate is not told where sums are
SUMS = UNPROPOSED | {"privacy.mode": "sums"}


async def test_sums_of_parties_that_end_and_come_back_are_the_run(
    toys: Toys, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only masked numbers travel, a party and the coordinator are started again: the same to 1e-6.

    Searches are drawn from what the run in one process draws them from, so that they can be compared.
    """
    monkeypatch.setattr(node, "own_draws", lambda place: ())
    task, config = make_task(), fed.write(make_task(), SUMS)
    here = await run_toy(task, UNPROPOSED)
    hosts = {100 + k: fed.host(client.name) for k, client in enumerate(task.clients)}
    nodes = {number: ToyNode(host) for number, host in hosts.items()}
    loop, moments = asyncio.get_running_loop(), itertools.count(1)
    lives_of: list[asyncio.Task[RunResult]] = []

    def before(node: int, data: bytes) -> None:
        moment = next(moments)
        if moment in (20, 50, 90):
            nodes[node].host = fed.host(nodes[node].host.name)
        if moment == 60:
            loop.call_soon_threadsafe(lives_of[-1].cancel)

    there = None
    while there is None:
        lives_of.append(asyncio.create_task(coordinate(ToyGrid(nodes, before), config, fed.run)))
        with contextlib.suppress(asyncio.CancelledError):
            there = await lives_of[-1]
    assert len(lives_of) == 2 and next(moments) > 90
    assert there.prompt == here.prompt
    assert [r.best_dev_loss for r in there.rounds] == pytest.approx(
        [r.best_dev_loss for r in here.rounds], abs=1e-6
    )
    pooled = [
        [(row.method, row.accuracy) for row in result.test.rows if row.client == "*"]
        for result in (there, here)
        if result.test is not None
    ]
    assert pooled[0] == pooled[1]
    assert {"masked", "forgotten"} >= {
        opened(answer).kind
        for path in fed.run.glob("answers-*.records")
        for answer in answers_in(path)
        if opened(answer).kind not in OPEN
    }


def answers_in(path: Path) -> list[bytes]:
    """What the coordinator keeps of a party's answers."""
    payloads = read_records(path, "file of answers", 1).payloads
    return [answer for payload in payloads if (answer := bytes(payload)[16:])]


async def test_a_party_that_is_started_again_searches_as_it_did_with_draws_of_its_own(
    toys: Toys, fed: Federation
) -> None:
    task, config = make_task(), fed.write(make_task(), SUMS)
    grid, moments = fed.grid(task), itertools.count(1)

    def before(number: int, data: bytes) -> None:
        if next(moments) in (20, 50, 90):
            grid.members[number].host = fed.host(grid.members[number].host.name)

    grid.before = before
    result = await coordinate(grid, config, fed.run)
    assert next(moments) > 90 and result.test is not None
    kept = [(fed.folder / client.name / "kept").glob("*/draws.secret") for client in task.clients]
    assert len({next(places).read_bytes() for places in kept}) == len(task.clients)
    (fed.run / "result.json").unlink()
    again = await coordinate(fed.grid(task), config, fed.run)
    assert again.prompt == result.prompt and again.test == result.test


async def test_the_loss_of_a_search_is_of_several_texts(toys: Toys, fed: Federation) -> None:
    """Neither a coordinator that says what it does, nor one that asks for it nevertheless, gets a text's."""
    task, config = make_task(), fed.write(make_task(), {"search.minibatch": 1})
    with pytest.raises(ConfigError, match="1 is too small for parties behind a network"):
        await coordinate(fed.grid(task), config, fed.run)
    grid = fed.grid(task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enclosed, "LEAST_BATCH", 1)  # the coordinator's own check
        with pytest.raises(FedbptError, match="losses of 1 texts, where 8 are the fewest"):
            await coordinate(grid, config, fed.run)


async def test_a_party_takes_part_in_what_it_allows_only(toys: Toys, fed: Federation) -> None:
    task, config = make_task(), fed.write(make_task(), {"privacy.mode": "sums"})
    place = fed.folder / "client1" / "node.toml"
    place.write_text(place.read_text() + '\n[privacy]\nneeds = "gaussian"\n', encoding="utf-8")
    with pytest.raises(FedbptError, match="client1 cannot take part"):
        await coordinate(fed.grid(task), config, fed.run)
    assert toys["toy"].requests == 0


async def test_a_party_s_runs_with_noise_are_limited(toys: Toys, fed: Federation) -> None:
    task, config = make_task(), fed.write(make_task(), {"privacy.mode": "gaussian", "search.rounds": 1})
    place = fed.folder / "client1" / "node.toml"
    place.write_text(place.read_text() + "\n[privacy]\nruns = 1\n", encoding="utf-8")
    assert (await coordinate(fed.grid(task), config, fed.run)).test is not None
    with pytest.raises(FedbptError, match="client1 cannot take part"):
        await coordinate(fed.grid(task), config, fed.folder / "another")


async def test_sums_are_over_the_parties_of_the_run_before(toys: Toys, fed: Federation) -> None:
    """Two runs that differ by a party would tell that party's numbers."""
    task, config = make_task(clients=4), fed.write(make_task(clients=4), SUMS | {"search.rounds": 1})
    config.write_text(config.read_text(encoding="utf-8").replace('"client3",', ""), encoding="utf-8")
    grid = fed.grid(task)
    await coordinate(grid, config, fed.run)
    config.write_text(config.read_text(encoding="utf-8").replace('"client0"', '"client3"'), encoding="utf-8")
    with pytest.raises(FedbptError, match="those that they were before, and no others"):
        await coordinate(grid, config, fed.folder / "another")
    for client in ("client1", "client2"):
        (fed.folder / client / "kept" / "peers.json").unlink()
    assert (await coordinate(fed.grid(task), config, fed.folder / "third")).test is not None


async def test_noise_is_drawn_once_whoever_is_started_again(toys: Toys, fed: Federation) -> None:
    changes: dict[str, object] = {
        "privacy.mode": "gaussian",
        "privacy.prompts": 4,
        "verbalizer.kind": "bias",
        "search.proposals": 0,
        "search.rounds": 3,
    }
    task = make_task()
    config, grid, moments = fed.write(task, changes), fed.grid(task), itertools.count(1)

    def before(node: int, data: bytes) -> None:
        if next(moments) % 7 == 0:
            grid.members[node].host = fed.host(grid.members[node].host.name)

    grid.before = before
    result = await coordinate(grid, config, fed.run)
    assert "Differential privacy" in result.privacy and result.test is not None
    planned = promise_of(load_settings(config)).releases
    for client in task.clients:
        (kept,) = (fed.folder / client.name / "kept").glob("*/releases.records")
        records = [bytes(payload) for payload in read_records(kept, "file of releases", 2).payloads]
        begun = {record[:16] for record in records if len(record) == 17}
        payloads = [record for record in records if len(record) > 17]
        assert len({payload[:16] for payload in payloads} & begun) == len(payloads)
        for place, part in enumerate(PARTS):
            assert 0 < sum(payload[16] == place for payload in payloads) <= planned[part]
