"""A language model for tests: a few hundred words, answers at once, counts and can be made to fail.

`ToyBackend` implements the whole `Backend` protocol. Its tokeniser is byte-level with common words as
single tokens that carry their leading blank. Its answers are a fixed function of the ids: words of
praise and of blame move the label words apart, and other words (such as a prompt's) say by how much,
so that labels can be learnt and some prompts are better than others.

`Toys` makes it a kind of backend (``toy``) for `fedbpt_api.scoring.registry`, and `make_task` gives it
something to do.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, EntryPoints
from importlib.metadata import entry_points as installed_entry_points

import numpy as np

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import Backend, BackendInfo, Floats, Prompt, Scores, TokenTable, Usage
from fedbpt_api.task import ClientData, Example, LabelWords, Task, Template

_split = re.compile(r"\w+").findall

PRAISE = _split("good great love best happy nice fine wonderful perfect brilliant superb lovely")
BLAME = _split("bad worst hate poor sad awful late broken terrible dull rude lost")
LABEL_WORDS = LabelWords(("negative", "positive"), ((" negative",), (" positive",)))
ALIKE = LabelWords(LABEL_WORDS.labels, ((" very bad",), (" very good", " lovely")))
"""Words that begin alike: two inputs a text."""
TEMPLATE = Template.parse("Text: {text}\nMood:")
PROMPT = "Is the mood good or bad?\n"

_COMMON = _split("""
the and you that was for are with his they this have from one had word but not what all were when your can
said there use each which she how their will other about out many then them these some her would make like
him into time has look two more write see number way could people than first water been call who oil its now
find long down day did get come made may part over new sound take only little work know place year live back
give most very after thing our just name sentence man think say where help through much before line right too
mean old any same tell boy follow came want show also around form three small set put end does another well
large must big even such because turn here why ask went men read need land different home move try kind hand
picture again change off play spell air away animal house point page letter mother answer found study still
learn should world high every near add food between own below country plant last school father keep tree
never start city earth eye light thought head under story saw left few while along might close something
seem next hard open example begin life always those both paper together got group often run important until
children side feet car mile night walk white sea began grow took river four carry state once book hear stop
without second later miss idea enough eat face watch far really almost let above girl sometimes mountain cut
young talk soon list song being leave family mood text neutral positive negative
""")
_BARE = _split("Text Mood Tweet Review Sentiment Is Decide")  # at the beginning of a line, without a blank
_BYTES = 256
_DIMENSIONS = 12
_PIECE = re.compile(r" ?[A-Za-z]+|.", re.DOTALL)

TEXTS: tuple[str, ...] = (
    *(chr(i) if i < 128 else "\ufffd" for i in range(_BYTES)),
    *(f" {word}" for word in dict.fromkeys((*_COMMON, *PRAISE, *BLAME))),
    *_BARE,
)
IDS: dict[str, int] = {text: i for i, text in enumerate(TEXTS) if i >= _BYTES}


@dataclass
class ToyBackend:
    """The toy model, and levers to trouble whoever asks it.

    Attributes:
        seed: Another seed is another model with the same vocabulary.
        context: Longest input in tokens.
        embeddings: Whether it gives its token table away.
        soft: Whether it takes vectors: each is read as the token whose embedding is nearest.
        complete: Whether it says that every named word comes back.
        noise: Standard deviation of a log-probability when the same is asked again.
        block: Tokens that it says its cache keeps together.
        ripple: How much answers depend on the order of the ids, which means nothing.
        hold: While it is not set, requests that have arrived are not answered. One that nobody sets is
            a server that hangs.
        turns: How many turns of the event loop each request takes; one number a request, 0 after these.
        fail_on: Numbers of the requests (from 1) that raise `BackendError`.
        fail_from: Number of the request from which on all do.
        arrived: Set as soon as a request is there.
        requests: Calls of `score` and `top_words` so far.
        answered: How often each (token ids, named words) was scored and answered.
        closed: How often it was closed.
    """

    seed: int = 0
    context: int = 512
    embeddings: bool = True
    soft: bool = False
    complete: bool = True
    noise: float = 0.0
    block: int = 1
    ripple: float = 0.2
    hold: asyncio.Event | None = None
    turns: Sequence[int] = ()
    fail_on: frozenset[int] = frozenset()
    fail_from: int | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    requests: int = 0
    answered: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=Counter)
    closed: int = 0
    _stems: set[tuple[int, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        rng = np.random.default_rng((self.seed, 77))
        v = len(TEXTS)
        self._base = rng.normal(0.0, 1.0, v)
        self._gain = np.where(np.arange(v) < _BYTES, 0.0, rng.normal(0.0, 1.0, v))
        self._valence = np.zeros(v)
        self._polarity = rng.normal(0.0, 0.2, v)
        for words, sign in ((PRAISE, 1.0), (BLAME, -1.0)):
            rows = [IDS[f" {word}"] for word in words]
            self._valence[rows], self._polarity[rows] = sign, 0.7 * sign
        positive, neutral, negative = (IDS[f" {w}"] for w in ("positive", "neutral", "negative"))
        self._polarity[[positive, neutral, negative]] = 1.0, 0.0, -1.0
        self._base[[positive, neutral, negative]] = 4.0, 3.0, 3.0  # a prior that a bias must undo
        self._table = rng.normal(0.0, 1.0, (v, _DIMENSIONS)).astype(np.float32)
        self._table[:, 0] = 2.0 * self._gain  # the first principal coordinate is the one that matters

    @property
    def info(self) -> BackendInfo:
        details = {"way": "toy"}
        return BackendInfo(
            "toy",
            "toy",
            f"toy-{self.seed}",
            self.context,
            details=details,
            soft=self.soft,
            complete=self.complete,
            noise=self.noise,
            block=self.block,
        )

    @property
    def notice(self) -> str:
        return ""

    @property
    def scored(self) -> int:
        """(ids, words) pairs answered by `score` so far."""
        return self.answered.total()

    async def tokenize(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            ids += [IDS[piece]] if piece in IDS else piece.encode()
        return tuple(ids)

    async def detokenize(self, ids: Sequence[int]) -> str:
        try:
            pieces = [bytes([i]) if i < _BYTES else TEXTS[i].encode() for i in ids]
        except IndexError:
            raise BackendError("the toy has no such token") from None
        return b"".join(pieces).decode("utf-8", "replace")

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        prompts = [self._read(prompt) for prompt in prompts]
        await self._receive(prompts)
        rows = np.array([self._logprobs(p.ids)[list(words)] for p in prompts]).reshape(-1, len(words))
        rows = rows + self.noise * np.random.default_rng(self.requests).normal(size=rows.shape)
        mass = np.exp(rows).sum(axis=1)
        self.answered.update((p.ids, tuple(words)) for p in prompts)
        exact = np.ones(rows.shape, dtype=np.bool_)
        return Scores(rows - np.log(mass)[:, None], exact, mass, self._usage(prompts))

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        prompts = [self._read(prompt) for prompt in prompts]
        await self._receive(prompts)
        lists = []
        for prompt in prompts:
            row = self._logprobs(prompt.ids)
            lists.append({int(i): float(row[i]) for i in np.argsort(-row)[:k]})
        return lists, self._usage(prompts)

    async def token_table(self) -> TokenTable | None:
        return TokenTable(TEXTS, self._table) if self.embeddings else None

    async def aclose(self) -> None:
        self.closed += 1

    async def _receive(self, prompts: Sequence[Prompt]) -> None:
        self.requests += 1
        number = self.requests
        self.arrived.set()
        if self.hold is not None:
            await self.hold.wait()
        for _ in range(self.turns[number - 1] if number <= len(self.turns) else 0):
            await asyncio.sleep(0)
        if number in self.fail_on or (self.fail_from is not None and number >= self.fail_from):
            raise BackendError(f"the toy fails at request {number}", "as it was told to")
        longest = max((len(p.ids) for p in prompts), default=0)
        if longest > self.context:
            raise BackendError(f"an input has {longest} tokens, the context holds {self.context}")

    def _read(self, prompt: Prompt) -> Prompt:
        """The same input with its vectors as token ids."""
        if prompt.soft is None:
            return prompt
        if not self.soft:
            raise BackendError("the toy was not told to take vectors")
        apart = ((prompt.soft.vectors[:, None, :] - self._table[None]) ** 2).sum(axis=2)
        ids = tuple(int(i) for i in apart.argmin(axis=1))
        return Prompt(prompt.ids[: prompt.at] + ids + prompt.ids[prompt.at :], prompt.shared)

    def _usage(self, prompts: Sequence[Prompt]) -> Usage:
        cached = 0
        for prompt in prompts:
            stem = prompt.ids[: prompt.shared]
            cached += len(stem) if stem in self._stems else 0
            self._stems.add(stem)
        return Usage(len(prompts), sum(len(p.ids) for p in prompts), cached, 1)

    def _logprobs(self, ids: tuple[int, ...]) -> Floats:
        """Next-token log-probabilities, shape [V]."""
        at = np.array(ids, dtype=np.intp)
        mood = float(np.tanh(0.5 * self._valence[at].sum()))
        gain = 1.0 + float(np.tanh(self._gain[at].sum() / 4.0))
        phase = float((at * np.arange(1, len(at) + 1)).sum() % 1009)  # the order of the ids matters, a little
        ripple = self.ripple * np.sin(0.7 * np.arange(len(TEXTS)) + phase)
        logits = self._base + 1.5 * gain * mood * self._polarity + ripple
        top = logits.max()
        return np.asarray(logits - top - np.log(np.exp(logits - top).sum()))


class _ToyPoint(EntryPoint):
    """An entry point of a package that is not installed."""

    toys: Toys

    def load(self) -> object:
        return self.toys.open


@dataclass
class Toys:
    """The toy backends of one test, by name. `open` is what a backend's entry point names."""

    opened: dict[str, ToyBackend] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ToyBackend:
        return self.opened.setdefault(name, ToyBackend())

    async def open(self, *, name: str = "toy") -> Backend:
        """Open the toy of that name: the same one every time, as a test left it."""
        return self[name]

    def entry_points(self, *, group: str) -> EntryPoints:
        """Stands for `importlib.metadata.entry_points` where the registry looks."""
        point = _ToyPoint("toy", "toy:Toys.open", group)
        vars(point)["toys"] = self
        return EntryPoints([*installed_entry_points(group=group), point])


