"""Noise: as much as promised, counted, and never drawn twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.federation.noise import Noise, bounded, clipped, whole_counts
from fedbpt_api.federation.promise import Part, Promise
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import BudgetSpent

TEXTS: dict[Part, int] = {"train": 30, "dev": 20, "test": 10}


def promise(unit: str = "text", train: int = 3) -> Promise:
    return Promise(
        "party" if unit == "party" else "text",
        4.0,
        1e-5,
        {"train": train, "dev": 1, "test": 1},
        2.0,
        3.0,
        1.0,
    )


class Asked:
    """An answer, counting how often it was computed."""

    def __init__(self, values: Floats) -> None:
        self.values = values
        self.times = 0

    async def __call__(self) -> Floats:
        self.times += 1
        return self.values


@pytest.mark.parametrize(("unit", "factor"), [("text", 1), ("party", 30)])
async def test_noise_has_the_size_that_was_promised(unit: str, factor: int) -> None:
    made = promise(unit)
    noise = Noise(made, TEXTS, rng=np.random.default_rng(0))
    answer = await noise.released("train", b"q", 2.5, Asked(np.full(40_000, 7.0)))
    expected = made.multiplier("train") * 2.5 * factor
    assert answer.std() == pytest.approx(expected, rel=0.02)
    assert answer.mean() == pytest.approx(7.0, abs=4 * expected / 200)


async def test_the_same_question_has_one_answer_and_counts_once() -> None:
    noise, asked = Noise(promise(), TEXTS), Asked(np.ones(3))
    first = await noise.released("train", b"q", 1.0, asked)
    again = await noise.released("train", b"q", 1.0, asked)
    assert (first == again).all() and asked.times == 1 and noise.counts["train"] == 1
    other = await noise.released("train", b"r", 1.0, asked)
    assert (first != other).all()


async def test_after_the_last_release_nothing_more_is_told() -> None:
    noise, asked = Noise(promise(), TEXTS), Asked(np.ones(3))
    for question in (b"a", b"b", b"c"):
        await noise.released("train", question, 1.0, asked)
    with pytest.raises(BudgetSpent) as end:
        await noise.released("train", b"d", 1.0, asked)
    assert end.value.own and asked.times == 3
    await noise.released("train", b"a", 1.0, asked)  # what was told may be told again
    await noise.released("dev", b"d", 1.0, asked)  # other texts


async def test_a_party_that_is_started_again_tells_what_it_told(tmp_path: Path) -> None:
    place = tmp_path / "releases.records"
    noise = Noise(promise(), TEXTS, place)
    told = {q: await noise.released("train", q, 1.0, Asked(np.ones(3))) for q in (b"a", b"b")}
    noise.close()
    again, asked = Noise(promise(), TEXTS, place), Asked(np.ones(3))
    for question, answer in told.items():
        assert (await again.released("train", question, 1.0, asked) == answer).all()
    assert asked.times == 2  # from its journal, so that its costs are counted
    assert (await again.released("train", b"a", 1.0, asked) == told[b"a"]).all()
    assert asked.times == 2 and again.counts["train"] == 2
    await again.released("train", b"c", 1.0, asked)
    with pytest.raises(BudgetSpent):
        await again.released("train", b"d", 1.0, asked)
    again.close()


async def test_a_replay_draws_nothing_and_writes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "releases.records"
    noise = Noise(promise(), TEXTS, place)
    told = await noise.released("train", b"a", 1.0, Asked(np.ones(3)))
    noise.close()
    before = place.read_bytes()
    again = Noise(promise(), TEXTS, place, ended=BudgetSpent("recorded answers"))
    assert (await again.released("train", b"a", 1.0, Asked(np.zeros(3))) == told).all()
    with pytest.raises(BudgetSpent, match="recorded"):
        await again.released("train", b"b", 1.0, Asked(np.ones(3)))
    again.close()
    assert place.read_bytes() == before


async def test_two_parties_do_not_draw_the_same_noise() -> None:
    parties = [Noise(promise(), TEXTS) for _ in range(2)]
    first, second = [await party.released("train", b"q", 1.0, Asked(np.zeros(8))) for party in parties]
    assert (first != second).all()


@given(nst.arrays(float, (6, 3), elements=st.floats(-100, 100)), st.floats(0.1, 50))
def test_no_row_moves_a_sum_further_than_twice_its_length(rows: Floats, length: float) -> None:
    short = clipped(rows, length)
    assert (np.linalg.norm(short, axis=1) <= length * (1 + 1e-9)).all()
    kept = np.linalg.norm(rows, axis=1) <= length
    assert (short[kept] == rows[kept]).all()
    moved = short.copy()
    moved[0] = clipped(-rows[:1], length)[0]
    assert np.linalg.norm(short.sum(axis=0) - moved.sum(axis=0)) <= 2 * length * (1 + 1e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9), st.integers(0, 500))
def test_noisy_counts_become_counts_of_as_many_texts(counts: list[float], total: int) -> None:
    found = whole_counts(np.array(counts), total)
    assert sum(found) == total and min(found) >= 0 and len(found) == len(counts)


def test_counts_without_noise_stay_as_they_are() -> None:
    assert whole_counts(np.array([3.0, 0.0, 5.0, 2.0]), 10) == [3, 0, 5, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_no_number_counts_as_none(value: float) -> None:
    rows = np.array([[1.0, 0.5], [value, 0.0], [0.0, -value]])
    np.testing.assert_array_equal(clipped(rows, 2.0), [[1.0, 0.5], [0.0, 0.0], [0.0, 0.0]])


def test_losses_are_within_their_bounds_whatever_they_are() -> None:
    losses = np.array([np.nan, np.inf, -np.inf, -1.0, 0.5, 9.0])
    np.testing.assert_array_equal(bounded(losses, 2.0), [2.0, 2.0, 0.0, 0.0, 0.5, 2.0])


async def test_a_release_counts_before_it_is_computed(tmp_path: Path) -> None:
    """One that fails may tell something by that; asked again, it tells nothing more."""
    place = tmp_path / "releases.records"
    noise = Noise(promise(train=2), TEXTS, place)

    async def failing() -> Floats:
        assert noise.counts["train"] == 1
        raise ValueError("it depends on the texts")

    for _ in range(2):
        with pytest.raises(ValueError, match="texts"):
            await noise.released("train", b"a", 1.0, failing)
    assert noise.counts["train"] == 1
    noise.close()
    again, asked = Noise(promise(train=2), TEXTS, place), Asked(np.ones(3))
    assert again.counts["train"] == 1  # the process may have ended in the middle of it
    told = await again.released("train", b"a", 1.0, asked)
    await again.released("train", b"b", 1.0, asked)
    with pytest.raises(BudgetSpent):
        await again.released("train", b"c", 1.0, asked)
    again.close()
    third = Noise(promise(train=2), TEXTS, place)
    assert third.counts["train"] == 2
    assert (await third.released("train", b"a", 1.0, asked) == told).all()
    third.close()


async def test_what_is_no_number_is_counted_and_not_told() -> None:
    noise = Noise(promise(), TEXTS)
    with pytest.raises(FedbptError, match="no finite number"):
        await noise.released("dev", b"a", 1.0, Asked(np.array([1.0, np.nan])))
    assert noise.counts["dev"] == 1


async def test_every_release_has_a_generator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise that was told says nothing about the next, however well the generator is known."""
    seeds = iter((1, 1, 2))
    monkeypatch.setattr("secrets.randbits", lambda bits: next(seeds))
    noise, asked = Noise(promise(), TEXTS), Asked(np.zeros(4))
    first, second, third = [await noise.released("train", q, 1.0, asked) for q in (b"a", b"b", b"c")]
    assert (first == second).all() and (first != third).all()


@pytest.mark.parametrize(
    "other",
    [
        {"unit": "party"},
        {"epsilon": 8.0},
        {"delta": 1e-4},
        {"releases": {"train": 9, "dev": 1, "test": 1}},
        {"clip_loss": 4.0},
        {"clip_mean": 0.5},
    ],
)
async def test_releases_of_another_promise_are_not_gone_on_with(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    """More prompts would take more noise in each answer than those had that are there already."""
    place = tmp_path / "releases.records"
    noise = Noise(promise(), TEXTS, place)
    await noise.released("train", b"a", 1.0, Asked(np.ones(3)))
    noise.close()
    kept = place.read_bytes()
    with pytest.raises(ConfigError, match="promised otherwise"):
        Noise(replace(promise(), **other), TEXTS, place)
    assert place.read_bytes() == kept
    Noise(promise(), TEXTS, place).close()
