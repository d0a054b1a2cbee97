"""How the clients' searches become one: `merge(state, updates) -> state`, one rule a file.

Everything here is pure: no clock, no input or output, no randomness, and the order in which updates
arrive does not matter.
"""

from fedbpt_api.aggregate.clipping import clipped
from fedbpt_api.aggregate.fedavg import FedAvg
from fedbpt_api.aggregate.fedbpt import FedBPT, SigmaRule
from fedbpt_api.aggregate.late import discount, rebased
from fedbpt_api.aggregate.robust import Median, Trimmed
from fedbpt_api.aggregate.state import Aggregator, GlobalState, Update, UpdateError, check_updates

__all__ = [
    "Aggregator",
    "FedAvg",
    "FedBPT",
    "GlobalState",
    "Median",
    "SigmaRule",
    "Trimmed",
    "Update",
    "UpdateError",
    "check_updates",
    "clipped",
    "discount",
    "rebased",
]
