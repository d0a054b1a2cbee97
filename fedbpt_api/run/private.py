"""The modes of `privacy` in a run: what is promised for its settings, what was spent, in words for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from fedbpt_api.federation.party import Party
from fedbpt_api.federation.promise import PARTS, Part, Promise
from fedbpt_api.federation.remote import RemoteParty
from fedbpt_api.run.schema import Settings
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer import Verbalizer

_UNITS: Final = {"text": "one text of a party", "party": "all texts of a party together"}
_SPREAD = 1.0  # nats, of biases over prompts and labels
_NAMES: Final[Mapping[Part, str]] = {"train": "training", "dev": "development", "test": "test"}


def promise_of(settings: Settings) -> Promise:
    """What noise is to protect.

    A judged prompt is two releases from training texts (label sums, loss) and one from development texts; a
    round's search is one from training texts. One prompt more may be judged: those that answer together.
    """
    private = settings.privacy
    judged = private.prompts + 1
    rounds = settings.search.rounds or 0
    return Promise(
        unit=private.unit,
        epsilon=private.epsilon,
        delta=private.delta,
        releases={"train": 2 * judged + rounds, "dev": judged, "test": 1},
        clip_loss=private.clip_loss,
        clip_logits=private.clip_logits,
        clip_mean=private.clip_mean,
    )


def matched(
    sums: Floats,
    counts: Floats,
    words: Sequence[int],
    groups: Sequence[Sequence[int]],
    noise: float = 0.0,
) -> Verbalizer:
    """A bias from sums alone: mean logits become the logarithms of the labels' shares.

    The closed form that needs one release where a regression needs one an exchange; with equal shares it is
    batch calibration (H. Zhou et al., arXiv 2309.17249, equation 3).

    Args:
        sums: Centred label log-probabilities summed over texts, shape [C].
        counts: Texts of each label, shape [C].
        words: The T words, label words first.
        groups: For each label the columns of its words.
        noise: Standard deviation of the noise in a mean logit; the more, the nearer the bias is to none, as
            the mean of its posterior is where a bias has a spread of `_SPREAD` before anything is known.
    """
    shares = (counts + 0.5) / (counts.sum() + len(counts) / 2)
    kept = _SPREAD**2 / (_SPREAD**2 + noise**2)
    bias = kept * (np.log(shares) - sums / max(counts.sum(), 1.0))
    return Verbalizer.from_bias(words, groups, 1.0, bias - bias.mean())


def noise_of_logits(settings: Settings, texts: Sequence[int]) -> float:
    """Standard deviation of what noise adds to a mean logit, in nats; `texts` are parties' training texts."""
    promise = promise_of(settings)
    units = [1 if promise.unit == "text" else n for n in texts]
    noise = promise.multiplier("train") * 2 * promise.clip_logits * math.sqrt(sum(unit**2 for unit in units))
    return noise / max(1, sum(texts))


def hidden_by_noise(settings: Settings, texts: Sequence[tuple[int, int]]) -> float:
    """Standard deviation of what noise adds to a prompt's mean loss, in nats a text.

    Args:
        settings: The run's.
        texts: Each party's numbers of training and of development texts.
    """
    promise = promise_of(settings)
    variance = 0.0
    for part, n in ((part, n) for own in texts for part, n in zip(PARTS, own, strict=False) if n):
        unit = 1 if promise.unit == "text" else n
        variance += (promise.multiplier(part) * promise.clip_loss * unit) ** 2
    return math.sqrt(variance) / max(1, sum(map(sum, texts)))


def released(settings: Settings, parties: Sequence[Party]) -> dict[Part, int]:
    """Answers with noise from each part, of the party that has given most of them.

    Parties count them themselves: answers that were lost, or of no use, are among them. None gives more than
    were planned, whatever it says.
    """
    planned = promise_of(settings).releases
    told = [party.channel.account.released for party in parties if isinstance(party, RemoteParty)]
    most = {part: max((counts.get(part, 0) for counts in told), default=0) for part in PARTS}
    return {part: min(count, planned[part]) for part, count in most.items()}


def told(settings: Settings, parties: int, made: Mapping[Part, int] | None = None) -> str:
    """What is promised or, once `made` is known, was spent; empty where nothing is.

    Raises:
        ConfigError: The promise cannot be kept, or its accountant is not installed.
    """
    if settings.privacy.mode == "sums":
        return f"The server saw sums over all {parties} parties, and no party's own numbers."
    if settings.privacy.mode != "gaussian":
        return ""
    promise = promise_of(settings)
    counts = promise.releases if made is None else made
    spent = promise.spent(counts)
    parts = ", ".join(
        f"{epsilon:.2f} for {_named(names)} in {_answers(sum(counts.get(name, 0) for name in names))}"
        for names, epsilon in spent.items()
    )
    return (
        f"Differential privacy of {_UNITS[promise.unit]}: epsilon {parts or '0'}; "
        f"at most {promise.epsilon:g} was promised, delta {promise.delta:g}. "
        "Numbers of texts, of labels and of tokens are not covered."
    )


def _named(parts: Sequence[Part]) -> str:
    *before, last = (_NAMES[part] for part in parts)
    return f"{', '.join(before)} and {last} texts together" if before else f"{last} texts"


def _answers(count: int) -> str:
    return f"{count} answer{'s' * (count > 1)}"
