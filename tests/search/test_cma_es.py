"""The local search: pycma's own figures, plain state, missing answers, and nobody else's generator."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbpt_api.errors import ConfigError
from fedbpt_api.search import cma_es
from fedbpt_api.search.cma_es import SearchState, ask, center, start, step_sizes, tell

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Could not import matplotlib")
    import cma

Floats = npt.NDArray[np.float64]


def sphere(points: Floats) -> list[float]:
    return [float(np.sum((point - 0.3) ** 2)) for point in points]


def run(state: SearchState, generations: int) -> SearchState:
    for _ in range(generations):
        state = tell(state, sphere(ask(state)))
    return state


@pytest.mark.parametrize(("d", "population"), [(1, 3), (2, 5), (16, 6), (40, 20)])
def test_equals_pycma_driven_directly(d: int, population: int) -> None:
    state = start(np.linspace(-1, 1, d), 0.7, (3, 1, 4), population)
    draws = np.random.default_rng(np.random.SeedSequence((3, 1, 4)))
    direct = cma.CMAEvolutionStrategy(
        np.linspace(-1, 1, d),
        0.7,
        {
            "popsize": population,
            "randn": lambda n, m: draws.standard_normal((n, m)),
            "seed": math.nan,
            "verbose": -9,
        },
    )
    used = []
    for _ in range(6):
        expected = direct.ask()
        candidates = ask(state)
        np.testing.assert_array_equal(candidates, np.array(expected))
        used.append(float(direct.sigma))
        direct.tell(expected, sphere(candidates))
        state = tell(state, sphere(candidates))
        mean, sigma = center(state)
        np.testing.assert_array_equal(mean, direct.mean)
        assert sigma == direct.sigma
    assert step_sizes(state) == tuple(used)


def test_converges_on_a_sphere() -> None:
    mean, sigma = center(run(start([2.0] * 5, 1.0, (7,), 8), 60))
    np.testing.assert_allclose(mean, 0.3, atol=1e-2)
    assert sigma < 1e-2


def test_the_same_state_asks_the_same_and_another_key_something_else() -> None:
    state = start([0.0] * 4, 1.0, (1, 2, 3), 5)
    np.testing.assert_array_equal(ask(state), ask(state))
    assert not np.any(ask(state) == ask(replace(state, seed=(1, 2, 4))))
    after = tell(state, sphere(ask(state)))
    assert not np.any(ask(state) == ask(after))


def test_searches_side_by_side_equal_searches_one_by_one() -> None:
    first, second = start([0.0] * 3, 1.0, (1,), 5), start([1.0] * 3, 0.5, (2,), 6)
    alone = (run(first, 4), run(second, 4))
    for _ in range(4):
        one, two = ask(first), ask(second)
        first, second = tell(first, sphere(one)), tell(second, sphere(two))
    assert (first, second) == alone


def test_numpys_global_generator_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    before = np.random.get_state(legacy=False)
    state = run(start([0.0], 1.0, (5,), 3), 3)
    state = run(start([0.0] * 320, 1.0, (5,), 4), 2)
    center(state)
    after = np.random.get_state(legacy=False)
    assert json.dumps(before, default=repr) == json.dumps(after, default=repr)
    assert capfd.readouterr() == ("", "")


def test_only_the_order_of_the_losses_counts() -> None:
    state = start([0.0] * 3, 1.0, (9,), 6)
    order = [4, 1, 3, 0, 5, 2]
    plain = tell(state, [float(rank) for rank in order])
    huge = tell(state, [1e300 * (rank - 3) for rank in order])
    np.testing.assert_array_equal(ask(plain), ask(huge))


def test_a_missing_answer_ranks_last() -> None:
    state = start([0.0] * 3, 1.0, (9,), 6)
    gap = tell(state, [3.0, math.nan, 1.0, 2.0, 0.5, math.inf])
    full = tell(state, [3.0, 8.0, 1.0, 2.0, 0.5, 9.0])
    np.testing.assert_array_equal(ask(gap), ask(full))
    short = tell(state, [3.0, 4.0, 1.0])
    assert short.told == ((3.0, 4.0, 1.0, math.inf, math.inf, math.inf),)
    np.testing.assert_array_equal(ask(short), ask(tell(state, [3.0, 4.0, 1.0, 5.0, 6.0, 7.0])))


def test_a_generation_with_fewer_answers_than_parents_is_skipped() -> None:
    state = start([0.5] * 3, 0.8, (9,), 6)
    skipped = tell(state, [1.0, math.nan, 2.0])
    mean, sigma = center(skipped)
    np.testing.assert_array_equal(mean, [0.5] * 3)
    assert sigma == 0.8
    assert step_sizes(skipped) == ()
    assert not np.any(ask(skipped) == ask(state))
    assert len(step_sizes(run(skipped, 2))) == 2


@pytest.mark.parametrize("population", [3, 4, 5, 6])
def test_generations_may_be_skipped_at_any_time(population: int) -> None:
    state = start([0.5] * 3, 0.8, (9,), population)
    for _ in range(4):
        state = tell(run(state, 2), [])
    assert len(step_sizes(state)) == 8
    earlier = ask(replace(state, told=state.told[:-1]))
    assert not np.any(ask(state) == earlier)


losses = st.one_of(st.floats(), st.just(math.nan), st.just(math.inf))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(3, 7), st.data())
def test_no_answer_can_break_the_search(d: int, population: int, data: st.DataObject) -> None:
    state = start([0.0] * d, 1.0, (1, 2), population)
    for _ in range(3):
        candidates = ask(state)
        assert candidates.shape == (population, d)
        assert np.isfinite(candidates).all()
        state = tell(state, data.draw(st.lists(losses, max_size=population)))
    mean, sigma = center(state)
    assert np.isfinite(mean).all()
    assert 0 < sigma < math.inf
    assert len(step_sizes(state)) <= 3
    again = SearchState.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False)))
    assert again == state
    assert hash(again) == hash(state)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"population \(popsize\) is 2, .* at least 3"):
        start([0.0, 0.0], 1.0, (1,), 2)
    with pytest.raises(ConfigError) as caught:
        SearchState(mean=(), sigma=0.0, seed=(-1,), population=4, told=((1.0,),))
    assert len(caught.value.problems) == 4
    with pytest.raises(ValueError, match="4 losses were told for 3 candidates"):
        tell(start([0.0], 1.0, (1,), 3), [1.0] * 4)


def test_parents_are_the_positive_weights_of_pycma() -> None:
    for population in range(3, 30):
        weights = cma.recombination_weights.RecombinationWeights(population)
        assert cma_es.parents(population) == weights.mu
