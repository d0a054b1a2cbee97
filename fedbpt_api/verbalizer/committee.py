"""How well sets of prompts read texts together: each set's cross-entropy, from what its members read.

With R_p(x) the label logits that are read for a text x asked with prompt p, a set S says
softmax( mean over S of R_p(x) ): a geometric mean of its members' answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.losses import Labels, cross_entropy
from fedbpt_api.verbalizer.verbalizer import log_sum


def joint_losses(rows: Floats, labels: Labels, sets: Sequence[Sequence[int]]) -> Floats:
    """The loss of each set, in nats, summed over n texts.

    Args:
        rows: R, label logits or log-probabilities of P prompts, shape [P, n, C].
        labels: The texts' labels, shape [n].
        sets: Places of prompts in `rows`.

    Returns:
        Shape [len(sets)].
    """
    rows = rows - log_sum(rows)
    return np.array([cross_entropy(rows[list(places)].mean(axis=0), labels).sum() for places in sets])
