"""Opening a run whose parties are behind a network: the server has no texts, and learns counts of them."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from fedbpt_api.errors import ConfigError, FedbptError, RunFolderError
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.host import task_envelope
from fedbpt_api.federation.recorded import Records
from fedbpt_api.prompts.tuned import read_json, write_json
from fedbpt_api.run.config import Settings
from fedbpt_api.run.enclosed import outside_problems, reached
from fedbpt_api.run.opening import Opening, facts_of
from fedbpt_api.run.parties import Keep, Parties, PartiesOpener
from fedbpt_api.run.public import public_of
from fedbpt_api.run.schema import PARTY_NAME
from fedbpt_api.task import Task

Find = Callable[[tuple[str, ...]], Awaitable[Mapping[str, Exchange]]]
"""Finds parties by their names; without names, all that there are to be."""

_LIMIT = 1_000_000  # bytes
_NAME = re.compile(PARTY_NAME)


def opener(find: Find) -> PartiesOpener:
    """Opens runs with parties that `find` finds."""

    async def open_apart(settings: Settings, task: Task, stopping: Callable[[], bool], keep: Keep) -> Parties:
        if keep.folder is None:
            raise RunFolderError("parties behind a network need a run folder", "name one")
        problems = outside_problems(settings)
        if problems:
            raise ConfigError(problems)
        run, names = _known(keep.folder)
        listed = settings.parties if isinstance(settings.parties, tuple) else ()
        exchanges = await find(names or listed)
        if wrong := [name for name in exchanges if not _NAME.fullmatch(name)]:
            raise FedbptError(f"no party can be called {wrong[0]!r}", "letters, digits, - and _ make a name")
        if not names:
            names = listed or tuple(sorted(exchanges))
            write_json(keep.folder / "parties.json", {"run": run, "names": names})
        opening = Opening(settings, keep, facts_of(keep, []))
        records = Records(keep.folder)
        try:
            parties, _, longest_prompt = await opening.server(task, stopping, [])
            parties.apart, parties.names = True, tuple(names)
            parties.closing.append(records.close)
            public = public_of(settings)
            tasks = {name: task_envelope(run, number, public) for number, name in enumerate(names)}
            kept = {name: records.of(name, exchanges[name]) for name in names}
            rooms = []
            for party in await reached(settings, parties, kept, tasks):
                found = len(problems)
                rooms.append(party.info.context - party.facts.longest)
                if rooms[-1] < longest_prompt:
                    room = f"{rooms[-1]} tokens for a prompt of {longest_prompt}"
                    problems.append(f"{party.name}: its longest text leaves {room}")
                if party.facts.tokens != parties.trie.tokens:
                    problems.append(f"{party.name}: its model has another vocabulary")
                if len(party.facts.labels) > len(task.label_words.labels):
                    problems.append(f"{party.name}: it counts other labels")
                if len(problems) > found and party.name in kept:
                    records.forget(party.name)
                party.channel.apart = True
                parties.clients.append(party)
            if problems:
                raise ConfigError(problems)
            parties.room = min(rooms)
            records.opened, parties.go_on = True, records.go_on
        except BaseException:
            records.close()
            await opening.aclose()
            raise
        return parties

    return open_apart


def _known(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The run's name and its parties', where it has begun before; a new name otherwise.

    Raises:
        RunFolderError: The file is damaged.
    """
    path = folder / "parties.json"
    if not path.exists():
        return secrets.token_hex(8), ()
    data = read_json(path, _LIMIT)
    names = tuple(str(name) for name in data["names"])
    if Counter(names).most_common(1)[0][1] > 1:
        raise RunFolderError(f"{path} is damaged", "restore it from a copy")
    return str(data["run"]), names
