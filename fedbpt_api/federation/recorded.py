"""What a party has answered, on disk: a server that is started again asks for nothing twice.

A run's questions follow from the answers before them, so a server that begins anew puts the same questions
in the same order; those that were answered are answered from the file, those that were not reach the party.
Each answer is on disk before it is used. The file holds sums, never a text.

It is a file of records (`scoring.record_file`): a hash of the question (16 bytes), then the answer.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from pathlib import Path
from typing import Final

from fedbpt_api.federation.remote import Exchange
from fedbpt_api.scoring.record_file import RecordFile, read_records

_KIND: Final = "file of answers"
_VERSION: Final = 1
_KEY: Final = 16  # bytes of a question's hash


class Recorded:
    """An `Exchange` that keeps answers.

    Args:
        path: The file; made if there is none.
        exchange: Who is asked what the file does not know.

    Raises:
        RunFolderError: The file is of another kind, is damaged, or cannot be written.
    """

    def __init__(self, path: Path, exchange: Exchange) -> None:
        self._exchange = exchange
        self._known: defaultdict[bytes, deque[bytes]] = defaultdict(deque)
        whole = None
        if path.exists():
            contents = read_records(path, _KIND, _VERSION)
            for payload in map(bytes, contents.payloads):
                self._known[payload[:_KEY]].append(payload[_KEY:])
            whole = contents.whole
        self._file = RecordFile(path, {"format": _KIND, "version": _VERSION}, whole)

    async def __call__(self, question: bytes) -> bytes:
        """The answer: one from before, or the party's.

        Raises:
            RunFolderError: It cannot be kept.
        """
        key = hashlib.blake2b(question, digest_size=_KEY).digest()
        if self._known[key]:
            return self._known[key].popleft()
        self._file.make_room()
        answer = await self._exchange(question)
        self._file.append(key + answer)
        return answer

    def close(self) -> None:
        self._file.close()
