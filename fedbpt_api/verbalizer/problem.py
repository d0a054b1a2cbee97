"""What can go wrong while a verbalizer is fitted over clients."""

from __future__ import annotations

from fedbpt_api.errors import FedbptError


class FitError(FedbptError):
    """A client's numbers cannot be used, or a message of the fit is not what was expected."""
