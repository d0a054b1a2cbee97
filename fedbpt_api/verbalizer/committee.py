"""Prompts that answer together: each is read by a verbalizer of its own, and the readings are averaged.

With R_p(x) the label logits that p's verbalizer reads for a text x asked with prompt p, a set S says
softmax( mean over S of R_p(x) ): a geometric mean of its members' readings, a product of experts of equal
weights (Hinton 2002). One verbalizer for the mean of their log-probabilities reads less where prompts call
forth different words (benchmarks/limits.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fedbpt_api.scoring.backend import Bools, Floats
from fedbpt_api.scoring.losses import Labels, cross_entropy
from fedbpt_api.verbalizer.verbalizer import Kind, Verbalizer, log_sum


@dataclass(frozen=True, slots=True)
class Committee:
    """Verbalizers of two prompts or more, in the prompts' order; label logits are the mean of theirs.

    Raises:
        ValueError: There are fewer, or they read other words, or other labels.
    """

    members: tuple[Verbalizer, ...]

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError("a committee needs two members or more")
        if len({(member.words, member.groups) for member in self.members}) > 1:
            raise ValueError("a committee's members must read the same words for the same labels")

    @property
    def words(self) -> tuple[int, ...]:
        """Token ids of the T words."""
        return self.members[0].words

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """For each label the columns of its words."""
        return self.members[0].groups

    @property
    def kind(self) -> Kind:
        """That of the member that reads most."""
        kinds: tuple[Kind, ...] = ("weighted", "bias", "words")
        return next(kind for kind in kinds if any(member.kind == kind for member in self.members))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {"members": [member.to_dict() for member in self.members]}


Reading: TypeAlias = Verbalizer | Committee
"""How a prompt, or several that answer together, are read."""


def reading_from_dict(data: Mapping[str, Any]) -> Reading:
    """Read what a verbalizer's or a committee's `to_dict` wrote.

    Raises:
        KeyError, TypeError, ValueError: `data` is something else.
    """
    if "members" in data:
        return Committee(tuple(Verbalizer.from_dict(member) for member in data["members"]))
    return Verbalizer.from_dict(data)


def verbalizers_of(reading: Reading) -> tuple[Verbalizer, ...]:
    """The members of a committee, or the one verbalizer."""
    return reading.members if isinstance(reading, Committee) else (reading,)


def together(verbalizers: Sequence[Verbalizer]) -> Reading:
    """A committee of these; one alone is itself."""
    return Committee(tuple(verbalizers)) if len(verbalizers) > 1 else verbalizers[0]


def alone(reading: Reading) -> Verbalizer:
    """A single prompt's verbalizer.

    Raises:
        ValueError: It is a committee.
    """
    if isinstance(reading, Committee):
        raise ValueError("prompts that answer together have a verbalizer each")
    return reading


def label_logits(reading: Reading, answers: Sequence[tuple[Floats, Bools]]) -> Floats:
    """Unnormalised label log-probabilities of n texts, from what each of M prompts answered.

    A committee reads each prompt by the prompt's own verbalizer; a single verbalizer reads the mean of all
    prompts' log-probabilities, as with noise, on servers that lack words, and in earlier versions.

    Args:
        reading: A committee of M, or a verbalizer.
        answers: For each prompt log-probabilities and where they are exact, shape [n, T] each.

    Returns:
        Shape [n, C].

    Raises:
        ValueError: A committee of other than M members.
    """
    if isinstance(reading, Committee):
        logits = [member.logits(*own) for member, own in zip(reading.members, answers, strict=True)]
        return np.asarray(np.mean(logits, axis=0))
    logprobs = np.mean([rows for rows, _ in answers], axis=0)
    return reading.logits(logprobs, np.all([exact for _, exact in answers], axis=0))


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
