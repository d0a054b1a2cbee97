"""Updates that arrive after their round, as updates of the present one.

J. Nguyen et al., "Federated learning with buffered asynchronous aggregation" (FedBuff, AISTATS 2022, arXiv
2106.06639), section 5: an update that the server's state has moved on from by t steps counts s(t) times,

    s(t) = 1 / sqrt(1 + t),        x = m_now + s(t) (x_k - m_sent),

where x_k is the mean that the client's search came to, m_sent the mean that it began from and m_now the one
that this round's searches began from. Loss and step sizes stay as they are: they tell how good the search was
and how far it looked, which no merge in between has changed.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fedbpt_api.aggregate.state import GlobalState, Update, check_updates


def discount(staleness: int) -> float:
    """s(t), for an update that is t = `staleness` rounds old.

    Raises:
        ValueError: It is from a coming round.
    """
    if staleness < 0:
        raise ValueError(f"an update cannot be {staleness} rounds old")
    return 1 / math.sqrt(1 + staleness)


def rebased(update: Update, sent: GlobalState, now: GlobalState) -> Update:
    """A late update as one that answers `now`.

    Args:
        update: It; it answers `sent`.
        sent: The state that its search began from.
        now: The state that it is to be merged into.

    Raises:
        UpdateError: It does not answer `sent`, or is not usable.
    """
    check_updates(sent, [update])
    share = discount(now.round - sent.round)
    moved = replace(update, round=now.round, mean=now.mean + share * (update.mean - sent.mean))
    check_updates(now, [moved])
    return moved
