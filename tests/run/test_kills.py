"""Real kills, a short form of benchmarks/kills.py: SIGKILL, a full disk, a server that dies."""

from __future__ import annotations

import os

import pytest

from kills import Found, fill_the_disk, kill_on_llama, kill_on_stub, kill_the_server


def well(found: Found, least: int) -> None:
    assert found.problems == []
    assert found.kills >= least and found.runs >= 1
    assert 0 <= found.paid <= found.under_way


async def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been() -> None:
    found = await kill_on_stub(20, seed=1)
    well(found, 20)
    assert found.inside >= 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
async def test_a_full_disk_loses_nothing_that_was_paid_for() -> None:
    well(await fill_the_disk(2, seed=1), 2)


@pytest.mark.model
async def test_a_run_on_a_real_server_is_killed_and_goes_on() -> None:
    well(await kill_on_llama(2, seed=1), 2)


@pytest.mark.model
async def test_a_server_that_dies_is_got_over_or_ends_the_run_and_it_goes_on() -> None:
    well(await kill_the_server(1, seed=1), 1)
