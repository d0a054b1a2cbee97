"""Opening a run: backends, token ids of all texts, clients with their budgets; checks before any cost."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedbpt_api.errors import ConfigError
from fedbpt_api.federation.client import Client
from fedbpt_api.prompts.space import Ids
from fedbpt_api.run.config import BackendSettings, BudgetSettings, Settings
from fedbpt_api.run.events import Started
from fedbpt_api.scoring.backend import Backend, BackendInfo
from fedbpt_api.scoring.budget import Budget, Limits
from fedbpt_api.scoring.encode import EncodedText, Encoder, longest
from fedbpt_api.scoring.journal import Journal, secret_of
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.scoring.trie import LabelTrie, label_trie, remarks
from fedbpt_api.task import Task, validate

_LONG = 15.0  # seconds that an answer may take before it is remarked on
_ROOM = 48  # tokens that a prompt may add to the longest starting prompt


@dataclass
class Parties:
    """All that a run holds open. `room` is how many tokens a prompt may have beside every text."""

    backend: Backend
    task: Task
    trie: LabelTrie
    budget: Budget
    clients: list[Client]
    backends: list[Backend]
    encoders: dict[str, Encoder]
    stopping: Callable[[], bool]
    warnings: list[str]
    start_ids: Ids = ()
    word_texts: dict[int, str] = field(default_factory=dict)
    tests: dict[str, Budget] = field(default_factory=dict)
    room: int = 0
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
            budget = client.scorer.budget
            table[client.name] = {
                "scored": budget.spent.scored,
                "duplicates": budget.duplicates,
                "prompt_tokens": budget.spent.prompt_tokens,
                "cached_tokens": budget.spent.cached_tokens,
                "requests": budget.spent.requests,
                "verbalizer_bytes_up": self.verbalizer_bytes[client.name, "up"],
                "verbalizer_bytes_down": self.verbalizer_bytes[client.name, "down"],
            }
            if test := self.tests.get(client.name):
                table[client.name] |= {
                    "test_scored": test.spent.scored,
                    "test_prompt_tokens": test.spent.prompt_tokens,
                }
        return table

    @property
    def notice(self) -> str:
        """What slows servers down just now, and which requests have been waiting for long."""
        found = list(dict.fromkeys(backend.notice for backend in self.backends if backend.notice))
        for client in self.clients:
            if (seconds := client.scorer.waiting) > _LONG:
                found.append(f"{client.name} has been waiting for an answer for {seconds:.0f} s")
        return "; ".join(found)

    @property
    def label_tokens(self) -> Ids:
        """What stands for the label words."""
        return self.trie.tokens

    @property
    def groups(self) -> tuple[Ids, ...]:
        """For each label the columns of its words."""
        return self.trie.groups

    @property
    def words(self) -> Ids:
        """The T named words, once they are chosen."""
        return self.clients[0].scorer.words

    def count_bytes(self, up: Mapping[str, int], down: Mapping[str, int]) -> None:
        """Note what the word list or a verbalizer's fit made clients send and receive."""
        for way, sizes in (("up", up), ("down", down)):
            self.verbalizer_bytes.update({(name, way): size for name, size in sizes.items()})

    async def name_words(self) -> None:
        """Remember the text of every named word, for the artefact."""
        for token in self.words:
            self.word_texts[token] = await self.backend.detokenize([token])

    async def aclose(self) -> None:
        """Give up on what is under way and close everything."""
        for client in self.clients:
            await client.scorer.aclose()
        for journal in (client.scorer.journal for client in self.clients):
            if journal is not None:
                journal.close()
        for backend in self.backends:
            await backend.aclose()


async def open_parties(
    settings: Settings, task: Task, stopping: Callable[[], bool], folder: Path | None = None
) -> Parties:
    """Open backends, tokenise every text and check what only the model can tell.

    Args:
        settings: The run's.
        task: Texts, template and label words.
        stopping: Whether the user has asked the run to stop.
        folder: Where each client's journal of scores is kept; None keeps none.

    Raises:
        ConfigError: Label words that cannot be told apart, texts longer than the context,
            clients' backends that serve different models. Nothing has been scored.
    """
    warnings = validate(task)
    backends: list[Backend] = []
    try:
        soft = settings.search.space == "soft"
        plain = await _open(settings.backend, backends, folder, soft)
        trie = await label_trie(plain, task.label_words)
        warnings += await remarks(plain, trie)
        backend = trie.over(plain)
        run_budget = Budget(_limits(settings.budget))
        prompts = {text: await backend.tokenize(text) for text in settings.prompts}
        parties = Parties(backend, task, trie, run_budget, [], backends, {}, stopping, warnings)
        parties.start_ids = prompts[settings.prompts[0]]
        longest_prompt = max(map(len, prompts.values())) + _ROOM
        own = {client.name: client for client in settings.clients}
        problems: list[str] = []
        everything: list[list[EncodedText]] = []  # of each client, in the order of clients
        rooms: list[int] = []
        for number, data in enumerate(task.clients):
            mine = own.get(data.name)
            served = backend
            if mine is not None and mine.backend is not None:
                own_server = await _open(mine.backend, backends, folder, soft)
                served = trie.over(own_server)
                if await label_trie(own_server, task.label_words) != trie:
                    problems.append(f"clients.{data.name}.backend: its model has another vocabulary")
            encoder = Encoder(served, task.template, task.label_words)
            sets = {part: await encoder.labelled(rows) for part, rows in data.parts() if part != "test"}
            texts: dict[str, tuple[EncodedText, ...]] = {p: encoded.texts for p, encoded in sets.items()}
            texts["test"] = await encoder.texts(data.test)
            rooms.append(served.info.context - longest(list(texts.values())))
            for name, encoded_texts in texts.items():
                where = f"clients.{data.name}.{name}"
                problems += _too_long(encoded_texts, where, served.info.context, longest_prompt)
            budget = Budget(_limits(mine.budget if mine else None), run_budget)
            scorer = Scorer(served, budget, stopping)
            everything.append([text for part in sorted(texts) for text in texts[part]])
            parties.encoders[data.name] = encoder
            parties.clients.append(
                Client(data.name, number, settings.seed, scorer, sets["train"], sets["dev"])
            )
        if problems:
            raise ConfigError(problems, "shorten these texts, or raise backend.context")
        parties.room = min(rooms)
        if folder is not None:
            for number, client in enumerate(parties.clients):
                path = folder / f"scores-{number}.journal"
                client.scorer.journal = Journal(path, secret_of(everything[number]))
    except BaseException:
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


async def _open(
    settings: BackendSettings, backends: list[Backend], folder: Path | None, soft: bool
) -> Backend:
    backend = await open_backend(settings.kind, log_folder=folder, **settings.options)
    backends.append(backend)
    if soft and not (backend.info.soft and await backend.token_table()):
        raise ConfigError(
            f"search.space: {backend.info.model} ({settings.kind}) takes no continuous prompts",
            "use search.space = 'codebook', or a vLLM that was started with --enable-prompt-embeds and whose "
            "model folder is named in backend.weights",
        )
    return backend


def _limits(budget: BudgetSettings | None) -> Limits:
    return Limits() if budget is None else Limits(budget.scored, budget.tokens, budget.seconds)


def _too_long(texts: Sequence[EncodedText], where: str, context: int, prompt: int) -> list[str]:
    return [
        f"{where}: text {number} has {length} tokens; with a prompt of up to {prompt} it does not fit "
        f"into the context of {context}"
        for number, text in enumerate(texts, start=1)
        if (length := len(text.before) + len(text.after)) + prompt > context
    ]
