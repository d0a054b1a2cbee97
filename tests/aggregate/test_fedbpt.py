"""FedBPT's server step against a calculation by hand and against pycma, and the rules around it."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbpt_api.aggregate import Aggregator, FedBPT, GlobalState, SigmaRule, Update, UpdateError
from fedbpt_api.aggregate.fedbpt import cma_step, corrected_sigma

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Could not import matplotlib")
    import cma

Floats = npt.NDArray[np.float64]


def assert_close(actual: object, desired: object) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(desired), rtol=1e-12, atol=1e-12)


def update(client: str, mean: npt.ArrayLike, loss: float, **changes: Any) -> Update:
    base = Update(client, 0, np.asarray(mean, dtype=np.float64), loss, (1.0, 1.0), 6, n=10)
    return replace(base, **changes)


# --- by hand ---------------------------------------------------------------------------------------


def test_two_coordinates_and_three_clients_by_hand() -> None:
    """One step from m = (0, 0), C = I with s' = 1, every figure written out.

    Weights: ln 3.5 - ln i for i = 1, 2, 3 is 1.2527630, 0.5596158, 0.1541507, sum 1.9665295;
    divided by the sum and squared they give mu_eff = 2.0287...; no step is long enough to be clipped
    (the longest is 2, the limit sqrt 2 + 1 = 2.414).
    """
    l1, l2, l3 = math.log(3.5), math.log(3.5 / 2), math.log(3.5 / 3)
    total = l1 + l2 + l3
    w1, w2, w3 = l1 / total, l2 / total, l3 / total
    mu_eff = 1 / (w1 * w1 + w2 * w2 + w3 * w3)
    assert mu_eff == pytest.approx(2.0286, abs=1e-3)
    # The better half of three is two: s'^2 = mean of (3 · 1² / 3) and (3 · 1² / 3) = 1.
    updates = [
        update("a", [0.0, 2.0], 0.9, step_sizes=(1.0, 1.0, 1.0)),
        update("b", [1.0, 0.0], 0.2, step_sizes=(1.0, 1.0, 1.0)),
        update("c", [1.0, 1.0], 0.5, step_sizes=(1.0, 1.0, 1.0)),
    ]
    after = FedBPT(ceiling=10.0).merge(FedBPT().initial([0.0, 0.0], 1.0), updates)
    # Best first: b, c, a.
    x, y = w1 + w2, w2 + 2 * w3
    assert_close(after.mean, [x, y])
    c_sigma = min(0.5, (mu_eff + 2) / (mu_eff + 5))
    assert c_sigma == 0.5
    # sqrt((mu_eff - 1) / 3) is below 1, and pycma's relief below 6 answers does not reach down to 3.
    damping = 1 + 0.5
    path = math.sqrt(0.75 * mu_eff)
    assert after.path_sigma is not None
    assert_close(after.path_sigma, [path * x, path * y])
    # First generation: |p|² / (1 - 1/4) / 2 - 1 = mu_eff (x² + y²) / 2 - 1 < 1 + 4/3, so the path moves.
    assert mu_eff * (x * x + y * y) / 2 - 1 < 1 + 4 / 3
    c_c = (4 + mu_eff / 2) / (6 + mu_eff)
    long = math.sqrt(c_c * (2 - c_c) * mu_eff)
    assert after.path_c is not None
    assert_close(after.path_c, [long * x, long * y])
    c_1 = 2 / (3.3 * 3.3 + mu_eff)
    c_mu = 2 * (mu_eff - 1.75 + 1 / mu_eff) / (16 + mu_eff)
    keep = 1 - c_1 - c_mu
    c_xx = keep + c_1 * (long * x) ** 2 + c_mu * (w1 + w2)
    c_xy = c_1 * long * x * long * y + c_mu * w2
    c_yy = keep + c_1 * (long * y) ** 2 + c_mu * (w2 + 4 * w3)
    assert after.covariance is not None
    assert_close(after.covariance, [[c_xx, c_xy], [c_xy, c_yy]])
    expected_length = math.sqrt(math.pi / 2)
    sigma = math.exp((path * math.hypot(x, y) / expected_length - 1) * 0.5 / damping)
    assert after.server_sigma == pytest.approx(sigma, rel=1e-12)
    assert after.sigma == pytest.approx(sigma, rel=1e-12)
    assert (after.round, after.generation) == (1, 1)


def test_four_clients_far_away_by_hand() -> None:
    """All four clients at (40, 0) with s' = 2: clipped, the step-size path too long, h_sigma = 0."""
    updates = [
        update(name, [40.0, 0.0], i, step_sizes=(2.0, 2.0), population=4) for i, name in enumerate("abcd")
    ]
    state = replace(FedBPT().initial([0.0, 0.0], 1.0), generation=3)
    after = FedBPT(ceiling=3.0).merge(state, updates)
    # s'^2 = 4 · (2 clients · 2 iterations · 2²) / (4 clients · 4 candidates) = 4.
    limit = math.sqrt(2) + 1  # sqrt d + 2 d / (d + 2)
    assert_close(after.mean, [2 * limit, 0.0])
    raw = [math.log(4.5 / i) for i in (1, 2, 3, 4)]
    mu_eff = sum(raw) ** 2 / sum(w * w for w in raw)
    path = math.sqrt(0.75 * mu_eff) * limit
    assert after.path_sigma is not None
    assert_close(after.path_sigma, [path, 0.0])
    assert path**2 / (1 - 0.5**8) / 2 - 1 > 1 + 4 / 3
    np.testing.assert_array_equal(after.path_c, [0.0, 0.0])
    c_c = (4 + mu_eff / 2) / (6 + mu_eff)
    c_1 = 2 / (3.3 * 3.3 + mu_eff)
    c_mu = 2 * (mu_eff - 1.75 + 1 / mu_eff) / (16 + mu_eff)
    keep = 1 - c_1 * (1 - c_c) ** 2 - c_mu
    assert after.covariance is not None
    assert_close(after.covariance, [[keep + c_mu * limit**2, 0.0], [0.0, keep]])
    # mu_eff is 2.6, so only pycma's relief below 6 answers changes the damping 1 + c_sigma.
    assert mu_eff < 4
    damping = 0.5 + (1 / (4 * 0.159) - 1) ** 2 / 2 + 0.5
    factor = math.exp(min(1.0, (path / math.sqrt(math.pi / 2) - 1) * 0.5 / damping))
    assert after.server_sigma == pytest.approx(2 * factor, rel=1e-12)
    assert after.sigma == pytest.approx(factor, rel=1e-12)  # only the ratio reaches the clients