def make_examples(n: int, seed: int, share: float = 0.5) -> tuple[Example, ...]:
    """Different texts of four to eight words; about `share` of them positive.

    Args:
        n: How many.
        seed: Of the draw.
        share: Probability of the label positive.
    """
    return tuple(example for example, _ in zip(_examples(seed, share), range(n), strict=False))


def _examples(seed: int, share: float) -> Iterator[Example]:
    rng = np.random.default_rng((seed, 78))
    seen: set[str] = set()
    while True:
        positive = rng.random() < share
        own, other = (PRAISE, BLAME) if positive else (BLAME, PRAISE)
        words = [*rng.choice(own, 2, replace=False), *rng.choice(_COMMON[:200], rng.integers(2, 5))]
        if rng.random() < 0.3:
            words.append(rng.choice(other))
        text = " ".join(str(word) for word in rng.permutation(words))
        if text not in seen:
            seen.add(text)
            yield Example(text, "positive" if positive else "negative")


def make_task(clients: int = 3, train: int = 12, dev: int = 8, test: int = 10, seed: int = 0) -> Task:
    """A task that the toy can learn; the parties differ in their label mix."""
    parties = []
    for number in range(clients):
        rows = make_examples(train + dev + test, 100 * seed + number, share=0.35 + 0.3 * (number % 2))
        parts = rows[:train], rows[train : train + dev], rows[train + dev :]
        parties.append(ClientData(f"client{number}", *parts))
    return Task(TEMPLATE, LABEL_WORDS, tuple(parties))
