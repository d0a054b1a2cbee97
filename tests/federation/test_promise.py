"""The accountant against independent calculations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from fedbpt_api.errors import ConfigError
from fedbpt_api.federation.promise import Part, Promise, delta_of, epsilon_of, strength


def promise(epsilon: float = 8.0, delta: float = 1e-5, train: int = 20) -> Promise:
    return Promise("text", epsilon, delta, {"train": train, "dev": 10, "test": 1}, 2.0, 3.0, 1.0)


def by_integration(epsilon: float, mu: float) -> float:
    """Delta as it is defined: the integral of max(0, p - e^epsilon q) for N(mu, 1) and N(0, 1)."""

    def excess(x: float) -> float:
        return float(max(0.0, stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x)))

    begin = epsilon / mu + mu / 2  # where the integrand becomes positive
    found, _ = integrate.quad(excess, begin, begin + 40, epsabs=1e-14, limit=200)
    return float(found)


@pytest.mark.parametrize(("epsilon", "mu"), [(0.5, 0.3), (1.0, 1.0), (3.0, 0.8), (8.0, 2.5)])
def test_delta_is_the_integral_that_defines_it(epsilon: float, mu: float) -> None:
    assert delta_of(epsilon, mu) == pytest.approx(by_integration(epsilon, mu), rel=1e-6, abs=1e-13)


@given(st.floats(0.05, 50), st.floats(-12, -1).map(lambda e: 10**e))
def test_the_strength_spends_all_that_is_promised_and_no_more(epsilon: float, delta: float) -> None:
    mu = strength(epsilon, delta)
    assert delta_of(epsilon, mu) <= delta
    assert delta_of(epsilon, mu * 1.0001) >= delta * (1 - 1e-9)


@pytest.mark.parametrize(("multiplier", "count"), [(1.0, 1), (4.0, 24), (3.0, 5), (12.0, 200)])
def test_the_accountant_agrees_with_a_calculation_of_our_own(multiplier: float, count: int) -> None:
    """Releases compose to one Gaussian mechanism; its epsilon is the root of a definition, by scipy alone."""
    mu = math.sqrt(count) / multiplier
    root = optimize.brentq(lambda e: by_integration(e, mu) - 1e-5, 1e-3, 60)
    assert epsilon_of(multiplier, count, 1e-5) == pytest.approx(root, rel=2e-3)


def test_a_run_that_makes_all_its_releases_spends_its_epsilon_on_each_part() -> None:
    made = promise()
    spent = made.spent(made.releases)
    assert set(spent) == {("train",), ("dev",), ("test",)}
    for epsilon in spent.values():
        assert epsilon == pytest.approx(8.0, rel=2e-3) and epsilon <= 8.0 * (1 + 1e-3)
    assert set(made.spent({"train": 0, "dev": 4, "test": 0})) == {("dev",)}


@pytest.mark.parametrize(("epsilon", "delta"), [(8.0, 1e-5), (1.0, 1e-6)])
def test_all_texts_of_a_party_have_one_epsilon_over_all_parts(epsilon: float, delta: float) -> None:
    """Where training, development and test texts change together, Gaussian mechanisms add up in squares.

    The whole of what is released has mu = sqrt(sum of mu_i^2); its delta, by scipy's integral alone.
    """
    made = replace(promise(epsilon, delta), unit="party")
    squares = [count / made.multiplier(part) ** 2 for part, count in made.releases.items()]
    assert by_integration(epsilon, math.sqrt(sum(squares))) == pytest.approx(delta, rel=1e-3)
    ((parts, spent),) = made.spent(made.releases).items()
    assert parts == ("train", "dev", "test") and spent == pytest.approx(epsilon, rel=2e-3)
    some: dict[Part, int] = {"train": 6, "dev": 3}
    mu = math.sqrt(9) / made.multiplier("train")
    root = optimize.brentq(lambda e: by_integration(e, mu) - delta, 1e-3, 60)
    assert made.spent(some)[parts] == pytest.approx(root, rel=2e-3)


def test_more_releases_need_more_noise() -> None:
    multipliers = [promise(train=count).multiplier("train") for count in (1, 4, 16)]
    np.testing.assert_allclose(multipliers, multipliers[0] * np.array([1, 2, 4]))


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ConfigError, match="judge fewer prompts"):
        promise(epsilon=1e-5, delta=1e-12, train=1000).multiplier("train")