def test_both_published_corrections_by_hand() -> None:
    ranked = [
        update("b", [0.0], 0.1, step_sizes=(1.0, 2.0), population=5),
        update("d", [0.0], 0.2, step_sizes=(3.0, 1.0), population=10),
        update("a", [0.0], 0.3, step_sizes=(5.0, 5.0), population=5),
        update("c", [0.0], 0.4, step_sizes=(7.0, 1.0), population=4),
    ]
    # (6): 2 sqrt( ((1+4)/5 + (9+1)/10) / 4 ) = sqrt 2; code: sqrt( (5/2 + 10/5 + 50/2 + 50/2) / 4 ).
    assert corrected_sigma(ranked, "paper") == pytest.approx(math.sqrt(2), rel=1e-15)
    assert corrected_sigma(ranked, "reference") == pytest.approx(math.sqrt(54.5 / 4), rel=1e-15)
    # Three clients: the better half is two, and the average is over two.
    assert corrected_sigma(ranked[:3], "paper") == pytest.approx(math.sqrt(2), rel=1e-15)


@given(st.integers(1, 6), st.integers(1, 10), st.floats(0.01, 10))
def test_the_corrections_agree_where_all_clients_are_alike(half: int, iterations: int, size: float) -> None:
    alike = [
        update(str(i), [0.0], float(i), step_sizes=(size,) * iterations, population=8)
        for i in range(2 * half)
    ]
    expected = size * math.sqrt(iterations / 4)
    assert corrected_sigma(alike, "paper") == pytest.approx(expected, rel=1e-12)
    assert corrected_sigma(alike, "reference") == pytest.approx(expected, rel=1e-12)


# --- pycma run directly ----------------------------------------------------------------------------


