"""What tokens cost, in money: exact decimal sums, so that parts add up to wholes and limits are kept to."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from fedbpt_api.scoring.backend import Usage

_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """A server's prices per million tokens.

    Attributes:
        input: Of prompt tokens.
        cached: Of those that come from its cache; at most `input`.
        output: Of generated tokens.
        currency: What the numbers are in.
        generated: Tokens that the server generates for an answered input (`BackendInfo.generated`).
    """

    input: Decimal
    cached: Decimal
    output: Decimal = Decimal(0)
    currency: str = "USD"
    generated: int = 1

    def of(self, usage: Usage) -> Decimal:
        """What `usage` costs. What is not known to be cached costs the full price."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        output = usage.scored * self.generated
        return (fresh * self.input + usage.cached_tokens * self.cached + output * self.output) / _MILLION
