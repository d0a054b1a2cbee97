"""The paper's own continuous prompt: p = p0 + A z, vectors that no text has (FedBPT section 3; BBT, eq. 4).

p0 are the embeddings of a discrete prompt's token ids. A [L D, d] is random and never trained: every
client draws the same one from a seed, so only z in R^d travels. Its entries are normal with standard
deviation alpha * s / (sqrt(d) * sigma), s being that of the embedding table's entries (BBT's code for
decoder models, `--random_proj normal`), so that at the search's first step A z is as large as alpha
times an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fedbpt_api.scoring.backend import Floats, Soft, TokenTable
from fedbpt_api.scoring.encode import AnyPrompt, Ids

MOST_VECTORS = 50  # of a prompt's tokens that move, the first ones; the paper's number


@dataclass(frozen=True, eq=False)
class SoftSpace:
    """Continuous prompts around a discrete one.

    Attributes:
        origin: Token ids of the prompt at z = 0.
        base: Their embeddings p0, shape [L, D].
        dimension: d.
        scale: Standard deviation of A's entries.
        seed: A's.
    """

    origin: Ids
    base: npt.NDArray[np.float32]
    dimension: int
    scale: float
    seed: int

    @classmethod
    def around(
        cls, origin: Ids, table: TokenTable, *, dimension: int, alpha: float, sigma: float, seed: int
    ) -> SoftSpace:
        """The space around a discrete prompt of at least one token.

        Args:
            origin: The prompt's token ids.
            table: The model's embeddings.
            dimension: d.
            alpha: Size of A z against an embedding at the first step.
            sigma: The search's first step size.
            seed: Of A.
        """
        if not origin:
            raise ValueError("a continuous prompt needs at least one token to start from")
        spread = float(table.embeddings.std(dtype=np.float64))
        scale = alpha * spread / (math.sqrt(dimension) * sigma)
        return cls(origin, table.embeddings[list(origin)], dimension, scale, seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the vectors come back to the bit."""
        return {
            "origin": list(self.origin),
            "base": self.base.tolist(),
            "dimension": self.dimension,
            "scale": self.scale,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SoftSpace:
        """Reads `to_dict`."""
        base = np.array(data["base"], dtype=np.float32)
        return cls(tuple(data["origin"]), base, data["dimension"], data["scale"], data["seed"])

    @property
    def identity(self) -> dict[str, object]:
        return {
            "space": "soft",
            "dimensions": self.dimension,
            "vectors": self._moving,
            "scale": self.scale,
            "seed": self.seed,
            "matrix": "default_rng(seed).standard_normal((vectors * width, dimensions), float32) * scale",
        }

    @property
    def vectors(self) -> int:
        """Vectors of the prompt, L."""
        return len(self.base)

    @property
    def _moving(self) -> int:
        return min(len(self.base), MOST_VECTORS)

    @cached_property
    def _matrix(self) -> npt.NDArray[np.float32]:
        rng = np.random.default_rng(self.seed)
        shape = (self._moving * self.base.shape[1], self.dimension)
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(self.scale)

    def decode(self, z: Floats) -> AnyPrompt:
        """p0 + A z; at z = 0 the discrete prompt itself, whose scores are the same and known."""
        z = np.asarray(z, dtype=np.float64)
        if not z.any():
            return self.origin
        moved = self.base.copy()
        shift = (self._matrix @ z.astype(np.float32)).reshape(self._moving, -1)
        moved[: self._moving] += shift
        return Soft(moved)


def rebuild(origin: Ids, recipe: Mapping[str, Any], table: TokenTable) -> AnyPrompt:
    """The prompt of an artefact: its ids, z and the space's identity say all that is needed.

    Raises:
        KeyError, ValueError: The recipe is damaged, or the model's embeddings have another width.
    """
    space = SoftSpace(
        origin,
        table.embeddings[list(origin)],
        int(recipe["dimensions"]),
        float(recipe["scale"]),
        int(recipe["seed"]),
    )
    return space.decode(np.asarray(recipe["z"], dtype=np.float64))
