"""A run of one process whose parties answer by envelopes only, as they would behind a network.

For the modes of `privacy`: masks and noise are put on where a party's answers leave it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedbpt_api.errors import ConfigError
from fedbpt_api.fanning import side_by_side
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.envelope import Envelope, seal
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.hidden import Hidden
from fedbpt_api.federation.masks import Masks
from fedbpt_api.federation.noise import Noise
from fedbpt_api.federation.noisy import NoisyResponder
from fedbpt_api.federation.party import Party
from fedbpt_api.federation.promise import Part
from fedbpt_api.federation.remote import RemoteParty
from fedbpt_api.federation.responder import Responder
from fedbpt_api.federation.summed_round import SummedParty
from fedbpt_api.federation.together import Together
from fedbpt_api.run.config import Settings
from fedbpt_api.run.opening import open_parties
from fedbpt_api.run.parties import Keep, Parties, PartiesOpener
from fedbpt_api.run.private import promise_of
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.task import Task

LOCAL = {
    "calibration": "contextual calibration asks a party's server itself",
    "in-context": "it shows parties' texts",
}
"""Searches that cannot be run from outside, and why."""


LEAST_BATCH = 8
"""Texts that a search's loss is of at least, where it is told over a network; all where there are fewer."""


@dataclass(frozen=True, slots=True)
class OwnSide:
    """What a party keeps for itself, and insists on.

    Attributes:
        peers: Where the names of those that it is added up with are kept.
        releases: Where what was answered with noise is kept.
        weighings: Where what its searches were weighed with is kept.
        about: What tells its task; the same for all that it is added up with.
        batch: Fewest texts that a search's loss may be of.
    """

    peers: Path | None = None
    releases: Path | None = None
    weighings: Path | None = None
    about: bytes = b""
    batch: int = 1


INSIDE = OwnSide()
"""Of a party in the server's own process, which hides nothing from it."""


def opener_of(settings: Settings) -> PartiesOpener:
    """What opens a run's parties in this process."""
    return open_parties if settings.privacy.mode == "none" else open_enclosed


async def open_enclosed(
    settings: Settings, task: Task, stopping: Callable[[], bool], keep: Keep | None = None
) -> Parties:
    """As `open_parties`; every party is reached by envelopes.

    Raises:
        ConfigError: As there, or what is asked for cannot be asked from outside.
        FedbptError: As from `reached`.
    """
    if problems := outside_problems(settings):
        raise ConfigError(problems)
    parties = await open_parties(settings, task, stopping, keep)
    try:
        exchanges: dict[str, Exchange] = {}
        for number, client in enumerate(parties.local):
            client.budget.parent = Budget()  # its share of the run's, which the other side looks after
            place = keep.folder / f"releases-{number}.records" if keep and keep.folder else None
            ended = keep.ended if keep else None
            responder = responder_of(client, settings, parties, own=OwnSide(releases=place), ended=ended)
            exchanges[client.name] = responder.answer
        tasks = dict.fromkeys(exchanges, seal(Envelope("facts", {})))
        parties.behind = parties.clients
        parties.clients = list[Party](await reached(settings, parties, exchanges, tasks))
    except BaseException:
        await parties.aclose()
        raise
    return parties


def responder_of(
    client: Client,
    settings: Settings,
    parties: Parties,
    life: str = "",
    own: OwnSide = INSIDE,
    ended: Exception | None = None,
) -> Responder:
    """What answers for a client, as the run's `privacy` wants it.

    Args:
        client: It.
        settings: The run's.
        parties: What was opened with it; what is opened here is closed with them.
        life: As for `Responder`.
        own: What it keeps, and insists on.
        ended: As for `Noise`.

    Raises:
        ConfigError: What is promised of noise cannot be kept for these texts.
    """
    tokens = parties.trie.tokens
    if settings.privacy.mode == "sums":
        hidden = Hidden(Masks(client.name, own.peers), own.about, own.weighings)
        return Responder(client, tokens, life, hidden, own.batch)
    if settings.privacy.mode == "none":
        return Responder(client, tokens, life, batch=own.batch)
    promise = promise_of(settings)
    if not promise.joint and (twice := in_several_parts(client)):
        raise ConfigError(
            f"client {client.name!r}: {twice} texts stand in more than one of train, dev and test, each of "
            "which noise protects for itself",
            "leave each in one of them, or protect all texts together (privacy.unit = 'party')",
        )
    texts: dict[Part, int] = {"train": client.n_train, "dev": client.n_dev, "test": client.n_test}
    if promise.delta >= 1 / max(texts.values()):
        raise ConfigError(
            f"privacy.delta: {promise.delta:g} lets one of {max(texts.values())} texts be told as it is",
            "set it far below one over the number of texts",
        )
    noise = Noise(promise, texts, own.releases, ended=ended)
    parties.closing.append(noise.close)
    return NoisyResponder(client, noise, len(parties.groups), tokens, life, own.batch)


def in_several_parts(client: Client) -> int:
    """Texts that more than one part of a client's has, as its model sees them."""
    times = Counter(text for part in client.parts for text in set(part.texts))
    return sum(count > 1 for count in times.values())


async def reached(
    settings: Settings, parties: Parties, exchanges: Mapping[str, Exchange], tasks: Mapping[str, bytes]
) -> list[RemoteParty]:
    """Tell parties their tasks, in their order; those whose numbers are only added up become one.

    Raises:
        FedbptError: One cannot take part, or is another than it said; or they are too few to be added up.
    """
    run, deadline = parties.budget, settings.federation.timeout
    if settings.privacy.mode == "sums":
        together = Together(exchanges, tasks)
        return [await SummedParty.reach(together, run, next(iter(tasks.values())), deadline)]
    work = [RemoteParty.reach(exchanges[name], run, tasks[name], deadline, name) for name in exchanges]
    found: list[RemoteParty] = await side_by_side(work)
    for party in found:
        party.noisy = settings.privacy.mode == "gaussian"
    return found


def outside_problems(settings: Settings) -> list[str]:
    """What cannot be done with parties that are reached by envelopes."""
    problems = []
    if why := LOCAL.get(settings.search.algorithm):
        problems.append(f"method: {settings.method} is not for parties that are asked from outside: {why}")
    if settings.prompt_place == "auto":
        problems.append("prompt_place: for parties that are asked from outside, say 'before' or 'after'")
    if settings.prompt_padding != "off":
        problems.append("prompt_padding: it must be 'off' for parties that are asked from outside")
    if settings.privacy.mode == "sums" and settings.federation.aggregator in ("median", "trimmed"):
        problems.append(
            f"federation.aggregator: {settings.federation.aggregator} needs each party's mean, and "
            "privacy.mode = 'sums' hides it"
        )
    if settings.parties is not None and (settings.search.minibatch or LEAST_BATCH) < LEAST_BATCH:
        problems.append(
            f"search.minibatch: {settings.search.minibatch} is too small for parties behind a network, who "
            f"tell losses of {LEAST_BATCH} texts or more; raise it, or remove it for all texts"
        )
    return problems
