"""The regression's derivatives against differences, its loss against the plain formula; the descent."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from fedbpt_api.scoring.backend import Bools, Floats
from fedbpt_api.verbalizer import regression
from fedbpt_api.verbalizer.newton import Descent
from fedbpt_api.verbalizer.regression import Ints

RNG = np.random.default_rng(5)
N, C = 20, 4
LABEL_ROWS = np.log(RNG.dirichlet(np.ones(C), N))
SCORES = RNG.normal(size=(N, C))
LABELS = RNG.integers(C, size=N).astype(np.intp)
ROWS = regression.design(LABEL_ROWS, SCORES)
THETAS = RNG.normal(size=(2, C + 1))


def text_losses(theta: Floats) -> Floats:
    """Each text's loss."""
    return np.array(
        [regression.loss_and_gradient(ROWS[i : i + 1], LABELS[i : i + 1], theta)[0] for i in range(N)]
    )


def test_contrasts_are_orthonormal_and_sum_to_zero() -> None:
    basis = regression.contrasts(5)
    assert basis.T @ basis == pytest.approx(np.eye(4), abs=1e-14)
    assert basis.sum(axis=0) == pytest.approx(np.zeros(4), abs=1e-14)


def test_the_loss_is_that_of_the_formula() -> None:
    biases = regression.contrasts(C) @ THETAS[1, 1:-1]
    logits = THETAS[1, 0] * LABEL_ROWS + biases + THETAS[1, -1] * SCORES
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(shares[np.arange(N), LABELS])
    assert text_losses(THETAS[1]) == pytest.approx(expected, rel=1e-12)
    loss, _ = regression.loss_and_gradient(ROWS, LABELS, THETAS[1])
    assert loss == pytest.approx(expected.sum(), rel=1e-12)


def test_derivatives_are_those_of_differences() -> None:
    def loss(theta: Floats) -> float:
        return regression.loss_and_gradient(ROWS, LABELS, theta)[0]

    def slope(theta: Floats) -> Floats:
        return regression.loss_and_gradient(ROWS, LABELS, theta)[1]

    assert slope(THETAS[0]) == pytest.approx(optimize.approx_fprime(THETAS[0], loss, 1e-7), abs=1e-5)
    second = regression.curvature(ROWS, THETAS[0])
    assert second == pytest.approx(optimize.approx_fprime(THETAS[0], slope, 1e-7), abs=1e-5)


def test_what_is_not_fitted_stays_where_it_is() -> None:
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    weight, prior = regression.penalty(shares, N, scaled=False, weighted=False)
    assert (weight[[0, -1]] == np.inf).all() and np.isfinite(weight[1:-1]).all()
    assert prior.tolist() == [1, 0, 0, 0, 0]
    weight, prior = regression.penalty(shares, N, scaled=True, weighted=True)
    assert weight == pytest.approx([30 / N, 30 / N, 30 / N, 30 / N, 2 / N])
    logs = np.log(shares)
    assert regression.contrasts(C) @ prior[1:-1] == pytest.approx(logs - logs.mean())


PENALTY = regression.penalty(np.full(C, 1 / C), N, scaled=True, weighted=True)


def optimum(keep: Ints, start: Floats, free: Bools) -> Floats:
    """Of the mean loss of some texts and the penalty, by scipy."""

    def mean(theta: Floats) -> tuple[float, Floats]:
        theta = np.where(free, theta, start)
        loss, gradient = regression.loss_and_gradient(ROWS[keep], LABELS[keep], theta)
        away = np.where(free, theta - PENALTY[1], 0.0)
        slope = np.where(free, gradient / len(keep) + PENALTY[0] * away, 0.0)
        return float(loss / len(keep) + PENALTY[0] @ away**2 / 2), slope

    return np.array(optimize.minimize(mean, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x)


@pytest.mark.parametrize("fixed", [[], [0], [0, C]])
def test_a_descent_finds_the_optimum_that_scipy_finds(fixed: list[int]) -> None:
    free = ~np.isin(np.arange(C + 1), fixed)
    start = 5 * THETAS[0]  # far away, where steps are too long at first
    descent = Descent(start, (np.where(free, PENALTY[0], np.inf), PENALTY[1]), N)
    steps = 0
    while descent.promise > 1e-14:
        steps += 1
        loss, gradient = regression.loss_and_gradient(ROWS, LABELS, descent.trial)
        descent.observe(loss, gradient, regression.curvature(ROWS, descent.trial))
    assert steps < 40
    assert descent.trial == pytest.approx(optimum(np.arange(N), start, free), abs=1e-6)
    assert (descent.trial[~free] == start[~free]).all()
    assert np.abs(descent.slope(regression.loss_and_gradient(ROWS, LABELS, descent.trial)[1])).max() < 1e-8


@pytest.mark.parametrize("fixed", [[], [0], [0, C]])
def test_texts_left_out_cost_what_they_cost_a_fit_without_them(fixed: list[int]) -> None:
    """One Newton step is near the optimum, much nearer than staying where the text was seen."""
    free, every = ~np.isin(np.arange(C + 1), fixed), np.arange(N)
    start = np.where(free, 0.0, THETAS[0])
    whole = optimum(every, start, free)
    descent = Descent(whole, (np.where(free, PENALTY[0], np.inf), PENALTY[1]), N)
    loss, gradient = regression.loss_and_gradient(ROWS, LABELS, whole)
    descent.observe(loss, gradient, regression.curvature(ROWS, whole))
    pull, second = descent.pull(whole), descent.without_one
    found = regression.left_out(ROWS, LABELS, whole, second, pull, free)
    thetas = [optimum(np.delete(every, i), start, free) for i in every]
    exact = [text_losses(theta)[i] for i, theta in enumerate(thetas)]
    seen = text_losses(whole)
    assert np.abs(found - exact).max() < 0.1 * np.abs(seen - exact).max()
    assert found.mean() == pytest.approx(np.mean(exact), abs=0.05 * (np.mean(exact) - seen.mean()))
