"""What is known of a prompt once it has been judged, and how two of them compare."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from fedbpt_api.aggregate.clipping import without_outliers
from fedbpt_api.federation.tally import Sums
from fedbpt_api.prompts.space import Asked
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer import Reading

SPREAD = 0.3  # typical standard deviation of two prompts' difference in loss on a text, in nats
_ODD = 8.0  # times the median distance from the median: about five standard deviations


@dataclass(frozen=True, slots=True)
class Assessment:
    """A prompt with its fitted verbalizer and what it reached on texts that the fit did not see.

    Attributes:
        prompt: The prompt: token ids, vectors, or several that answer together.
        text: The prompt as text; of a continuous one, the text that its vectors started from.
        verbalizer: Fitted on the training texts of all clients that answered; of several prompts a committee.
        train: For each client the cross-entropy of its training texts, held out by cross-validation; of
            several prompts as one verbalizer for their mean reads them, hardly ever better than a committee.
        dev: For each client the sums over its development texts; empty where the training texts alone
            ruled the prompt out.
        floor: `train` of the centre that the prompt was searched from; empty where it was not.
        z: Where a continuous prompt lies in its space.
        repeated: Whether its development texts were scored twice, on a noisy server.
        fixed: Whether its verbalizer was given, and is not fitted anew.
    """

    prompt: Asked
    text: str
    verbalizer: Reading
    train: Mapping[str, Sums]
    dev: Mapping[str, Sums]
    floor: Mapping[str, Sums]
    z: Floats | None = None
    repeated: bool = False
    fixed: bool = False

    @property
    def clients(self) -> frozenset[str]:
        """Who answered for all its texts."""
        return frozenset(self.train) & frozenset(self.dev)

    @property
    def train_loss(self) -> float:
        return total(self.train).mean_loss

    @property
    def dev_sums(self) -> Sums:
        """Over the development texts of all clients."""
        return total(self.dev)

    @property
    def loss(self) -> float:
        """The number that chooses, over all clients that answered; infinite where it was ruled out."""
        return self.loss_on(self.clients)

    def loss_on(self, names: Collection[str]) -> float:
        """Mean held-out loss over some clients' training and development texts together.

        Training texts that a prompt was searched for on count as the search's centre did, or worse;
        unless there are no others.
        """
        train, dev, floor = (total(part, names) for part in (self.train, self.dev, self.floor))
        if not train.n:
            return math.inf
        counted = max(train.mean_loss, floor.mean_loss) if floor.n and dev.n else train.mean_loss
        return (train.n * counted + dev.loss) / (train.n + dev.n)

    def beats(self, other: Assessment, errors: float = 0.0) -> bool:
        """Whether its loss is smaller on the clients that answered for both, by so many standard errors."""
        common = self.clients & other.clients
        n = total(self.train, common).n + total(self.dev, common).n
        odd = beyond(self._told(common), other._told(common))
        return self.loss_on(common) + odd < other.loss_on(common) - errors * SPREAD / math.sqrt(max(n, 1))

    def _told(self, names: Collection[str]) -> dict[str, Sums]:
        """By client, the sums that `loss_on` is the mean of."""
        train, dev, floor = (total(part, names) for part in (self.train, self.dev, self.floor))
        searched = floor.n and dev.n and floor.mean_loss > train.mean_loss
        counted = self.floor if searched else self.train
        return {name: counted.get(name, Sums()) + self.dev.get(name, Sums()) for name in names}

    @property
    def scores(self) -> dict[str, float]:
        """What goes into the artefact."""
        scores = {"held_out_loss": self.loss}
        dev = self.dev_sums
        if dev.n:
            scores["dev_loss"] = dev.mean_loss
        if dev.n and dev.correct is not None:
            scores["dev_accuracy"] = dev.accuracy
        return scores


def beyond(new: Mapping[str, Sums], old: Mapping[str, Sums]) -> float:
    """What to add to a difference of two mean losses so that no client's share stands out; 0 if none does.

    A client that claims what it likes for its favourite prompt, or against another, counts as the most
    extreme honest one would.
    """
    names = [name for name in sorted(new) if new[name].n and old[name].n]
    if not names:
        return 0.0
    counts = np.array([new[name].n for name in names])
    rows = np.array([[new[name].loss - old[name].mean_loss * new[name].n] for name in names])
    return float(without_outliers(rows, counts, _ODD)[0] / counts.sum())


def total(sums: Mapping[str, Sums], names: Collection[str] | None = None) -> Sums:
    """Over all clients, or those named; in the order of their names."""
    return sum((sums[name] for name in sorted(sums) if names is None or name in names), Sums())
