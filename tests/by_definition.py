"""Discriminants from their definition: each text's own from all the others."""

from __future__ import annotations

import numpy as np

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer.regression import Ints


def covariance(rows: Floats, truth: Ints, means: Floats) -> Floats:
    off = rows - means[truth]
    return np.array(off.T @ off / len(rows))


def label_means(rows: Floats, truth: Ints, labels: int) -> Floats:
    """NaN for a label without texts."""
    with np.errstate(invalid="ignore"):
        return np.array([rows[truth == c].sum(axis=0) / np.sum(truth == c) for c in range(labels)])


def discriminants(
    rows: Floats, truth: Ints, strength: float, labels: int = 3
) -> tuple[Floats, Floats, Floats]:
    """Directions [C, T] and offsets [C] of all texts, and the scores [n, C] of each text without it."""
    n, width = rows.shape
    means, middle = label_means(rows, truth, labels), rows.mean(axis=0)
    within = covariance(rows, truth, means)
    ridge = strength * np.trace(within) / width * np.eye(width)
    apart = np.nan_to_num(means - middle)
    found = apart @ np.linalg.inv((1 - strength) * within + ridge)
    unit = np.sqrt(np.mean([w @ within @ w for w in found]))
    offsets = np.array([a @ w / 2 / unit for a, w in zip(apart, found, strict=True)])
    scores = []
    for i in range(n):
        rest, others = np.delete(rows, i, axis=0), np.delete(truth, i)
        left = label_means(rest, others, labels)
        kept = np.nan_to_num(left)[others]
        cov = (rest - kept).T @ (rest - kept) / (n - 1)
        weights = np.nan_to_num(left - middle) @ np.linalg.inv((1 - strength) * cov + ridge)
        scores.append(weights @ (rows[i] - middle) / unit - offsets)
    return found / unit, offsets, np.array(scores)
