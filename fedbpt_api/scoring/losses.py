"""What a search minimises: losses of label log-probabilities, one number a text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedbpt_api.scoring.backend import Floats

Labels = npt.NDArray[np.intp]
Loss = Callable[[Floats, Labels], Floats]


def cross_entropy(logits: Floats, labels: Labels) -> Floats:
    """-log p(y | x) for logits [n, C], labels [n]; shape [n]."""
    top = logits.max(axis=1)
    losses: Floats = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    return np.asarray(losses - logits[np.arange(len(labels)), labels])


def hinge(logits: Floats, labels: Labels, margin: float = 2.0) -> Floats:
    """Sum over c != y of max(0, logit_c - logit_y + margin) (BBT, arXiv 2201.03514); shape [n]."""
    rows = np.arange(len(labels))
    gaps: Floats = np.maximum(0.0, logits - logits[rows, labels][:, None] + margin)
    gaps[rows, labels] = 0.0
    return np.asarray(gaps.sum(axis=1))


def errors(logits: Floats, labels: Labels) -> Floats:
    """1 where the most probable label is wrong, else 0 (minus accuracy, in the mean); shape [n]."""
    return np.asarray(logits.argmax(axis=1) != labels, dtype=np.float64)


def named(loss: str, margin: float = 2.0) -> Loss:
    """The loss with the config's name."""
    if loss == "hinge":
        return lambda logits, labels: hinge(logits, labels, margin)
    return {"cross-entropy": cross_entropy, "accuracy": errors}[loss]
