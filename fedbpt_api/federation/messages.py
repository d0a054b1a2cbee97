"""The wire format between the server and its clients, used inside one process too.

A message is one line of JSON (the header), a line break, and little-endian float32 numbers. A state
carries round, mean and step size; an update carries a client's `Update`. The server's covariance and
paths never travel, and there is no field that could hold a text, a label or the score of a text.

Decoding is strict: only exactly what encoding writes is accepted, and anything else is a
`MessageError`. Numbers lose what float32 cannot hold, so both sides must go on with the decoded ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import orjson

from fedbpt_api.aggregate.state import GlobalState, Update
from fedbpt_api.errors import FedbptError

VERSION: Final = 1
"""Version of the format; a message of another version is refused."""

MAX_HEADER: Final = 1024
MAX_DIMENSION: Final = 16_384
MAX_STEPS: Final = 256
MAX_CLIENT: Final = 128
MAX_COUNT: Final = 2**53 - 1
"""Limits: bytes of the header, coordinates, step sizes, characters of a client's name, any count."""

_Numbers = npt.NDArray[np.float64]
_Header = dict[str, int | str]


class MessageError(FedbptError):
    """A message cannot be written or read: wrong version, length, field or number."""


@dataclass(frozen=True, slots=True, eq=False)
class Broadcast:
    """What a client is told at the start of a round: where to search, and how far.

    Attributes:
        round: Number of the round.
        mean: Centre of the client's search, shape [d], read-only.
        sigma: Step size to start with.
    """

    round: int
    mean: _Numbers
    sigma: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Broadcast) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[int, float, bytes]:
        return self.round, self.sigma, self.mean.tobytes()


def encode_state(state: GlobalState) -> bytes:
    """The public part of `state`: round, mean and step size.

    Raises:
        MessageError: If a value is out of its limits or not finite as float32.
    """
    return encode_broadcast(Broadcast(state.round, state.mean, state.sigma))


def encode_broadcast(told: Broadcast) -> bytes:
    """What `decode_state` gives, as the message that it came from.

    Raises:
        MessageError: If a value is out of its limits or not finite as float32.
    """
    header: _Header = {"version": VERSION, "kind": "state", "round": told.round, "d": len(told.mean)}
    data = _join(header, np.append(told.mean, told.sigma))
    decode_state(data)
    return data


def decode_state(data: bytes) -> Broadcast:
    """The message of `encode_state`, read.

    Raises:
        MessageError: If `data` is not exactly such a message.
    """
    header, body = _split(data, "state", {"round": (0, MAX_COUNT), "d": (1, MAX_DIMENSION)})
    d = int(header["d"])
    numbers = _numbers(body, d + 1)
    if not numbers[d] > 0:
        raise MessageError(f"the step size of a state message is {numbers[d]}, but must be above 0")
    return Broadcast(int(header["round"]), numbers[:d], float(numbers[d]))


def encode_update(update: Update) -> bytes:
    """A client's update.

    Raises:
        MessageError: If a value is out of its limits or not finite as float32.
    """
    header: _Header = {
        "version": VERSION,
        "kind": "update",
        "client": update.client,
        "round": update.round,
        "population": update.population,
        "n": update.n,
        "scored": update.scored,
        "d": len(update.mean),
        "steps": len(update.step_sizes),
    }
    data = _join(header, np.concatenate([update.mean, update.step_sizes, [update.loss]]))
    decode_update(data)
    return data


def decode_update(data: bytes) -> Update:
    """The message of `encode_update`, read.

    Raises:
        MessageError: If `data` is not exactly such a message.
    """
    limits = {
        "client": (1, MAX_CLIENT),
        "round": (0, MAX_COUNT),
        "population": (1, MAX_COUNT),
        "n": (1, MAX_COUNT),
        "scored": (0, MAX_COUNT),
        "d": (1, MAX_DIMENSION),
        "steps": (1, MAX_STEPS),
    }
    header, body = _split(data, "update", limits)
    d, steps = int(header["d"]), int(header["steps"])
    numbers = _numbers(body, d + steps + 1)
    sizes = numbers[d : d + steps]
    if not (sizes > 0).all():
        raise MessageError("a step size in an update message is not above 0")
    return Update(
        client=str(header["client"]),
        round=int(header["round"]),
        mean=numbers[:d],
        loss=float(numbers[-1]),
        step_sizes=tuple(sizes.tolist()),
        population=int(header["population"]),
        n=int(header["n"]),
        scored=int(header["scored"]),
    )


def _join(header: _Header, numbers: _Numbers) -> bytes:
    """A message from its header and its numbers."""
    try:
        line = orjson.dumps(header)
    except TypeError as error:
        raise MessageError(f"the header of a message cannot be written as JSON: {error}") from error
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which reading back refuses
        body = numbers.astype("<f4")
    return line + b"\n" + body.tobytes()


def _split(data: bytes, kind: str, limits: dict[str, tuple[int, int]]) -> tuple[_Header, bytes]:
    """Header and body of a message of this kind.

    Args:
        data: The message.
        kind: "state" or "update".
        limits: Every field of the header but version and kind, in order, with its smallest and largest
            value; for `client`, which is a text, its shortest and longest length.
    """
    end = data.find(b"\n", 0, MAX_HEADER + 1)
    if end < 0:
        raise MessageError(f"a message has no header line within its first {MAX_HEADER} bytes")
    try:
        header = orjson.loads(data[:end])
    except orjson.JSONDecodeError as error:
        raise MessageError(f"the header of a message is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise MessageError("the header of a message is not a JSON object")
    version = header.get("version")
    if type(version) is not int or version != VERSION:
        raise MessageError(
            f"a message has version {version!r}, but {VERSION} is understood",
            "run the same release of fedbpt_api on the server and on every client",
        )
    if header.get("kind") != kind:
        raise MessageError(f"a message has kind {header.get('kind')!r}, but {kind!r} was expected")
    if list(header) != ["version", "kind", *limits]:
        raise MessageError(f"the header of a {kind} message must have exactly the fields {list(limits)}")
    for name, (low, high) in limits.items():
        value = header[name]
        wanted = str if name == "client" else int
        size = len(value) if isinstance(value, str) else value
        if type(value) is not wanted or not low <= size <= high:
            raise MessageError(f"the field {name} of a {kind} message is out of its limits ({low} to {high})")
    if orjson.dumps(header) != data[:end]:
        raise MessageError("the header of a message is not in its one canonical form")
    return header, data[end + 1 :]


def _numbers(body: bytes, count: int) -> _Numbers:
    """Exactly `count` finite float32 numbers, as read-only float64."""
    if len(body) != 4 * count:
        raise MessageError(f"a message has {len(body)} bytes of numbers, but its header promises {4 * count}")
    numbers = np.frombuffer(body, dtype="<f4").astype(np.float64)
    if not np.isfinite(numbers).all():
        raise MessageError("a number in a message is not finite")
    numbers.setflags(write=False)
    return numbers
