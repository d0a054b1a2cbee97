"""Examples that the model writes itself: for a label, a line that could stand in the text's place.

A language model reads a task off examples, but the clients' own texts must not travel. So the model is asked
to write some: the user's prompt, which names the domain, then the template turned round, label first
("Sentiment: negative", then "Review:"), and continued word by word. Not a word of the clients takes part.
(Self-generated in-context learning, Kim et al. 2022, arXiv 2206.08082; there with a large model's help, here
from lists of probable words, one call a token.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedbpt_api.prompts.space import Ids

CHOICES = 60
"""Most probable tokens from which the next one is drawn."""

SHORTEST = 3
"""Tokens that a line has at least; shorter ones are of no use."""

_TEMPERATURE = 0.8
LONGEST = 20
"""Tokens that a line has at most."""


@dataclass(frozen=True, slots=True)
class Job:
    """One line to be written.

    Attributes:
        label: Which label it is for.
        lead: Token ids that the model continues: the user's prompt, the label, the template before a text.
        before: Ids before the line where it stands as an example.
        after: Ids after it, the label word left out.
        seed: Of the draw.
    """

    label: int
    lead: Ids
    before: Ids
    after: Ids
    seed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A written line.

    Attributes:
        label: Which label it was written for.
        ids: Its token ids.
        confidence: Log-probability of that label when the model reads the line, in nats.
    """

    label: int
    ids: Ids
    confidence: float


def in_turn(jobs: Sequence[Job]) -> list[Job]:
    """The first line of every label, then the second of every one: an end in between is no label's alone."""
    return sorted(jobs, key=lambda job: (job.seed[-1:], job.label))


async def write_line(
    probable: Callable[[Ids], Awaitable[Mapping[int, float]]],
    text_of: Callable[[Ids], Awaitable[str]],
    rng: np.random.Generator,
) -> Ids:
    """Write up to the end of a line or a sentence, at most 20 tokens; fewer than 3 where nothing can follow.

    Args:
        probable: The most probable next tokens after the line's ids so far: {token id: log-probability}.
        text_of: Text of token ids.
        rng: Draws the tokens, at temperature 0.8.
    """
    ids: Ids = ()
    while len(ids) < LONGEST:
        found = await probable(ids)
        tokens = sorted(found)
        # The order of perturbed log-probabilities is a draw without replacement (Gumbel), so a token that
        # cannot be used gives way to the next one.
        keys = np.array([found[token] for token in tokens]) / _TEMPERATURE + rng.gumbel(size=len(tokens))
        for place in np.argsort(-keys, kind="stable"):
            text = await text_of((tokens[place],))
            ends = not text.strip() or "\n" in text or text.strip().startswith("<|")
            if ends and len(ids) >= SHORTEST:
                return ids
            if not ends and "\ufffd" not in text:  # not a part of a character
                ids += (tokens[place],)
                break
        else:
            return ids
        if len(ids) >= SHORTEST and text.rstrip()[-1] in ".!?":
            return ids
    return ids
