"""What can go wrong while a verbalizer is fitted over clients."""

from __future__ import annotations

from fedbpt_api.errors import FedbptError


class FitError(FedbptError):
    """A client's numbers cannot be used, or a message of the fit is not what was expected.

    Args:
        message: What was wrong.
        hint: What to do about it.
        client: Whose answer it was; empty where it is nobody's.
        refused: Whether that answer came and cannot be true.
    """

    def __init__(self, message: str, hint: str = "", client: str = "", refused: bool = False) -> None:
        super().__init__(message, hint)
        self.client = client
        self.refused = refused
