"""Opening a run: backends, token ids of all texts, clients with their budgets; checks before any cost."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedbpt_api.errors import ConfigError
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.party import Party
from fedbpt_api.prompts.space import Ids
from fedbpt_api.run.config import BackendSettings, BudgetSettings, Settings
from fedbpt_api.run.events import Started
from fedbpt_api.run.prices import price_of
from fedbpt_api.run.stored import Shelves, scope_of
from fedbpt_api.scoring.backend import Backend, BackendInfo, Usage
from fedbpt_api.scoring.budget import Budget, Limits
from fedbpt_api.scoring.encode import EncodedText, Encoder, longest
from fedbpt_api.scoring.facts import Facts, Remembering, known_info
from fedbpt_api.scoring.journal import Journal, secret_of
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.scoring.trie import LabelTrie, label_trie, remarks
from fedbpt_api.task import Task, validate

Opening = Callable[[Settings, Task, Callable[[], bool], "Keep"], Awaitable["Parties"]]  # as `open_parties`
_LONG = 15.0  # seconds that an answer may take before it is remarked on
Opener = Callable[..., Awaitable[Backend]]  # as `open_backend`
_ROOM = 48  # tokens that a prompt may add to the longest starting prompt


@dataclass
class Parties:
    """All that a run holds open. `room` is how many tokens a prompt may have beside every text."""

    backend: Backend
    task: Task
    trie: LabelTrie
    budget: Budget
    clients: list[Party]
    backends: list[Backend]
    stopping: Callable[[], bool]
    warnings: list[str]
    start_ids: Ids = ()
    word_texts: dict[int, str] = field(default_factory=dict)
    room: int = 0
    words: Ids = ()
    journals: list[Journal] = field(default_factory=list)
    facts: Facts = field(default_factory=lambda: Facts(None, b""))
    shelves: Shelves = field(default_factory=lambda: Shelves(None, b"", []))
    verbalizer_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def info(self) -> BackendInfo:
        return self.backend.info

    def started(self, limit: int | None) -> Started:
        texts = {c.name: (c.n_train, c.n_dev) for c in self.clients}
        return Started(tuple(texts), texts, self.info.model, limit)

    def spent(self) -> dict[str, dict[str, int | float]]:
        """What each client spent on the search and, apart, on the test; bytes of words and verbalizers."""
        table: dict[str, dict[str, int | float]] = {}
        for client in self.clients:
            budget = client.budget
            table[client.name] = {
                "scored": budget.spent.scored,
                "duplicates": budget.duplicates,
                "stored": budget.stored,
                "prompt_tokens": budget.spent.prompt_tokens,
                "cached_tokens": budget.spent.cached_tokens,
                "requests": budget.spent.requests,
                "verbalizer_bytes_up": self.verbalizer_bytes[client.name, "up"],
                "verbalizer_bytes_down": self.verbalizer_bytes[client.name, "down"],
            }
            if budget.price is not None:
                table[client.name]["money"] = float(budget.money)
            if test := client.tested:
                table[client.name] |= {
                    "test_scored": test.spent.scored,
                    "test_stored": test.stored,
                    "test_prompt_tokens": test.spent.prompt_tokens,
                }
                if test.price is not None:
                    table[client.name]["test_money"] = float(test.money)
        return table

    @property
    def currency(self) -> str:
        """What money is counted in; empty where some client's price is not known."""
        prices = [client.budget.price for client in self.clients]
        return "" if None in prices else next((p.currency for p in prices if p is not None), "")

    @property
    def notice(self) -> str:
        """What slows servers down just now, and which requests have been waiting for long."""
        found = list(dict.fromkeys(backend.notice for backend in self.backends if backend.notice))
        for client in self.clients:
            if (seconds := client.waiting) > _LONG:
                found.append(f"{client.name} has been waiting for an answer for {seconds:.0f} s")
        return "; ".join(found)

    @property
    def answered(self) -> int:
        """Scored examples that an earlier session of the run has paid for."""
        return sum(journal.past.scored for journal in self.journals)

    @property
    def label_tokens(self) -> Ids:
        """What stands for the label words."""
        return self.trie.tokens

    @property
    def groups(self) -> tuple[Ids, ...]:
        """For each label the columns of its words."""
        return self.trie.groups

    @property
    def local(self) -> list[Client]:
        """The parties, all of which must be in this process.

        Raises:
            ConfigError: Some are not.
        """
        found = [client for client in self.clients if isinstance(client, Client)]
        if len(found) < len(self.clients):
            raise ConfigError("this needs the parties' texts in this process", "see docs/deploy.md")
        return found

    def count_bytes(self, up: Mapping[str, int], down: Mapping[str, int]) -> None:
        """Note what the word list or a verbalizer's fit made clients send and receive."""
        for way, sizes in (("up", up), ("down", down)):
            self.verbalizer_bytes.update({(name, way): size for name, size in sizes.items()})

    async def use_words(self, words: Ids) -> None:
        """Have every client ask for these T words from now on, label words first; remember their texts."""
        self.words = words
        for client in self.clients:
            client.use_words(words)
        for token in words:
            self.word_texts[token] = await self.backend.detokenize([token])

    async def aclose(self) -> None:
        """Give up on what is under way and close everything."""
        for client in self.clients:
            await client.aclose()
        await self.shelves.aclose()
        for journal in self.journals:
            journal.close()
        self.facts.close()
        for backend in self.backends:
            await backend.aclose()

    def start(self) -> None:
        """Start the clocks; where answers are on disk already, they stand until something new is asked."""
        journals = self.journals
        standing = any(journal.ended is not None or len(journal.past) for journal in journals)
        reached = max((journal.past.seconds for journal in journals), default=0.0)
        self.budget.start(standing=standing, reached=reached)
        for client in self.clients:
            client.budget.start(standing=standing)
        for client, journal in zip(self.clients, journals, strict=False):
            client.budget.settle(Usage(), journal.past.lost)


