"""Clients of the toy model for tests of the federation, and prompt spaces small enough to reason about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedbpt_api.federation.client import Client
from fedbpt_api.federation.local_search import Plan
from fedbpt_api.prompts.space import Ids
from fedbpt_api.scoring.backend import Backend, Floats, Prompt, Scores
from fedbpt_api.scoring.budget import Budget, Limits
from fedbpt_api.scoring.encode import EncodedSet, EncodedText, Encoder
from fedbpt_api.scoring.scorer import Scorer
from toy import IDS, LABEL_WORDS, PROMPT, TEMPLATE, ToyBackend, make_task

LABEL_IDS: Ids = (IDS[" negative"], IDS[" positive"])
WORDS: Ids = (*LABEL_IDS, IDS[" neutral"], IDS[" text"], IDS[" mood"])
GROUPS: tuple[Ids, ...] = ((0,), (1,))
PLAN = Plan(population=4, iterations=2, minibatch=None)


@dataclass(frozen=True)
class WordSpace:
    """Two coordinates; each chooses one of a few words by its size. Different z often mean one prompt."""

    words: tuple[str, ...] = (" bad", " good", " the", " great", " very", " old")
    dimension: int = 2
    identity: dict[str, object] = field(default_factory=dict)

    def decode(self, z: Floats) -> Ids:
        steps = np.floor(np.asarray(z)[:2] * 3).astype(int)
        return tuple(IDS[self.words[int(step) % len(self.words)]] for step in steps)


@dataclass(frozen=True)
class OnePrompt:
    """Every z is the same prompt."""

    prompt: Ids
    dimension: int = 2
    identity: dict[str, object] = field(default_factory=dict)

    def decode(self, z: Floats) -> Ids:
        return self.prompt


async def make_client(
    name: str = "client0",
    *,
    backend: Backend | None = None,
    key: int = 0,
    train: int = 12,
    dev: int = 8,
    limits: Limits | None = None,
    kind: type[Client] = Client,
    words: Ids = WORDS,
) -> Client:
    """A client with toy texts of its own (drawn from `key`) and the words already chosen."""
    backend = backend if backend is not None else ToyBackend()
    data = make_task(1, train, dev, 1, seed=key).clients[0]
    encoder = Encoder(backend, TEMPLATE, LABEL_WORDS)
    scorer = Scorer(backend, Budget(limits or Limits()))
    scorer.use_words(words)
    return kind(name, key, 0, scorer, await encoder.labelled(data.train), await encoder.labelled(data.dev))


async def make_clients(
    count: int, backends: Sequence[Backend] = (), kind: type[Client] = Client
) -> list[Client]:
    """Clients "client0", "client1", ...; each with a toy of its own where none is given for it."""
    given = [*backends, *(ToyBackend() for _ in range(count - len(backends)))]
    return [
        await make_client(f"client{key}", backend=backend, key=key, kind=kind)
        for key, backend in enumerate(given)
    ]


async def start_ids() -> Ids:
    """Token ids of the toy's starting prompt."""
    return await ToyBackend().tokenize(PROMPT)


def table_client(
    backend: Backend, texts: Sequence[EncodedText], labels: Sequence[int], name: str = "client0"
) -> Client:
    """A client with exactly these texts and the two label words."""
    scorer = Scorer(backend, Budget())
    scorer.use_words(LABEL_IDS)
    train = EncodedSet(tuple(texts), np.array(labels, dtype=np.intp))
    return Client(name, 0, 0, scorer, train, EncodedSet((), np.zeros(0, dtype=np.intp)))


@dataclass
class Listing(ToyBackend):
    """Gives the values of the `k` most probable named words; the others are bounded by the least of these.

    Attributes:
        k: Length of its list.
        slack: Nats by which its bounds are lower than they could be.
    """

    k: int = 3
    slack: float = 0.0

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        scores = await super().score(prompts, words)
        ends = np.sort(scores.logprobs, axis=1)[:, -self.k][:, None]
        exact = scores.logprobs >= ends
        return replace(scores, logprobs=np.where(exact, scores.logprobs, ends - self.slack), exact=exact)