def server(d: int, count: int) -> Any:
    """pycma as the reference's server runs it: all answers are parents."""
    options = {
        "popsize": count,
        "CMA_mu": count,
        "seed": math.nan,
        "randn": lambda n, m: np.zeros((n, m)) + 0.5,
        "verbose": -9,
    }
    return cma.CMAEvolutionStrategy(np.zeros(d), 1.0, options)


def answers(rng: np.random.Generator, state: GlobalState, count: int, spread: float) -> list[Update]:
    return [
        Update(
            f"client-{i}",
            state.round,
            state.mean + spread * state.sigma * rng.standard_normal(state.dimension),
            float(rng.standard_normal()),
            tuple(state.sigma * rng.uniform(0.5, 1.5, 4)),
            int(rng.integers(4, 9)),
            n=int(rng.integers(1, 50)),
        )
        for i in range(count)
    ]


def tell(es: Any, updates: list[Update], sigma: float) -> None:
    es.sigma = sigma
    es.ask()
    es.tell([np.array(u.mean) for u in updates], [u.loss for u in updates])


def assert_same(state: GlobalState, es: Any) -> None:
    assert_close(state.mean, es.mean)
    assert_close(state.path_sigma, es.adapt_sigma.ps)
    assert_close(state.path_c, es.pc)
    assert_close(state.covariance, es.sm.C)
    assert state.server_sigma == pytest.approx(es.sigma, rel=1e-12)


@pytest.mark.filterwarnings("ignore:orphanated injected solution")  # pycma misses what it drew itself
@pytest.mark.parametrize("rule", ["paper", "reference"])
@pytest.mark.parametrize("spread", [0.3, 1.5, 9.0])  # 9: nearly every step is clipped
@pytest.mark.parametrize("d", range(1, 9))
def test_agrees_with_pycma_over_rounds(d: int, spread: float, rule: SigmaRule) -> None:
    for count in range(3, 11):
        rng = np.random.default_rng((d, count))
        es = server(d, count)
        merger = FedBPT(sigma_rule=rule)
        # pycma starts from an identity whose diagonal it has spread by up to 1e-4; the same start here.
        state = replace(merger.initial(np.zeros(d), 1.0), covariance=es.sm.C.copy())
        for _ in range(6):
            updates = answers(rng, state, count, spread)
            sigma = corrected_sigma(sorted(updates, key=lambda u: u.loss), rule)
            before = state
            state = merger.merge(state, updates)
            tell(es, updates, sigma)
            assert_same(state, es)
            ratio = state.server_sigma / sigma
            assert state.sigma == pytest.approx(min(2.0, max(0.1, before.sigma * ratio)), rel=1e-12)


@pytest.mark.filterwarnings("ignore:orphanated injected solution")
@pytest.mark.parametrize("d", [2, 5])
def test_agrees_with_pycma_when_the_number_of_answers_changes(d: int) -> None:
    rng = np.random.default_rng(d)
    merger = FedBPT()
    es = server(d, 5)
    state = replace(merger.initial(np.zeros(d), 1.0), covariance=es.sm.C.copy())
    for count in (5, 3, 8, 4, 10):
        if state.round:
            last, es = es, server(d, count)  # pycma's constants for this many, the last round's state
            es.ask()
            es.mean, es.mean_old, es.pc, es.countiter = last.mean, last.mean_old, last.pc, last.countiter
            es.adapt_sigma.ps = last.adapt_sigma.ps
            es.sm.C = last.sm.C
            es.sm.update_now(-1)
        updates = answers(rng, state, count, 1.0)
        state = merger.merge(state, updates)
        tell(es, updates, corrected_sigma(sorted(updates, key=lambda u: u.loss), "paper"))
        assert_same(state, es)
    assert state.generation == 5


# --- rules -----------------------------------------------------------------------------------------


def test_it_is_an_aggregator_and_checks_its_settings() -> None:
    rule: Aggregator = FedBPT()
    assert rule.name == "fedbpt"
    unknown: Any = "mean"
    with pytest.raises(ValueError, match="sigma_rule is 'mean'"):
        FedBPT(sigma_rule=unknown)
    for floor, ceiling in ((0.0, 2.0), (1.5, 2.0), (0.1, 0.5), (0.1, math.inf), (math.nan, 2.0)):
        with pytest.raises(ValueError, match="must enclose 1"):
            FedBPT(floor=floor, ceiling=ceiling)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 10**6), st.data())