@dataclass(frozen=True, slots=True)
class Keep:
    """What a run keeps on disk, and whether it is a new one; for an estimate, who stands for its servers.

    Attributes:
        folder: Where; None keeps nothing.
        ended: For a replay: what is raised where more is asked for than was answered. No server is opened.
        opener: What opens servers.
        facts: What is known of them already; read from the folder without it.
    """

    folder: Path | None = None
    ended: Exception | None = None
    opener: Opener = open_backend
    facts: Facts | None = None


async def open_parties(
    settings: Settings, task: Task, stopping: Callable[[], bool], keep: Keep | None = None
) -> Parties:
    """Open backends, tokenise every text and check what only the model can tell.

    Args:
        settings: The run's.
        task: Texts, template and label words.
        stopping: Whether the user has asked the run to stop.
        keep: Where answers are kept and, for a run that goes on, found.

    Raises:
        ConfigError: Label words that cannot be told apart, texts longer than the context, clients' backends
            that serve different models, a server that is another than when the run began. Nothing has
            been scored.
    """
    keep = keep or Keep()
    warnings = validate(task)
    backends: list[Backend] = []
    clients: list[Client] = []
    secrets = [secret_of(*(rows for _, rows in data.parts())) for data in task.clients]
    path = keep.folder / "model.facts" if keep.folder is not None else None
    facts = keep.facts or Facts(
        path, hashlib.blake2b(b"".join(secrets)).digest(), writable=keep.ended is None
    )
    opening = _Opening(keep, facts, settings.search.space == "soft", backends)
    wanted = settings.cache.scores and keep.ended is None
    scope, shelves = scope_of(facts.secret, settings.model_dump()), Shelves(None, b"", warnings)
    try:
        shelves = await Shelves.open(wanted, scope, warnings, settings.cache.charged)
        plain = await opening.open(settings.backend, "server")
        trie = await label_trie(plain, task.label_words)
        warnings += await remarks(plain, trie)
        backend = trie.over(plain)
        shelf = await shelves.of(backends[-1], settings.backend.options, trie) if backends else None
        run_budget = Budget(_limits(settings.budget))
        prompts = {text: await backend.tokenize(text) for text in settings.prompts}
        parties = Parties(backend, task, trie, run_budget, [], backends, stopping, warnings, facts=facts)
        parties.shelves = shelves
        parties.start_ids = prompts[settings.prompts[0]]
        longest_prompt = max(map(len, prompts.values())) + _ROOM
        own = {client.name: client for client in settings.clients}
        problems: list[str] = []
        rooms: list[int] = []
        for number, data in enumerate(task.clients):
            mine = own.get(data.name)
            served, its_shelf = backend, shelf
            if mine is not None and mine.backend is not None:
                own_server = await opening.open(mine.backend, f"server of {data.name}")
                served = trie.over(own_server)
                if await label_trie(own_server, task.label_words) != trie:
                    problems.append(f"clients.{data.name}.backend: its model has another vocabulary")
                elif keep.ended is None:
                    its_shelf = await shelves.of(backends[-1], mine.backend.options, trie)
            encoder = Encoder(served, task.template, task.label_words)
            sets = {part: await encoder.labelled(rows, part) for part, rows in data.parts()}
            texts: dict[str, tuple[EncodedText, ...]] = {p: encoded.texts for p, encoded in sets.items()}
            rooms.append(served.info.context - longest(list(texts.values())))
            for name, encoded_texts in texts.items():
                where = f"clients.{data.name}.{name}"
                problems += _too_long(encoded_texts, where, served.info.context, longest_prompt)
            charged = settings.price if mine is None or mine.backend is None else None
            charged = mine.price if mine is not None and mine.price is not None else charged
            budget = Budget(_limits(mine.budget if mine else None), run_budget)
            budget.price = price_of(charged, served.info)
            scorer = Scorer(served, budget, stopping, shelf=its_shelf)
            clients.append(Client(data.name, number, settings.seed, scorer, **sets))
        if problems:
            raise ConfigError(problems, "shorten these texts, or raise backend.context")
        currencies = {p.currency for c in clients if (p := c.budget.price) is not None}
        if len(currencies) > 1:
            raise ConfigError(
                f"price: the files of prices name several currencies ({', '.join(sorted(currencies))})",
                "convert the prices to one",
            )
        parties.clients[:] = clients
        parties.room = min(rooms)
        if keep.folder is not None:
            for number, client in enumerate(clients):
                place = keep.folder / f"scores-{number}.journal"
                client.scorer.journal = Journal(place, secrets[number], keep.ended)
                parties.journals.append(client.scorer.journal)
    except BaseException:
        facts.close()
        for client in clients:
            if client.scorer.journal is not None:
                client.scorer.journal.close()
        await shelves.aclose()
        for opened in backends:
            await opened.aclose()
        raise
    return parties


