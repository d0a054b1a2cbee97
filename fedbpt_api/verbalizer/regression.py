"""The multinomial regression behind a verbalizer: parameters, loss, gradient and curvature.

    logits_i = s L_i + Q b + a D_i

L_i [C] are a text's label log-probabilities, less their means where there are scores beside them; D_i [C] its
discriminant scores; and Q [C, C - 1] an orthonormal
basis of the vectors that sum to zero: adding one number to all logits changes nothing, so the penalised
optimum of C biases lies there. Parameters of a model: theta = (s, b, a), p = C + 1 in number.

The penalty on the mean loss of n texts is 0.25/n (s - 1)^2 + 0.0015 |b|^2; with scores, 15/n s^2 + 15/n
|b - c|^2 + 1/n a^2, c the logarithms of the labels' shares: the label words are among those that
discriminants weigh, and discriminants know where labels part, so that little is left for s and b.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg

from fedbpt_api.scoring.backend import Bools, Floats
from fedbpt_api.verbalizer.verbalizer import log_sum

WEAK = 0.003
"""Strength of the penalty that ties the biases to 0 where they are all there is."""

STIFF = 30.0
"""Over n: of those that tie them to the labels' shares, and s to 0, with discriminants beside them."""

SCALE = 0.5
"""Over n: that of s, all but free, as prompts differ in how sure the model is with them."""

TRUST = 2.0
"""Over n: that of a, so that a few texts that all come out right do not make it grow without end."""

Ints = npt.NDArray[np.intp]


def contrasts(labels: int) -> Floats:
    """Q, shape [C, C - 1]."""
    return np.array(linalg.helmert(labels), dtype=np.float64).T


def design(label_rows: Floats, scores: Floats) -> Floats:
    """Derivatives of the logits by the parameters, shape [n, C, p]; the logits are design @ theta.

    Args:
        label_rows: L, shape [n, C].
        scores: D, shape [n, C].
    """
    n, c = label_rows.shape
    biases = np.broadcast_to(contrasts(c), (n, c, c - 1))
    return np.concatenate([label_rows[:, :, None], biases, scores[:, :, None]], axis=2)


def penalty(shares: Floats, n: int, *, scaled: bool, weighted: bool) -> tuple[Floats, Floats]:
    """Penalty of each parameter and the value it pulls to, both of shape [p].

    Args:
        shares: Of the labels among the texts, all positive, shape [C].
        n: Texts of all clients.
        scaled: Whether s is fitted; its penalty is infinite, and it stays 1, where it is not.
        weighted: Whether there are discriminant scores, and a is fitted; else it stays 0.
    """
    labels = len(shares)
    if weighted:
        weight = np.append(np.full(labels, STIFF / n), TRUST / n)
        return weight, np.concatenate([[0.0], contrasts(labels).T @ np.log(shares), [0.0]])
    weight = np.concatenate([[SCALE / n if scaled else np.inf], np.full(labels - 1, WEAK), [np.inf]])
    return weight, np.eye(labels + 1)[0]


def loss_and_gradient(rows: Floats, labels: Ints, theta: Floats) -> tuple[float, Floats]:
    """The summed loss of n texts, and its gradient [p]."""
    errors, losses = _errors(rows, labels, theta)
    return float(losses.sum()), np.array(np.einsum("nc,ncp->p", errors, rows))


def curvature(rows: Floats, theta: Floats) -> Floats:
    """Second derivatives of the summed loss of all texts, shape [p, p]."""
    n, c, p = rows.shape
    shares = np.exp(_logprobs(rows, theta))
    flat = rows.reshape(n * c, p)
    means = (shares[:, :, None] * rows).sum(axis=1)
    result: Floats = (flat * shares.reshape(n * c, 1)).T @ flat - means.T @ means
    return result


def left_out(rows: Floats, labels: Ints, theta: Floats, second: Floats, pull: Floats, free: Bools) -> Floats:
    """Cross-entropy of each text under the model fitted on all texts but it, one Newton step from `theta`.

    With g_i and H_i what the text adds to gradient and curvature of the summed loss, and v the gradient of
    the penalty, the optimum of the others' mean loss and penalty is near

        theta + (A - H_i)^-1 (g_i + v),    A = sum_j H_j + (n - 1) d v / d theta

    (approximate leave-one-out: Rad and Maleki 2020, "A scalable estimate of the out-of-sample prediction
    error via approximate leave-one-out cross-validation").

    Args:
        rows: The design, shape [n, C, p].
        labels: Shape [n].
        theta: The optimum on all texts, of all clients, shape [p].
        second: A, over all of them, shape [p, p]; 1 on the diagonal of parameters that are not fitted.
        pull: v, shape [p].
        free: Which parameters are fitted, shape [p].

    Returns:
        Shape [n].
    """
    errors, _ = _errors(rows, labels, theta)
    shares, inner = errors.copy(), rows * free
    shares[np.arange(len(labels)), labels] += 1.0
    means = np.einsum("nc,ncp->np", shares, inner)
    own = (
        np.einsum("nc,ncp,ncq->npq", shares, inner, inner, optimize=True) - means[:, :, None] * means[:, None]
    )
    slopes = np.einsum("nc,ncp->np", errors, inner) + pull * free
    moved = theta + np.linalg.solve(second - own, slopes[:, :, None])[:, :, 0]
    logits = np.einsum("ncp,np->nc", rows, moved)
    found: Floats = -(logits - log_sum(logits))[np.arange(len(labels)), labels]
    return found


def _errors(rows: Floats, labels: Ints, theta: Floats) -> tuple[Floats, Floats]:
    """Predicted shares less the true ones [n, C], and losses [n]."""
    logprobs, every = _logprobs(rows, theta), np.arange(len(labels))
    errors = np.exp(logprobs)
    errors[every, labels] -= 1.0
    return errors, -logprobs[every, labels]


def _logprobs(rows: Floats, theta: Floats) -> Floats:
    """Label log-probabilities, shape [n, C]."""
    n, c, p = rows.shape
    logits = (theta @ rows.reshape(n * c, p).T).reshape(n, c)
    return np.array(logits - log_sum(logits))
