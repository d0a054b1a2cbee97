"""When more candidates bring nothing: what the best of more is expected to gain over the best so far.

Of the variance v of k candidates' mean losses, w = s^2 / 2n is the luck of n texts, with s the standard
deviation of two candidates' difference in loss on a text. Were all normal, a candidate that looks better than
the mean by z sqrt(v) is better by z (v - w) / sqrt(v): the rest is regression to the mean. So the best of K
is expected to gain on the best of k

    (e_K - e_k) (v - w) / sqrt(v),    e_k = Phi^-1( (k - 3/8) / (k + 1/4) ),

with e_k the expected greatest of k standard normals (Blom 1958, "Statistical estimates and transformed
beta-variables"). benchmarks/stopping.py plays it on prompts that were scored.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from fedbpt_api.scoring.backend import Floats


def expected_gain(losses: Floats, n: int, more: int, spread: float) -> float:
    """Nats a text by which `more` candidates are expected to lower the loss.

    Args:
        losses: Mean losses of k candidates on the same n texts, in nats, shape [k]; at least 2.
        n: Texts.
        more: K - k, how many can be judged yet.
        spread: s, in nats.

    Raises:
        ValueError: Fewer than two losses, or no text.
    """
    k = len(losses)
    if k < 2 or n < 1:
        raise ValueError(f"expected two losses or more, of one text or more; got {k}, of {n}")
    v = float(np.var(losses, ddof=1))
    real = max(0.0, v - spread**2 / (2 * n))
    return (greatest(k + more) - greatest(k)) * real / np.sqrt(v) if real else 0.0


def greatest(k: int) -> float:
    """The expected greatest of k standard normals."""
    return NormalDist().inv_cdf((k - 0.375) / (k + 0.25))
