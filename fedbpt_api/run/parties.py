"""All that a run holds open: backends, parties with their budgets, journals; and what it keeps on disk."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.party import Party
from fedbpt_api.prompts.space import Ids
from fedbpt_api.run.config import Settings
from fedbpt_api.run.events import Started
from fedbpt_api.run.stored import Shelves
from fedbpt_api.scoring.backend import Backend, BackendInfo, Usage
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.facts import Facts
from fedbpt_api.scoring.journal import Journal
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.trie import LabelTrie
from fedbpt_api.task import Task

PartiesOpener = Callable[[Settings, Task, Callable[[], bool], "Keep"], Awaitable["Parties"]]
"""Opens a run, as `open_parties` does."""

GoOn = Callable[[Collection[str] | None], None]
"""Told the names of parties without whose answers the run goes on; None for whoever it is."""

_MOST_REFUSALS = 3  # after which a party is left out of the run
_LONG = 15.0  # seconds that an answer may take before it is remarked on
Opener = Callable[..., Awaitable[Backend]]  # as `open_backend`
_ROOM = 48  # tokens that a prompt may add to the longest starting prompt


def _nothing(names: Collection[str] | None) -> None:
    """Parties of this process are not asked again for what they did not answer."""


@dataclass
class Parties:
    """All that a run holds open.

    `room` is how many tokens a prompt may have beside every text; `apart` says that parties are behind a
    network; `behind` holds clients of this process that are reached by envelopes only, `names` all parties;
    `left_out` says why those that were left out of the run are.
    """

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
    apart: bool = False
    behind: list[Party] = field(default_factory=list)
    names: tuple[str, ...] = ()
    closing: list[Callable[[], None]] = field(default_factory=list)
    words: Ids = ()
    journals: list[Journal] = field(default_factory=list)
    facts: Facts = field(default_factory=lambda: Facts(None, b""))
    shelves: Shelves = field(default_factory=lambda: Shelves(None, b"", []))
    verbalizer_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    go_on: GoOn = _nothing
    _out: list[Party] = field(default_factory=list)
    _refusals: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """Parties, those whose numbers are only added up counted one by one."""
        return max(len(self.clients), len(self.behind), len(self.names))

    @property
    def info(self) -> BackendInfo:
        return self.backend.info

    @property
    def everyone(self) -> list[Party]:
        """Those that take part, then those that were left out."""
        return [*self.clients, *self._out]

    def leave_out(self, name: str, why: str) -> None:
        """Ask a party nothing more, and say why."""
        if name in self.left_out:
            return
        self._out += [client for client in self.clients if client.name == name]
        self.clients = [client for client in self.clients if client.name != name]  # who iterates, goes on
        self.left_out[name] = why
        self.warnings.append(f"{name} is left out of the run: {why}")

    def refuse(self, name: str, why: str) -> None:
        """Say that a party answered what cannot be; after the third time it is left out of the run."""
        self._refusals[name] += 1
        if self._refusals[name] == 1:
            self.warnings.append(f"{name} is left out of a question: {why}")
        if self._refusals[name] == _MOST_REFUSALS:
            self.leave_out(name, f"it answered what cannot be {_MOST_REFUSALS} times, at last: {why}")

    def go_on_without(self, missing: Mapping[str, str], refused: Collection[str]) -> None:
        """Go on without these parties' answers, and say which of them answered what cannot be."""
        self.go_on(missing.keys())
        for name in sorted(refused):
            self.refuse(name, missing[name])

    def started(self, limit: int | None) -> Started:
        texts = {c.name: (c.n_train, c.n_dev) for c in self.clients}
        return Started(tuple(texts), texts, self.info.model, limit)

    def spent(self) -> dict[str, dict[str, int | float]]:
        """What each client spent on the search and, apart, on the test; bytes of words and verbalizers."""
        table: dict[str, dict[str, int | float]] = {}
        for client in self.everyone:
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

    @property
    def reached(self) -> bool:
        """Whether some parties are reached by envelopes: what they name may be none."""
        return any(not isinstance(client, Client) for client in self.clients)

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

    async def known(self, ids: Ids) -> bool:
        """Whether these are tokens of the server's own model: parties behind a network may name others.

        Raises:
            BackendError: It does not answer at all.
        """
        try:
            await self.backend.detokenize(ids)
        except BackendError:
            await self.backend.detokenize(self.label_tokens[:1])
            return False
        return True

    async def aclose(self) -> None:
        """Give up on what is under way and close everything."""
        for client in (*self.everyone, *self.behind):
            await client.aclose()
        await self.shelves.aclose()
        for journal in self.journals:
            journal.close()
        self.facts.close()
        for close in self.closing:
            close()
        for backend in self.backends:
            await backend.aclose()

    def start(self) -> None:
        """Start the clocks; where answers are on disk already, they stand until something new is asked."""
        journals = [journal for journal in self.journals if not journal.counted]
        standing = any(journal.ended is not None or len(journal.past) for journal in journals)
        reached = max((journal.past.seconds for journal in journals), default=0.0)
        self.budget.start(standing=standing, reached=reached)
        for client in self.clients:
            client.budget.start(standing=standing)
        for place, journal in enumerate(self.journals):
            client = self.clients[min(place, len(self.clients) - 1)]
            paid = journal.past.paid if journal.counted else journal.past.lost
            client.budget.settle(Usage(), paid())
            if isinstance(client, Client) and (tested := paid(test=True)) != Usage():
                client.tested = Budget(price=client.budget.price)
                client.tested.settle(Usage(), tested)


@dataclass(frozen=True, slots=True)
class Keep:
    """What a run keeps on disk, and whether it is a new one; for an estimate, who stands for its servers.

    Attributes:
        folder: Where; None keeps nothing.
        ended: For a replay: what is raised where more is asked for than was answered. No server is opened.
        opener: What opens servers.
        facts: What is known of them already; read from the folder without it.
        counted: Whether the answers that are there are on the budget when a run goes on (`Journal`).
    """

    folder: Path | None = None
    ended: Exception | None = None
    opener: Opener = open_backend
    facts: Facts | None = None
    counted: bool = False


def versions(info: BackendInfo) -> dict[str, str]:
    """What took part, for the run folder."""
    found = {"python": platform.python_version(), "model": info.model, "fingerprint": info.fingerprint}
    for package in ("fedbpt-api", "numpy", "scipy", "cma", "xllamacpp"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {f"backend {key}": value for key, value in info.details.items()}
