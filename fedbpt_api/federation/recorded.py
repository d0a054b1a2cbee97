"""What parties have answered, on disk: a server that is started again asks for nothing twice.

A run's questions follow from the answers before them, so a server that begins anew puts the same questions
in the same order; those that were answered are answered from the files, those that were not reach the
parties. Each answer is on disk before it is used. That a party did not answer, or only that it failed, is
written down once the run goes on without it: it then does so again. A run that ends for want of answers
keeps none of that, and asks again when it is started again. The files hold sums, never a text.

A file of records (`scoring.record_file`) a party: a hash of the question (16 bytes), then the answer, or
nothing where there was none.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.envelope import opened_answer
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.scoring.record_file import RecordFile, read_records

_KIND: Final = "file of answers"
_VERSION: Final = 1
_KEY: Final = 16  # bytes of a question's hash
_FAILURES: Final = ("failed", "quota", "stopped")  # answers that are none: another time may bring one


@dataclass
class Records:
    """The files of a run's parties.

    Args:
        folder: Where they are, or will be.
        opened: Whether the run goes on without those who do not answer. Until then it does not begin without
            them, and who has not answered is asked again when it is started again.
    """

    folder: Path
    opened: bool = False
    _open: dict[str, Recorded] = field(default_factory=dict)

    def of(self, name: str, exchange: Exchange) -> Recorded:
        """A party's exchange, with its answers kept in `answers-NAME.records`.

        Raises:
            RunFolderError: The file is of another kind, is damaged, or cannot be written.
        """
        self._open[name] = Recorded(self.folder / f"answers-{name}.records", exchange)
        return self._open[name]

    def go_on(self, names: Collection[str] | None = None) -> None:
        """Write down what these parties, or all, have not answered: the run goes on without that."""
        if self.opened:
            all_of_them = names is None or not set(names) <= set(self._open)  # or all as one
            for name, party in self._open.items():
                if all_of_them or name in (names or ()):
                    party.go_on()

    def forget(self, name: str) -> None:
        """Ask a party anew what it is when the run is started again, if it has said no more than that.

        For one that cannot take part as it is: its user may mend that.
        """
        self._open[name].forget()

    def close(self) -> None:
        for party in self._open.values():
            party.close()
        self._open.clear()


class Recorded:
    """An `Exchange` that keeps answers; made by `Records.of`."""

    def __init__(self, path: Path, exchange: Exchange) -> None:
        self._exchange = exchange
        self._missed: list[bytes] = []
        self._known: defaultdict[bytes, deque[bytes]] = defaultdict(deque)
        whole, self._kept = None, 0
        if path.exists():
            contents = read_records(path, _KIND, _VERSION)
            for payload in map(bytes, contents.payloads):
                self._known[payload[:_KEY]].append(payload[_KEY:])
            whole, self._kept = contents.whole, len(contents.payloads)
        self._path = path
        self._file = RecordFile(path, {"format": _KIND, "version": _VERSION}, whole)

    async def __call__(self, question: bytes) -> bytes:
        """The answer: one from before, or the party's.

        Raises:
            FedbptError: It did not answer, then or now.
            RunFolderError: Its answer cannot be kept.
        """
        key = hashlib.blake2b(question, digest_size=_KEY).digest()
        if self._known[key]:
            answer = self._known[key].popleft()
            if not answer:
                raise FedbptError("no answer, when it was asked first")
            return answer
        self._file.make_room()
        try:
            answer = await self._exchange(question)
        except (FedbptError, TimeoutError, asyncio.CancelledError):
            self._missed.append(key)
            raise
        if not answer:  # which would be read as none when the run goes on
            self._missed.append(key)
            raise FedbptError("an empty answer")
        if _failed(answer):
            self._missed.append(key + answer)
        else:
            self._missed = [payload for payload in self._missed if payload[:_KEY] != key]  # asked again
            self._file.append(key + answer)
            self._kept += 1
        return answer

    def go_on(self) -> None:
        """Write down what was not answered."""
        for payload in self._missed:
            self._file.append(payload)
        self._missed.clear()

    def forget(self) -> None:
        """Drop the only answer there is; more are kept."""
        if self._kept == 1:
            self._file.close()
            self._path.unlink()

    def close(self) -> None:
        self._file.close()


def _failed(answer: bytes) -> bool:
    """Whether an answer says no more than that there is none."""
    try:
        return opened_answer(answer).kind in _FAILURES
    except MessageError:
        return True
