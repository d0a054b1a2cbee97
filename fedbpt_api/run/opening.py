"""Opening a run: backends, token ids of all texts, clients with their budgets; checks before any cost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from fedbpt_api.errors import ConfigError
from fedbpt_api.federation.client import Client
from fedbpt_api.run.config import BackendSettings, BudgetSettings, Settings
from fedbpt_api.run.parties import Keep, Parties
from fedbpt_api.run.prices import price_of
from fedbpt_api.run.stored import Shelves, scope_of
from fedbpt_api.scoring.backend import Backend
from fedbpt_api.scoring.budget import Budget, Limits
from fedbpt_api.scoring.encode import EncodedText, Encoder
from fedbpt_api.scoring.facts import Facts, Remembering, known_info
from fedbpt_api.scoring.journal import Journal, secret_of
from fedbpt_api.scoring.record_file import allow_open
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.scoring.store import Shelf
from fedbpt_api.scoring.trie import label_trie, remarks
from fedbpt_api.task import Task, validate

_ROOM = 48  # tokens that a prompt may add to the longest starting prompt


async def open_parties(
    settings: Settings,
    task: Task,
    stopping: Callable[[], bool],
    keep: Keep | None = None,
    first: int = 0,
) -> Parties:
    """Open backends, tokenise every text and check what only the model can tell.

    Args:
        settings: The run's.
        task: Texts, template and label words.
        stopping: Whether the user has asked the run to stop.
        keep: Where answers are kept and, for a run that goes on, found.
        first: Number of the first client among all of the federation.

    Raises:
        ConfigError: Label words that cannot be told apart, texts longer than the context, clients' backends
            that serve different models, a server that is another than when the run began. Nothing has
            been scored.
    """
    keep = keep or Keep()
    warnings = validate(task)
    secrets = [secret_of(*(rows for _, rows in data.parts())) for data in task.clients]
    opening = Opening(settings, keep, facts_of(keep, secrets))
    try:
        parties, shelf, longest_prompt = await opening.server(task, stopping, warnings)
        backend, trie = parties.backend, parties.trie
        own = {client.name: client for client in settings.clients}
        problems: list[str] = []
        for number, data in enumerate(task.clients, start=first):
            mine = own.get(data.name)
            served, its_shelf = backend, shelf
            if mine is not None and mine.backend is not None:
                own_server = await opening.open(mine.backend, f"server of {data.name}")
                served = trie.over(own_server)
                if await label_trie(own_server, task.label_words) != trie:
                    problems.append(f"clients.{data.name}.backend: its model has another vocabulary")
                elif keep.ended is None:
                    its_shelf = await parties.shelves.of(opening.opened[-1], mine.backend.options, trie)
            encoder = Encoder(served, task.template, task.label_words)
            sets = {part: await encoder.labelled(rows, part) for part, rows in data.parts()}
            texts: dict[str, tuple[EncodedText, ...]] = {p: encoded.texts for p, encoded in sets.items()}
            for name, encoded_texts in texts.items():
                where = f"clients.{data.name}.{name}"
                problems += _too_long(encoded_texts, where, served.info.context, longest_prompt)
            charged = settings.price if mine is None or mine.backend is None else None
            charged = mine.price if mine is not None and mine.price is not None else charged
            budget = Budget(limits_of(mine.budget if mine else None), parties.budget)
            budget.price = price_of(charged, served.info)
            scorer = Scorer(served, budget, stopping, shelf=its_shelf)
            parties.clients.append(Client(data.name, number, settings.seed, scorer, **sets))
        if problems:
            raise ConfigError(problems, "shorten these texts, or raise backend.context")
        currencies = {p.currency for c in parties.clients if (p := c.budget.price) is not None}
        if len(currencies) > 1:
            raise ConfigError(
                f"price: the files of prices name several currencies ({', '.join(sorted(currencies))})",
                "convert the prices to one",
            )
        parties.room = min(client.info.context - client.longest for client in parties.local)
        if keep.folder is not None:
            allow_open(len(secrets))
            for number, (client, secret) in enumerate(zip(parties.local, secrets, strict=True)):
                place = keep.folder / f"scores-{number}.journal"
                client.scorer.journal = Journal(place, secret, keep.ended, counted=keep.counted)
                parties.journals.append(client.scorer.journal)
    except BaseException:
        await opening.aclose()
        raise
    return parties


@dataclass
class Opening:
    """Opens a run's backends.

    Attributes:
        settings: The run's.
        keep: Its.
        facts: What servers have said.
        opened: Every backend that was opened.
        parties: What has been opened so far.
    """

    settings: Settings
    keep: Keep
    facts: Facts
    opened: list[Backend] = field(default_factory=list)
    parties: Parties | None = None

    async def server(
        self, task: Task, stopping: Callable[[], bool], warnings: list[str]
    ) -> tuple[Parties, Shelf | None, int]:
        """The run's own server, and all that can be known before clients are.

        Returns:
            The parties, none so far; the server's shelf; and tokens that prompts may have.
        """
        settings, keep = self.settings, self.keep
        wanted = settings.cache.scores and keep.ended is None
        scope = scope_of(self.facts.secret, settings.model_dump())
        shelves = await Shelves.open(wanted, scope, warnings, settings.cache.charged)
        try:
            plain = await self.open(settings.backend, "server")
            trie = await label_trie(plain, task.label_words)
            warnings += await remarks(plain, trie)
            backend, budget = trie.over(plain), Budget(limits_of(settings.budget))
            parties = Parties(
                backend, task, trie, budget, [], self.opened, stopping, warnings, facts=self.facts
            )
            parties.shelves = shelves
            prompts = {text: await backend.tokenize(text) for text in settings.prompts}
            parties.start_ids = prompts[settings.prompts[0]]
            shelf = await shelves.of(self.opened[-1], settings.backend.options, trie) if self.opened else None
        except BaseException:
            await shelves.aclose()
            raise
        self.parties = parties
        return parties, shelf, max(map(len, prompts.values())) + _ROOM

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
        if self.settings.search.space == "soft" and not (live.info.soft and await live.token_table()):
            raise ConfigError(
                f"search.space: {live.info.model} ({settings.kind}) takes no continuous prompts",
                "use search.space = 'codebook', or a vLLM that was started with --enable-prompt-embeds and "
                "whose model folder is named in backend.weights",
            )
        return backend

    async def aclose(self) -> None:
        """Close what was opened, where the run does not begin."""
        if self.parties is not None:
            await self.parties.aclose()
        else:
            self.facts.close()
            for backend in self.opened:
                await backend.aclose()


def facts_of(keep: Keep, secrets: Sequence[bytes]) -> Facts:
    """What is known of a run's servers."""
    path = keep.folder / "model.facts" if keep.folder is not None else None
    digest = hashlib.blake2b(b"".join(secrets)).digest()
    return keep.facts or Facts(path, digest, writable=keep.ended is None)


def limits_of(budget: BudgetSettings | None) -> Limits:
    """A budget's limits; none where there is no budget."""
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
