"""Clipping before the merge: no client moves the mean much further, or counts for much more, than others.

Norm clipping (Z. Sun, P. Kairouz, A. T. Suresh, H. B. McMahan, "Can you really backdoor federated learning?",
2019, arXiv 1911.07963, section 4) of each client's step from the broadcast mean, with a bound that follows
the round: a multiple of the median norm, which less than half of the clients cannot move far. (Centered
clipping, S. P. Karimireddy, L. He, M. Jaggi 2021, arXiv 2012.10333, iterates around the clipped mean; a round
starts at its own centre.) Step sizes and claimed numbers of texts have such bounds too. Clients within them
stay as they are, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from fedbpt_api.aggregate.state import Floats, GlobalState, Update

MULTIPLE: Final = 3.0
"""Of the median, for norms and step sizes. In 20 dimensions honest ones lie within twice the median."""

MOST_TEXTS: Final = 10.0
"""Of the median number of texts."""


def clipped(state: GlobalState, updates: Sequence[Update], multiple: float = MULTIPLE) -> tuple[Update, ...]:
    """The updates with what stands out cut back; those that do not stand out are the same objects.

    Args:
        state: The state that the searches started from.
        updates: Usable ones (`check_updates`), in any order.
        multiple: Of the median, for norms and step sizes.
    """
    if len(updates) < 2:
        return tuple(updates)
    means = np.array([update.mean for update in updates])
    means -= state.mean
    factors = shrinkage(np.sqrt(np.einsum("kd,kd->k", means, means)), multiple)
    widest = multiple * float(np.median([update.step_sizes[-1] for update in updates]))
    most = MOST_TEXTS * float(np.median([update.n for update in updates]))
    found = list(updates)
    for place, update in enumerate(updates):
        if factors[place] < 1:
            found[place] = replace(found[place], mean=state.mean + factors[place] * means[place])
        if max(update.step_sizes) > widest:
            sizes = tuple(min(size, widest) for size in update.step_sizes)
            found[place] = replace(found[place], step_sizes=sizes)
        if update.n > most:
            found[place] = replace(found[place], n=max(1, int(most)))
    return tuple(found)


def shrinkage(norms: npt.ArrayLike, multiple: float = MULTIPLE) -> Floats:
    """What each of K vectors is multiplied by so that none is longer than a multiple of the median norm.

    Exactly 1 for those that are not, and for all where the median is 0. Shapes [K].
    """
    lengths = np.asarray(norms, dtype=np.float64)
    bound = multiple * float(np.median(lengths))
    if bound == 0:
        return np.ones_like(lengths)
    return np.array(bound / np.maximum(lengths, bound))


def without_outliers(rows: Floats, counts: npt.ArrayLike, multiple: float = MULTIPLE) -> Floats:
    """What to add to a sum over clients so that no client is far from the rest: exactly 0 if none is.

    A client's values a text are clipped to within a multiple of the median distance from the clients' median.

    Args:
        rows: What each client tells, summed over its texts, shape [K, S].
        counts: Its texts, all above 0, shape [K].
        multiple: Of the median distance (Euclidean, over the S values).

    Returns:
        Shape [S]; 0 for fewer than 4 clients, of whom none can be told to be the odd one.
    """
    if len(rows) < 4:
        return np.zeros(rows.shape[1])
    n = np.asarray(counts, dtype=np.float64)[:, None]
    each = rows / n
    away = each - np.median(each, axis=0)
    factors = shrinkage(np.sqrt(np.einsum("ks,ks->k", away, away)), multiple)
    out = factors < 1
    return np.array(((factors[out, None] - 1) * away[out] * n[out]).sum(axis=0))