def versions(info: BackendInfo) -> dict[str, str]:
    """What took part, for the run folder."""
    found = {"python": platform.python_version(), "model": info.model, "fingerprint": info.fingerprint}
    for package in ("fedbpt-api", "numpy", "scipy", "cma", "xllamacpp"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {f"backend {key}": value for key, value in info.details.items()}


@dataclass(frozen=True, slots=True)
class _Opening:
    """Opens a run's backends.

    Attributes:
        keep: The run's.
        facts: What servers have said.
        soft: Whether they must take continuous prompts.
        opened: Where each is noted, so that it can be closed.
    """

    keep: Keep
    facts: Facts
    soft: bool
    opened: list[Backend]

    async def open(self, settings: BackendSettings, name: str) -> Backend:
        """The backend that the settings name; none in a replay, where what it said is known.

        Raises:
            ConfigError: It takes no continuous prompts, or is another than when the run began.
        """
        if self.keep.ended is not None:
            return Remembering(None, self.facts, name)
        known = known_info(self.facts, name)
        live = await self.keep.opener(
            settings.kind, log_folder=self.keep.folder, known=known, **settings.options
        )
        self.opened.append(live)
        backend = Remembering(live, self.facts, name)
        if changes := backend.changes():
            raise ConfigError(
                changes, "answers of two servers are not mixed: start a new run, or undo the change"
            )
        if self.soft and not (live.info.soft and await live.token_table()):
            raise ConfigError(
                f"search.space: {live.info.model} ({settings.kind}) takes no continuous prompts",
                "use search.space = 'codebook', or a vLLM that was started with --enable-prompt-embeds and "
                "whose model folder is named in backend.weights",
            )
        return backend


def _limits(budget: BudgetSettings | None) -> Limits:
    if budget is None:
        return Limits()
    money = None if budget.money is None else Decimal(str(budget.money))
    return Limits(budget.scored, budget.tokens, budget.seconds, money)


def _too_long(texts: Sequence[EncodedText], where: str, context: int, prompt: int) -> list[str]:
    return [
        f"{where}: text {number} has {length} tokens; with a prompt of up to {prompt} it does not fit "
        f"into the context of {context}"
        for number, text in enumerate(texts, start=1)
        if (length := len(text.before) + len(text.after)) + prompt > context
    ]
