"""How near what a few prompts say comes to what all prompts say together, and to the labels.

With R_p(x) the label log-probabilities that are read for a text x asked with prompt p, and shares v_p that
sum to 1, the target is

    t(x) = (1 - trust) softmax( sum over all p of v_p R_p(x) ) + trust e_y(x),

and the distance of a set S of prompts is the cross-entropy of t and softmax( mean over S of R_p ):
distillation (Hinton et al. 2015, arXiv 1503.02531) of a committee into few members. The shares follow from
how well each prompt reads the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.losses import Labels
from fedbpt_api.verbalizer.verbalizer import log_sum


def shares(losses: Floats, labels: int, power: float = 2.0) -> Floats:
    """v, what each prompt counts for in the committee: max(0, log C - l_p)^power, over its sum.

    log C - l_p is what an answer tells of a text's label, in nats, against even odds: prompts that all tell
    something count nearly alike, one that tells nothing beside others that do does not count.

    Args:
        losses: l, cross-entropies with the labels in nats a text, shape [P].
        labels: How many labels there are, C.
        power: 0 lets all count alike.

    Returns:
        Shape [P]; all alike where no prompt tells anything.
    """
    found = np.maximum(0.0, np.log(labels) - losses) ** power
    return np.asarray(found / found.sum()) if found.sum() > 0 else np.full(len(losses), 1 / len(losses))


def distances(
    rows: Floats, labels: Labels, sets: Sequence[Sequence[int]], trust: float, shares: Floats
) -> Floats:
    """The distance of each set, in nats, summed over n texts.

    Args:
        rows: R, label logits or log-probabilities of P prompts, shape [P, n, C].
        labels: The texts' labels y, shape [n].
        sets: Places of prompts in `rows`.
        trust: Weight of the labels in the target, 0 to 1.
        shares: v, what each prompt counts for in the committee, shape [P].

    Returns:
        Shape [len(sets)].
    """
    rows = rows - log_sum(rows)
    committee = np.tensordot(shares, rows, 1)
    target = (1 - trust) * np.exp(committee - log_sum(committee))
    target[np.arange(len(labels)), labels] += trust
    together = np.array([rows[list(places)].mean(axis=0) for places in sets])
    found: Floats = -(target * (together - log_sum(together))).sum(axis=(1, 2))
    return found
