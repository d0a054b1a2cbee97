"""The seam between a search over vectors and prompts a model can read."""

from __future__ import annotations

from typing import Protocol

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.encode import AnyPrompt, Asked, Ensemble, Ids, members_of

__all__ = ["AnyPrompt", "Asked", "Ensemble", "Ids", "PromptSpace", "members_of"]


class PromptSpace(Protocol):
    """A map from z in R^d to prompts. Pure: the same z gives the same prompt on every client."""

    @property
    def dimension(self) -> int:
        """d, the length of z."""

    @property
    def identity(self) -> dict[str, object]:
        """What another machine needs to know to have the same space: plain JSON values."""

    def decode(self, z: Floats) -> AnyPrompt:
        """The prompt at z [d]; z = 0 is the prompt that the search starts from."""
