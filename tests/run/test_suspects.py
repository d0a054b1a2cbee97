"""Cross-scoring: the party without which the others do clearly better is found; nobody is found by chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.federation.responder import Responder
from fedbpt_api.federation.tally import Sums
from fedbpt_api.run.events import Event, Warned
from fedbpt_api.run.suspects import gain, suspect
from lies import lying
from toy import Toys, make_task
from toy_runs import numbers, scored
from toy_wires import run_between

NAMES = tuple(f"client{k}" for k in range(10))
SETTINGS: dict[str, object] = {"search.rounds": 1, "search.choice": "committee", "search.ensemble": 2}


def told(losses: dict[str, float], n: int = 16) -> dict[str, Sums]:
    """Mean losses as sums."""
    return {name: Sums(n, n * loss) for name, loss in losses.items()}


def noisy(rng: np.random.Generator, level: float, spread: float = 0.03) -> dict[str, Sums]:
    """What ten parties say of a reading with this mean loss."""
    return told({name: level + spread * float(rng.normal()) for name in NAMES})


def others(sums: dict[str, Sums], name: str) -> dict[str, Sums]:
    return {other: one for other, one in sums.items() if other != name}


@given(st.integers(0, 2**32))
def test_the_one_that_spoils_the_reading_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    liar = NAMES[int(rng.integers(10))]
    without = {name: others(noisy(rng, 0.5 if name == liar else 2.0), name) for name in NAMES}
    assert suspect(noisy(rng, 2.0), without) == liar


@given(st.integers(0, 2**32), st.floats(0, 0.05))
def test_nobody_is_found_where_readings_differ_by_chance(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    without = {name: others(noisy(rng, 0.5, spread), name) for name in NAMES}
    assert suspect(noisy(rng, 0.5, spread), without) is None


@given(st.integers(0, 2**32), st.floats(-1e9, 1e9))
def test_one_party_cannot_have_another_left_out(seed: int, claim: float) -> None:
    rng = np.random.default_rng(seed)
    everyone = noisy(rng, 0.5)
    without = {name: others(noisy(rng, 0.5), name) for name in NAMES}
    for name in NAMES[1:]:
        without[name] |= told({NAMES[0]: claim})
    assert suspect(everyone, without) is None


@given(st.integers(0, 2**32), st.floats(-1e9, 1e9))
def test_one_party_cannot_clear_another(seed: int, claim: float) -> None:
    rng = np.random.default_rng(seed)
    without = {name: others(noisy(rng, 0.5 if name == NAMES[3] else 2.0), name) for name in NAMES}
    without[NAMES[3]] |= told({NAMES[0]: claim})
    assert suspect(noisy(rng, 2.0), without) == NAMES[3]


@given(st.integers(0, 2**32), st.floats(-1e9, 1e9))
def test_one_party_cannot_make_another_look_as_harmful_as_it_is(seed: int, claim: float) -> None:
    """It lies in all fits but those without its victim; those without itself are as good.

    Noise is far below what is asked of the most harmful one, 2 x .3 / sqrt(144 texts): .05 nats ahead.
    """
    rng = np.random.default_rng(seed)
    liar, victim = NAMES[0], NAMES[5]
    levels = {name: 0.5 if name in (liar, victim) else 2.0 for name in NAMES}
    without = {name: others(noisy(rng, level, 0.01), name) for name, level in levels.items()}
    without[victim] |= told({liar: claim})
    assert suspect(noisy(rng, 2.0, 0.01), without) is None


def test_a_gain_needs_three_parties_that_tell_of_both() -> None:
    before, after = told({"a": 1.0, "b": 1.0}), told({"a": 0.1, "b": 0.1, "c": 0.1})
    assert gain(before, after)[0] == -np.inf
    mean, error = gain(before | told({"c": 1.0}), after)
    assert mean == np.float64(0.9) and error > 0


async def test_an_honest_run_is_the_same_with_and_without_cross_scoring(toys: Toys) -> None:
    task = make_task(clients=5)
    off = {**SETTINGS, "federation.cross_scoring": False, "federation.clip": 0.0}
    checked, plain = [
        await run_between(task, changes, lambda client: Responder(client).answer)
        for changes in (SETTINGS, off)
    ]
    assert numbers(checked) == numbers(plain)
    assert checked.prompt == plain.prompt and checked.test == plain.test
    assert scored(checked) == scored(plain)


async def test_who_harms_the_others_is_left_out_and_named(toys: Toys) -> None:
    task = make_task(clients=5)
    others_task = replace(task, clients=task.clients[:4])
    events: list[Event] = []
    found = await run_between(task, SETTINGS, lying("random", "client4"), events.append)
    without = await run_between(others_task, SETTINGS, lambda client: Responder(client).answer)
    said = [event.message for event in events if isinstance(event, Warned)]
    assert any(line.startswith("client4 is left out of the run") for line in said)
    assert found.test is not None and without.test is not None
    assert {row.client for row in found.test.rows} == {row.client for row in without.test.rows}
    assert "client4" in found.spent