def test_the_order_of_arrival_does_not_matter(count: int, d: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    merger = FedBPT()
    state = merger.initial(rng.standard_normal(d), 0.7)
    updates = answers(rng, state, count, 1.0)
    if data.draw(st.booleans()):  # equal losses
        updates = [replace(u, loss=1.0) for u in updates]
    shuffled = data.draw(st.permutations(updates))
    assert merger.merge(state, shuffled) == merger.merge(state, updates)


def test_floor_and_ceiling_act_round_after_round() -> None:
    merger = FedBPT(floor=0.25, ceiling=1.5)
    state = merger.initial(np.zeros(4), 2.0)
    for _ in range(40):  # clients that do not move: the step size shrinks
        still = [update(name, state.mean, i, round=state.round) for i, name in enumerate("abcd")]
        state = merger.merge(state, still)
        assert state.sigma >= 0.5
    assert state.sigma == 0.5
    for _ in range(40):  # clients that all go the same way: it grows
        ahead = [update(name, state.mean + 5, i, round=state.round) for i, name in enumerate("abcd")]
        state = merger.merge(state, ahead)
        assert state.sigma <= 3.0
    assert state.sigma == 3.0


@pytest.mark.parametrize("count", [1, 2])
def test_with_one_or_two_answers_the_searches_are_averaged(count: int) -> None:
    merger = FedBPT()
    start = merger.merge(
        merger.initial([0.0, 0.0], 1.0),
        answers(np.random.default_rng(3), merger.initial([0, 0], 1.0), 4, 1.0),
    )
    updates = [
        update("a", [3.0, 0.0], 5.0, round=1, step_sizes=(1.0, 0.6), n=10),
        update("b", [0.0, 6.0], 0.1, round=1, step_sizes=(1.0, 0.9), n=20),
    ][:count]
    after = merger.merge(start, updates)
    expected = ([3.0, 0.0], 0.6) if count == 1 else ([1.0, 4.0], 0.8)
    np.testing.assert_allclose(after.mean, expected[0], rtol=1e-15)
    assert after.sigma == pytest.approx(expected[1], rel=1e-15)
    kept = replace(after, round=1, mean=start.mean, sigma=start.sigma)
    assert kept == start
    tiny = [replace(u, step_sizes=(1e-9,)) for u in updates]
    assert merger.merge(start, tiny).sigma == 0.1


def test_clients_come_and_go() -> None:
    rng = np.random.default_rng(4)
    merger = FedBPT()
    state = merger.initial(np.zeros(3), 1.0)
    for count in (4, 1, 3, 2, 7):
        state = merger.merge(state, answers(rng, state, count, 1.0))
        assert np.isfinite(state.mean).all()
        assert 0.1 <= state.sigma <= 2.0
    assert (state.round, state.generation) == (5, 3)


def test_bad_updates_and_empty_rounds_are_refused() -> None:
    state = FedBPT().initial([0.0], 1.0)
    good = [update(name, [1.0], 1.0) for name in "abc"]
    with pytest.raises(UpdateError, match="client 'd' has a mean that is not finite"):
        FedBPT().merge(state, [*good, update("d", [math.nan], 0.0)])
    with pytest.raises(ValueError, match="no client answered"):
        FedBPT().merge(state, [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e38, 1e38), min_size=6, max_size=6), st.floats(1e-30, 1e30))
def test_extreme_but_finite_answers_leave_a_usable_state(values: list[float], size: float) -> None:
    merger = FedBPT()
    state = merger.initial([0.0, 0.0], 1.0)
    for _ in range(3):
        far = [
            update(n, values[2 * i : 2 * i + 2], values[i], round=state.round, step_sizes=(size,))
            for i, n in enumerate("abc")
        ]
        state = merger.merge(state, far)
        assert np.isfinite(state.mean).all()
        assert state.covariance is not None
        assert np.isfinite(state.covariance).all()
        assert 0.1 <= state.sigma <= 2.0


def test_a_degenerate_covariance_can_still_be_stepped_from() -> None:
    state = replace(FedBPT().initial([0.0, 0.0], 1.0), covariance=np.array([[1.0, 1.0], [1.0, 1.0]]))
    after = cma_step(state, np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), 1.0)
    assert np.isfinite(after.mean).all()
    assert 0 < after.server_sigma < math.inf
