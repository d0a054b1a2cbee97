"""What a model's server said beside its scores, kept so that a run can go on, or be replayed, without asking.

Token ids of texts, texts of token ids, what the server is, and what was made of its tables. One file a run
(`record_file`), its records JSON: a key and a value. A text's ids are kept under a hash of the text that is
keyed by all of the run's texts, and masked by another such hash: only who has all the texts can find them,
or read them. Texts of ids are prompts' and words', never a client's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import orjson

from fedbpt_api.errors import BackendError, RunFolderError
from fedbpt_api.scoring.backend import Backend, BackendInfo, Prompt, Scores, TokenTable, Usage
from fedbpt_api.scoring.encode import Ids
from fedbpt_api.scoring.record_file import Contents, RecordFile, read_records

FORMAT: Final = "fedbpt-facts"
VERSION: Final = 1
T = TypeVar("T")


class Facts:
    """A file of facts, open for what comes and for what is there.

    Args:
        path: The file; made where it does not exist. None keeps facts in memory alone.
        secret: What hides texts.
        writable: Whether anything may be added.
    """

    def __init__(self, path: Path | None, secret: bytes, *, writable: bool = True) -> None:
        self.secret = secret
        self._known: dict[str, Any] = {}
        self._file: RecordFile | None = None
        if path is None:
            return
        header = {"format": FORMAT, "version": VERSION}
        new = writable and not path.exists()
        found = Contents(header, (), 0) if new else read_records(path, FORMAT, VERSION)
        for payload in found.payloads:
            try:
                key, value = orjson.loads(payload)
                self._known[str(key)] = value
            except (orjson.JSONDecodeError, TypeError, ValueError):
                raise RunFolderError(f"{path} is damaged", "restore it from a copy") from None
        if writable:
            self._file = RecordFile(path, header, None if new else found.whole)
            try:
                self._file.make_room()  # before a server is asked anything
            except BaseException:
                self._file.close()
                raise

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value; a key has one for ever."""
        if key not in self._known:
            self._known[key] = value
            if self._file is not None:  # asking again costs nothing, so the disk is not waited for
                self._file.append(orjson.dumps([key, value]), sync=False)

    async def remember(
        self,
        key: str,
        make: Callable[[], Awaitable[T]],
        to_dict: Callable[[T], Any],
        from_dict: Callable[[Any], T],
    ) -> T:
        """What `make` gave the first time."""
        if (known := self.get(key)) is not None:
            return from_dict(known)
        made = await make()
        self.put(key, to_dict(made))
        return made

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Remembering:
    """A backend whose words are kept, and which answers from them where they are known.

    Args:
        backend: Who is asked for what is not known; None in a replay.
        facts: Where it is kept.
        name: Tells it from the run's other backends.
    """

    def __init__(self, backend: Backend | None, facts: Facts, name: str) -> None:
        self._backend, self._facts, self._name = backend, facts, name
        known = known_info(facts, name)
        if known is None:
            known = self._live.info
            facts.put(f"{name} info", asdict(known))
        self._info = known
        self._texts: dict[str, Ids] = {}

    @property
    def info(self) -> BackendInfo:
        """As it was when the run began: what was decided by it stays decided."""
        return self._info

    def changes(self) -> list[str]:
        """What is different about the server since the run began, each a sentence."""
        if self._backend is None:
            return []
        old, new = self._info, self._backend.info
        pairs = {
            "backend": (old.kind, new.kind),
            "model": (old.model, new.model),
            "fingerprint": (old.fingerprint, new.fingerprint),
            "way of scoring": (old.details.get("way"), new.details.get("way")),
            "context": (old.context, new.context),
        }
        return [f"{self._name}: its {what} was {a}, it is {b}" for what, (a, b) in pairs.items() if a != b]

    @property
    def notice(self) -> str:
        return self._backend.notice if self._backend is not None else ""

    async def tokenize(self, text: str) -> tuple[int, ...]:
        if text in self._texts:
            return self._texts[text]
        key = f"{self._name} ids {self._hash(text, b'key')}"
        known = self._facts.get(key)
        if known is None:
            ids = await self._live.tokenize(text)
            self._facts.put(key, self._masked(ids, text))
        else:
            ids = self._masked(known, text)
            if self._info.learns and self._backend is not None:
                await self._backend.tokenize(text)
        self._texts[text] = ids
        return ids

    async def detokenize(self, ids: Sequence[int]) -> str:
        key = f"{self._name} text {','.join(map(str, ids))}"
        known = self._facts.get(key)
        if known is None:
            known = await self._live.detokenize(ids)
            self._facts.put(key, known)
        return str(known)

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        return await self._live.score(prompts, words)

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        return await self._live.top_words(prompts, k)

    async def token_table(self) -> TokenTable | None:
        return await self._live.token_table()

    async def aclose(self) -> None:
        if self._backend is not None:
            await self._backend.aclose()

    @property
    def _live(self) -> Backend:
        if self._backend is None:
            raise BackendError(
                "the run's folder does not hold what a replay of it needs",
                "was a file of it changed or lost?",
            )
        return self._backend

    def _hash(self, text: str, purpose: bytes) -> str:
        digest = hashlib.blake2b(text.encode(), digest_size=16, key=self._facts.secret, person=purpose)
        return digest.hexdigest()

    def _masked(self, ids: Sequence[int], text: str) -> Ids:
        """Ids that only who has the text can read; applied twice, the ids themselves."""
        stream = hashlib.shake_256(self._facts.secret + self._hash(text, b"mask").encode()).digest(
            4 * len(ids)
        )
        mask = np.frombuffer(stream, "<u4") >> 1
        return tuple((np.asarray(ids, dtype=np.uint32) ^ mask).tolist())


def known_info(facts: Facts, name: str) -> BackendInfo | None:
    """What a backend was when the run began; None where that is not known.

    Raises:
        RunFolderError: The facts are damaged.
    """
    known = facts.get(f"{name} info")
    try:
        return None if known is None else BackendInfo(**{**known, "inputs": tuple(known["inputs"])})
    except (TypeError, KeyError) as error:
        raise RunFolderError(f"the run's facts are damaged: {error}", "restore them from a copy") from None
