"""A run's use of the shared store: whether there is one, and which facts make an answer a server's own."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import orjson

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import Backend, BackendInfo, Prompt
from fedbpt_api.scoring.store import Server, Shelf, Store, StoreError
from fedbpt_api.scoring.store_file import folder, why_off
from fedbpt_api.scoring.trie import LabelTrie

_MEASURED: Final = frozenset({"noise", "requests of the probe", "cache block"})
"""Details that come out anew at every opening, and change no score."""

_MATTER: Final = ("fedbpt-api", "xllamacpp")  # packages whose release may change the digits of a score
_TEXT: Final = "At 7:30 the caf\u00e9's door was open, and 12 boats lay at the pier. Was it a good day?"
_WORDS: Final = (" yes", " no", " good", " bad")
_APART: Final = 0.05  # nats, beside six times the server's noise: a change of weights or precision is more


class Shelves:
    """The store as one run sees it: a shelf a server. Without a store every shelf is None.

    Args:
        store: The store, or None.
        scope: See `Store.shelf`.
        warnings: Where sentences for people go.
        charged: See `Shelf`.
    """

    def __init__(self, store: Store | None, scope: bytes, warnings: list[str], charged: bool = False) -> None:
        self._store, self._scope, self._warnings, self._charged = store, scope, warnings, charged

    @classmethod
    async def open(cls, wanted: bool, scope: bytes, warnings: list[str], charged: bool = False) -> Shelves:
        """Open the store where it is wanted, allowed and sound; say why where only the first is true."""
        store = None
        if wanted and (reason := why_off()):
            warnings.append(f"cache.scores: the shared store is not used, as {reason}")
        elif wanted:
            try:
                store = await asyncio.to_thread(Store, folder(), warnings)
            except StoreError as error:
                warnings.append(f"{error}\n  The run goes on without it.")
        return cls(store, scope, warnings, charged)

    async def of(self, live: Backend, options: Mapping[str, object], trie: LabelTrie) -> Shelf | None:
        """The shelf of a server, if it still answers as it did when it was last used.

        Names can lie: a server that is started again with other weights may say the same of itself. So it is
        asked one fixed question, whose answer is in the store too; like the questions of a probe it is on
        no budget.

        Args:
            live: The server itself.
            options: The keys of its settings.
            trie: The run's label words.
        """
        if self._store is None:
            return None
        try:
            ids = await live.tokenize(_TEXT)
            tokens = [await live.tokenize(word) for word in _WORDS]
            server = server_of(live.info, options, trie, [ids, *tokens])
            shelf = await asyncio.to_thread(self._store.shelf, server, self._scope)
            shelf.charged = self._charged
            words = tuple(dict.fromkeys(token[0] for token in tokens if token))[: live.info.max_words]
            if len(words) < 2 or await _agrees(live, shelf, Prompt(ids), words):
                return shelf
        except (StoreError, BackendError) as error:
            self._warnings.append(f"{error}\n  The run goes on without the shared store.")
            return None
        self._warnings.append(
            f"{live.info.model} ({server.about['url']}) answers otherwise than when the shared store was "
            "filled, though it has the same names: the store is not used\n  -> if the model has changed for "
            f"good, remove its old answers: fedbpt cache prune --server {shelf.number}"
        )
        return None

    async def aclose(self) -> None:
        """Wait until everything is written."""
        if self._store is not None:
            await asyncio.to_thread(self._store.close)


def scope_of(secret: bytes, settings: Mapping[str, Any]) -> bytes:
    """What lists of probable words depend on: all that a run says to its servers before it asks for one.

    Args:
        secret: A hash of all texts.
        settings: The run's: prompts, template and labels count.
    """
    said = orjson.dumps([settings[key] for key in ("prompts", "template", "labels")])
    return hashlib.blake2b(secret + said, digest_size=16).digest()


def server_of(
    info: BackendInfo, options: Mapping[str, object], trie: LabelTrie, tokenized: list[tuple[int, ...]]
) -> Server:
    """The facts that an answer depends on.

    Args:
        info: What the server says of itself.
        options: The keys of its settings, such as the system message of a chat.
        trie: The run's label words: where they begin alike, a question names them by their numbers.
        tokenized: Token ids of fixed texts.
    """
    details = {name: value for name, value in info.details.items() if name not in _MEASURED}
    url = details.pop("url", "")
    about = details | {
        "kind": info.kind,
        "model": info.model,
        "fingerprint": info.fingerprint,
        "way": details.get("way", ""),
        "url": _public(url),
    }
    more = {
        "url": url,
        "options": dict(options),
        "tokenizer": tokenized,
        "label words": trie.ids if trie.shared else (),
        "packages": {name: _version(name) for name in _MATTER},
    }
    return Server(about, more)


async def _agrees(live: Backend, shelf: Shelf, prompt: Prompt, words: tuple[int, ...]) -> bool:
    """Whether the fixed question has the answer that it had; kept where it is asked for the first time."""
    scores = await live.score([prompt], words)
    row = np.where(scores.exact, scores.logprobs, -scores.logprobs).astype(np.float32)
    key = shelf.key(("words", words), prompt, "check")
    (before,) = shelf.find([key])
    if not isinstance(before, np.ndarray):
        shelf.keep([key], row)
        return True
    both = (before <= 0.0) & (row[0] <= 0.0)  # no bounds
    return bool((np.abs(before - row[0])[both] <= _APART + 6.0 * live.info.noise).all())


def _public(url: str) -> str:
    """An address without the name and password that may stand in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
