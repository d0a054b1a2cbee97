"""What is promised of noise, and what it takes: (epsilon, delta)-differential privacy, Gaussian mechanism.

Neighbours differ in one text of a party ("text": another text with the same label in its place), or in all
texts of a party ("party"); how many texts a party has, and of each label, is told in the open. Every answer
about texts of a part (train, dev, test) is one release: a vector with noise of `multiplier` times its
sensitivity. K releases compose, adaptively chosen as they are, to one Gaussian mechanism with sqrt(K) times
the sensitivity. As no text is in two parts, with "text" each part has the whole (epsilon, delta) for itself
(parallel composition). With "party" the texts of all parts change together, so K counts the releases from all
of them, and there is one epsilon.

J. Dong, A. Roth, W. Su, "Gaussian differential privacy" (arXiv 1905.02383), corollary 2.13, and B. Balle,
Y. Wang (arXiv 1805.06083), theorem 8, for the multiplier; what was spent is counted independently by the
accountant of `dp_accounting` (privacy loss distributions, Google).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal

from fedbpt_api.errors import ConfigError

Unit = Literal["text", "party"]
Part = Literal["train", "dev", "test"]
PARTS: Final[tuple[Part, ...]] = ("train", "dev", "test")

_GRID = 1e-3  # steps in which privacy losses are counted
_LARGEST = 1e4  # multiplier; beyond, an answer is nothing but noise


@dataclass(frozen=True, slots=True)
class Promise:
    """What a party's texts are protected by.

    Attributes:
        unit: What may differ without being told.
        epsilon: Largest epsilon: of each part where the unit is a text, of all together where it is a party.
        delta: Its delta.
        releases: Most releases from each part.
        clip_loss: Nats at which a text's loss is clipped.
        clip_logits: Length at which a text's centred label log-probabilities are clipped.
        clip_mean: Length at which a search's displacement is clipped, in first step sizes times sqrt(d).
    """

    unit: Unit
    epsilon: float
    delta: float
    releases: Mapping[Part, int]
    clip_loss: float
    clip_logits: float
    clip_mean: float

    @property
    def joint(self) -> bool:
        """Whether releases from all parts are one mechanism, as texts of all parts may change together."""
        return self.unit == "party"

    def to_dict(self) -> dict[str, object]:
        """All of it, as plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "releases": dict(self.releases)
        }

    def multiplier(self, part: Part) -> float:
        """Standard deviation of the noise over the sensitivity, for each release from a part.

        Raises:
            ConfigError: The promise cannot be kept by any noise that leaves something to see.
        """
        count = sum(self.releases.values()) if self.joint else self.releases[part]
        found = math.sqrt(count) / strength(self.epsilon, self.delta)
        if found > _LARGEST:
            raise ConfigError(
                f"privacy.epsilon: {self.epsilon:g} would take noise {found:,.0f} times as large as what is "
                f"answered, {count} times over",
                "allow more, or judge fewer prompts (privacy.prompts)",
            )
        return found

    def spent(self, made: Mapping[Part, int]) -> dict[tuple[Part, ...], float]:
        """Epsilon of so many releases from each part, at the promised delta.

        Returns:
            For each set of parts that answers were given from, what they add up to: one for all of them where
            they are joint.
        """
        together = [PARTS] if self.joint else [(part,) for part in PARTS]
        counts = {parts: sum(made.get(part, 0) for part in parts) for parts in together}
        return {
            parts: epsilon_of(self.multiplier(parts[0]), count, self.delta)
            for parts, count in counts.items()
            if count
        }


def delta_of(epsilon: float, mu: float) -> float:
    """Delta of a Gaussian mechanism with sensitivity over noise `mu` (Balle and Wang, theorem 8)."""
    return _below(mu / 2 - epsilon / mu) - math.exp(epsilon + _log_below(-mu / 2 - epsilon / mu))


def strength(epsilon: float, delta: float) -> float:
    """The largest mu whose delta at `epsilon` is no larger than `delta`, by bisection."""
    low, high = 0.0, 1.0
    while delta_of(epsilon, high) < delta:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(epsilon, middle) <= delta else (low, middle)
    return low


def epsilon_of(multiplier: float, count: int, delta: float) -> float:
    """Epsilon of `count` releases with noise of `multiplier` sensitivities, by `dp_accounting`.

    Raises:
        ConfigError: The accountant is not installed.
    """
    if not count:
        return 0.0
    try:
        import dp_accounting
        from dp_accounting.pld import PLDAccountant
    except ImportError as error:
        raise ConfigError(
            "privacy.mode: 'gaussian' needs dp-accounting", "pip install 'fedbpt-api[privacy]'"
        ) from error
    accountant = PLDAccountant(value_discretization_interval=_GRID)  # rounded up, by less than is shown
    accountant.compose(dp_accounting.GaussianDpEvent(multiplier), count)
    return float(accountant.get_epsilon(delta))


def _below(x: float) -> float:
    """The standard normal distribution function."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _log_below(x: float) -> float:
    """Its logarithm, also far out, where it is e^(-x^2 / 2) / (-x sqrt(2 pi)) (1 - 1 / x^2 ...)."""
    if x > -30:
        return math.log(_below(x))
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-1 / x**2)
