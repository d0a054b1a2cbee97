"""Which rounds late searches joined, on disk: the run folder's `late.records`, once anybody was late."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Final

import orjson

from fedbpt_api.errors import RunFolderError
from fedbpt_api.federation.latecomers import LateRound
from fedbpt_api.scoring.record_file import RecordFile, read_records

NAME: Final = "late.records"
_KIND: Final = "late searches"
_VERSION: Final = 1


class LateRecords:
    """The rounds of a run with late searches; a `LateLog`.

    Args:
        known: Folder of the run whose rounds are followed; None knows of none.
        folder: Where new ones are kept; None keeps nothing.

    Raises:
        RunFolderError: What is known is damaged.
    """

    def __init__(self, known: Path | None, folder: Path | None) -> None:
        self._path = folder / NAME if folder is not None else None
        self._known: dict[int, LateRound] = {}
        self._file: RecordFile | None = None
        self._whole: int | None = None
        if known is None or not (known / NAME).exists():
            return
        contents = read_records(known / NAME, _KIND, _VERSION)
        try:
            for payload in contents.payloads:
                told = orjson.loads(payload)
                entry = LateRound(int(told["round"]), tuple(told["joined"]), tuple(told["waiting"]))
                self._known[entry.round] = entry
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise RunFolderError(f"{known / NAME} is damaged", "restore it from a copy") from error
        if known == folder:
            self._whole = contents.whole

    def of(self, number: int) -> LateRound | None:
        return self._known.get(number)

    def keep(self, entry: LateRound) -> None:
        self._known[entry.round] = entry
        if self._path is None:
            return
        if self._file is None:
            self._file = RecordFile(self._path, {"format": _KIND, "version": _VERSION}, self._whole)
        self._file.append(orjson.dumps(asdict(entry)))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
