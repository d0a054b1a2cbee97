"""The regression's derivatives against differences, its loss against the plain formula; the descent."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer import regression
from fedbpt_api.verbalizer.descent import Descent

RNG = np.random.default_rng(5)
N, C = 20, 4
LABEL_ROWS = np.log(RNG.dirichlet(np.ones(C), N))
SCORES = RNG.normal(size=(N, C))
LABELS = RNG.integers(C, size=N).astype(np.intp)
ROWS = regression.design(LABEL_ROWS, SCORES)
THETAS = RNG.normal(size=(2, C + 1))
MEMBER = RNG.random((2, N)) < 0.7


def test_contrasts_are_orthonormal_and_sum_to_zero() -> None:
    basis = regression.contrasts(5)
    assert basis.T @ basis == pytest.approx(np.eye(4), abs=1e-14)
    assert basis.sum(axis=0) == pytest.approx(np.zeros(4), abs=1e-14)


def test_the_loss_is_that_of_the_formula() -> None:
    biases = regression.contrasts(C) @ THETAS[1, 1:-1]
    logits = THETAS[1, 0] * LABEL_ROWS + biases + THETAS[1, -1] * SCORES
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(shares[np.arange(N), LABELS])
    assert regression.text_losses(ROWS, LABELS, THETAS)[1] == pytest.approx(expected, rel=1e-12)
    losses, _ = regression.loss_and_gradient(ROWS, LABELS, THETAS, MEMBER)
    assert losses[1] == pytest.approx(expected[MEMBER[1]].sum(), rel=1e-12)


def test_derivatives_are_those_of_differences() -> None:
    def loss(theta: Floats) -> float:
        return float(regression.loss_and_gradient(ROWS, LABELS, theta[None], MEMBER[:1])[0][0])

    def slope(theta: Floats) -> Floats:
        gradients = regression.loss_and_gradient(ROWS, LABELS, theta[None], np.ones((1, N), np.bool_))[1]
        return np.array(gradients[0])

    _, gradients = regression.loss_and_gradient(ROWS, LABELS, THETAS, MEMBER)
    assert gradients[0] == pytest.approx(optimize.approx_fprime(THETAS[0], loss, 1e-7), abs=1e-5)
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


def test_a_descent_finds_the_optimum_that_scipy_finds() -> None:
    penalty = regression.penalty(np.full(C, 1 / C), N, scaled=True, weighted=True)
    every = np.ones((1, N), dtype=np.bool_)

    def mean(theta: Floats) -> tuple[float, Floats]:
        losses, gradients = regression.loss_and_gradient(ROWS, LABELS, theta[None], every)
        away = theta - penalty[1]
        return float(losses[0] / N + penalty[0] @ away**2 / 2), gradients[0] / N + penalty[0] * away

    expected = optimize.minimize(mean, THETAS[0], jac=True, method="BFGS", options={"gtol": 1e-9})
    # A start far away, with much too little curvature: the first steps must be turned back.
    descent = Descent.from_curvature(5 * THETAS[0], 0.01 * np.eye(len(THETAS[0])), penalty, N)
    assert descent.residual == np.inf
    for _ in range(200):
        losses, gradients = regression.loss_and_gradient(ROWS, LABELS, descent.trial[None], every)
        descent.observe(float(losses[0]), gradients[0])
    assert descent.residual < 1e-8
    assert descent.point == pytest.approx(expected.x, abs=1e-6)
