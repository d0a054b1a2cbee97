"""The part of a run's settings that parties are told: what is asked of the model, and how it is searched.

Files, columns, backends, prices and caches are each side's own, and stay there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedbpt_api.run.schema import Settings

PUBLIC: Final = (
    "seed", "method", "prompts", "template", "prompt_place", "prompt_padding", "labels", "budget", "search",
    "federation", "privacy", "verbalizer", "test",
)  # fmt: skip
"""Keys of the settings that travel."""


def public_of(settings: Settings) -> dict[str, Any]:
    """The public part, as plain values."""
    return settings.model_dump(mode="json", include=set(PUBLIC))


def not_public(values: Mapping[str, Any]) -> list[str]:
    """Keys that have no business among what parties are told."""
    return sorted(set(values) - set(PUBLIC))
