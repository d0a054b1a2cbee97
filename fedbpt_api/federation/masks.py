"""Sums that hide their parts: masks that pairs of parties agree on, and that vanish when all are added up.

K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning" (CCS 2017), section
4.0.1: parties i < j derive a stream s_ij of uniform numbers from a Diffie-Hellman secret that the server, who
carries their public keys, does not know. Party i sends x_i + sum_{j > i} s_ij - sum_{j < i} s_ji modulo
2^64, which is uniform by itself, and the sum over all parties is the sum of the x_i. Numbers are written in
steps of 2^-30. Their recovery of parties that are lost (secret shares) is left out: here all must answer,
always the same set, so no two sums differ by one party.

The server must carry the keys honestly: one that makes up keys could read everything. Parties who do not
trust it with this compare `fingerprint` by another way.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fedbpt_api.federation.messages import MessageError
from fedbpt_api.prompts.tuned import read_json, write_json
from fedbpt_api.scoring.backend import Floats

STEP: Final = 2.0**-30
"""What numbers are rounded to."""

LARGEST: Final = 2.0**33
"""Sums must stay below this; with STEP it makes 64 bits."""

LEAST: Final = 3
"""Parties: of two, each would know the other's numbers from the sum."""

_LOG = logging.getLogger(__name__)
_LIMIT = 1_000_000  # bytes of the file of names

Words = npt.NDArray[np.uint64]


class Masks:
    """A party's masks.

    Args:
        name: The party's.
        place: A file with the names of those that it adds up with: once there, no other set will do, in this
            run or another, as two sums that differ by one party would tell that party's numbers.

    Attributes:
        agreed: `fingerprint` of the keys that its masks come from; empty before it knows them.
    """

    def __init__(self, name: str, place: Path | None = None) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.name = name
        self._place = place
        self._private = X25519PrivateKey.generate()
        self.agreed = b""
        self._secrets: dict[str, bytes] = {}
        self._answered: dict[bytes, bytes] = {}
        self._names: list[str] | None = None

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._private.public_key().public_bytes_raw()

    def meet(self, keys: Mapping[str, bytes]) -> None:
        """Agree on secrets with the others.

        Args:
            keys: Public keys of all parties by name, this one's among them.

        Raises:
            MessageError: Fewer than three parties, other ones than before, keys that are none, or another
                one for this party.
        """
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        if len(keys) < LEAST or len(set(keys.values())) != len(keys):
            raise MessageError(f"sums hide their parts from {LEAST} parties up, each with a key of its own")
        if keys.get(self.name) != self.public:
            raise MessageError(f"another key goes by the name {self.name}")
        self._pin(sorted(keys))
        if fingerprint(keys) == self.agreed:
            return  # the same masks, of which what was answered must stay known
        self.agreed = fingerprint(keys)
        try:
            self._secrets = {
                name: hashlib.blake2b(
                    self._private.exchange(X25519PublicKey.from_public_bytes(key)),
                    salt=b"fedbpt_api masks",
                    key=self.agreed,
                    digest_size=32,
                ).digest()
                for name, key in keys.items()
                if name != self.name
            }
        except ValueError as error:
            self.agreed, self._secrets = b"", {}
            raise MessageError(f"a public key is none: {error}") from error
        if self._place is not None:  # behind a network, where the server could put keys of its own in between
            told = self.agreed.hex()
            _LOG.warning("masks agreed with %s; all see the same keys: %s", ", ".join(sorted(keys)), told)

    def _pin(self, names: list[str]) -> None:
        if self._names is None and self._place is not None and self._place.exists():
            self._names = [str(name) for name in read_json(self._place, _LIMIT)["names"]]
        if self._names not in (None, names):
            known = ", ".join(self._names or ())
            _LOG.error(
                "told to be added up with %s, where it was %s before: the difference of two sums would "
                "tell a party's numbers. If that may be, remove %s and start again",
                *(", ".join(names), known, self._place),
            )
            raise MessageError("numbers are added up with those that they were before, and no others")
        if self._names is None and self._place is not None:
            write_json(self._place, {"names": names})
        self._names = names

    def masked(self, question: bytes, values: Floats) -> bytes:
        """The answer to a question, such that only the sum over all parties tells anything.

        Args:
            question: The same for all parties, with all that the answer depends on but their texts; what
                differs between them is not part of it.
            values: The answer, shape [n].

        Returns:
            8 n bytes, little-endian.

        Raises:
            MessageError: The numbers are too large; or the question had another answer before, and the
                difference would be told.
        """
        words = to_words(values, LARGEST / (1 + len(self._secrets)))
        key = hashlib.blake2b(question, key=self.agreed, digest_size=32).digest()
        digest = hashlib.blake2b(words.tobytes(), digest_size=32).digest()
        if self._answered.setdefault(key, digest) != digest:
            raise MessageError("the same question has another answer now, which would tell the difference")
        for name, secret in self._secrets.items():
            stream = _stream(hashlib.blake2b(key, key=secret, digest_size=32).digest(), len(words))
            words = words + stream if self.name < name else words - stream
        return words.astype("<u8").tobytes()


def fingerprint(keys: Mapping[str, bytes]) -> bytes:
    """Of all parties' names and keys, 32 bytes: the same at every party unless somebody lies in between."""
    digest = hashlib.blake2b(digest_size=32)
    for name, key in sorted(keys.items()):
        digest.update(b"%d %s %d %s " % (len(name.encode()), name.encode(), len(key), key))
    return digest.digest()


def to_words(values: Floats, largest: float = LARGEST) -> Words:
    """Numbers in steps of 2^-30, modulo 2^64.

    Raises:
        MessageError: One is not finite, or not below `largest`.
    """
    if not (np.abs(values) < largest).all():
        raise MessageError(f"a number is too large to be added up in secret (they must be below {largest:g})")
    return np.rint(values / STEP).astype(np.int64).view(np.uint64)


def added(answers: Mapping[str, bytes], count: int) -> Floats:
    """The sum of all parties' answers, shape [count].

    Raises:
        MessageError: An answer has another length.
    """
    total = np.zeros(count, dtype=np.uint64)
    for name, answer in sorted(answers.items()):
        if len(answer) != 8 * count:
            raise MessageError(f"{name} sent {len(answer)} bytes, where {8 * count} were to be added up")
        total += np.frombuffer(answer, dtype="<u8")
    return np.asarray(total.view(np.int64) * STEP, dtype=np.float64)


def _stream(key: bytes, count: int) -> Words:
    """Uniform numbers from a key that is used once: ChaCha20's stream."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * count)), dtype="<u8").astype(np.uint64)
