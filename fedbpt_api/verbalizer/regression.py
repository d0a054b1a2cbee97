"""The multinomial regression behind a verbalizer: parameters, loss, gradient and curvature.

    logits_i = s * L_i + Q . U . (1, z_i)

L_i [C] are a text's label log-probabilities, z_i [r] its components, and Q [C, C - 1] an orthonormal basis
of the vectors that sum to zero: adding one number to all logits changes nothing, so the penalised optimum
of C biases and C weights a component lies there. Parameters of a model: theta = (s, U row by row), p in
number; U[:, 0] are the biases. A model without components has C parameters, the same ones.

The penalty on the mean loss is strength/2 * |weights|^2 + 0.003/2 * |biases|^2 + scale/2 * (s - 1)^2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg

from fedbpt_api.scoring.backend import Bools, Floats
from fedbpt_api.verbalizer.verbalizer import log_sum

WEAK = 0.003
"""Strength of the penalty that ties the biases to 0."""

Ints = npt.NDArray[np.intp]


def size(labels: int, components: int) -> int:
    """Number of parameters p."""
    return 1 + (labels - 1) * (1 + components)


def contrasts(labels: int) -> Floats:
    """Q, shape [C, C - 1]."""
    return np.array(linalg.helmert(labels), dtype=np.float64).T


def design(label_rows: Floats, components: Floats) -> Floats:
    """Derivatives of the logits by the parameters, shape [n, C, p]; the logits are design @ theta."""
    n, c = label_rows.shape
    ones = np.concatenate([np.ones((n, 1)), components], axis=1)
    slopes = contrasts(c)[None, :, :, None] * ones[:, None, None, :]
    return np.concatenate([label_rows[:, :, None], slopes.reshape(n, c, (c - 1) * ones.shape[1])], axis=2)


def bias_columns(labels: int, parameters: int) -> Ints:
    """Which of p parameters are the scale and the biases, shape [C]."""
    return np.concatenate([[0], np.arange(1, parameters, (parameters - 1) // (labels - 1))]).astype(np.intp)


def widen(theta: Floats, labels: int, parameters: int) -> Floats:
    """A model without components as one of p parameters; others are returned as they are."""
    if len(theta) == parameters:
        return theta
    wide = np.zeros(parameters)
    wide[bias_columns(labels, parameters)] = theta
    return wide


def penalty(labels: int, parameters: int, strength: float, scale: float) -> tuple[Floats, Floats]:
    """Penalty of each parameter and the value it pulls to, both of shape [p].

    Args:
        labels: C.
        parameters: p.
        strength: Of the weights' penalty.
        scale: Of the scale's penalty; infinite where the scale is not fitted and stays 1.
    """
    weight = np.full(parameters, strength)
    weight[bias_columns(labels, parameters)] = WEAK
    weight[0] = scale
    prior = np.zeros(parameters)
    prior[0] = 1.0
    return weight, prior


def text_losses(rows: Floats, labels: Ints, thetas: Floats) -> Floats:
    """Cross-entropy of n texts under M models.

    Args:
        rows: The design, shape [n, C, p].
        labels: Shape [n].
        thetas: Shape [M, p].

    Returns:
        Shape [M, n].
    """
    return -_logprobs(rows, thetas)[:, np.arange(len(labels)), labels]


def loss_and_gradient(rows: Floats, labels: Ints, thetas: Floats, member: Bools) -> tuple[Floats, Floats]:
    """Sums of losses [M] and of their gradients [M, p] over the texts that belong to each model.

    Args:
        rows: The design, shape [n, C, p].
        labels: Shape [n].
        thetas: Shape [M, p].
        member: Which texts a model is trained on, shape [M, n].
    """
    n, c, p = rows.shape
    logprobs = _logprobs(rows, thetas)
    every = np.arange(n)
    losses = -(logprobs[:, every, labels] * member).sum(axis=1)
    errors = np.exp(logprobs)
    errors[:, every, labels] -= 1.0
    errors *= member[:, :, None]
    return losses, errors.reshape(len(thetas), n * c) @ rows.reshape(n * c, p)


def curvature(rows: Floats, theta: Floats) -> Floats:
    """Second derivatives of the summed loss of all texts, shape [p, p]."""
    n, c, p = rows.shape
    shares = np.exp(_logprobs(rows, theta[None]))[0]
    flat = rows.reshape(n * c, p)
    means = (shares[:, :, None] * rows).sum(axis=1)
    result: Floats = (flat * shares.reshape(n * c, 1)).T @ flat - means.T @ means
    return result


def _logprobs(rows: Floats, thetas: Floats) -> Floats:
    """Label log-probabilities, shape [M, n, C]."""
    n, c, p = rows.shape
    logits = (thetas @ rows.reshape(n * c, p).T).reshape(len(thetas), n, c)
    return logits - log_sum(logits)
