"""The run folder: what a run leaves on disk, as it goes. Numbers and prompts only, never a text.

settings.json  the resolved settings          versions.json  what took part
rounds.jsonl   every round's numbers          prompts.jsonl  every prompt that all clients judged
estimate.json  what was foreseen, where an estimate was asked for
prompt.json    the best prompt so far, then the tuned one
result.json    the whole result               report.html    the same, to look at and to send
scores-N.journal  every score of client N, on disk before it was used
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import orjson

from fedbpt_api.errors import RunFolderError
from fedbpt_api.prompts.tuned import TunedPrompt, read_json, write_json
from fedbpt_api.run.config import Settings
from fedbpt_api.run.events import Assessed
from fedbpt_api.run.foreseen import Estimate
from fedbpt_api.run.report import ReportInput, write_report
from fedbpt_api.run.result import RoundRecord, RunResult

ESTIMATE = "estimate.json"
_LIMIT = 50_000_000  # bytes of any file that is read back


class RunFolder:
    """One run's folder, open for writing."""

    def __init__(self, path: Path, rounds: BinaryIO) -> None:
        self.path = path
        self._rounds = rounds
        self._versions: dict[str, str] = {}

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a new run folder.

        Raises:
            RunFolderError: There is a run already, or the folder cannot be written.
        """
        if (path / "settings.json").exists() or (path / "rounds.jsonl").exists():
            raise RunFolderError(
                f"{path} holds a run already",
                "name another folder with --run-dir; runs are never overwritten",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            return cls(path, (path / "rounds.jsonl").open("ab"))
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be written: {error.strerror}", "choose another --run-dir"
            ) from error

    def write_start(self, settings: Settings, versions: dict[str, str]) -> None:
        """What is known before the first request."""
        self._versions = versions
        write_json(self.path / "settings.json", settings.model_dump(mode="json"))
        write_json(self.path / "versions.json", versions)

    def append_round(self, record: RoundRecord) -> None:
        """Add a round, on disk when this returns."""
        self._rounds.write(orjson.dumps(record.to_dict(), option=orjson.OPT_APPEND_NEWLINE))
        self._rounds.flush()
        os.fsync(self._rounds.fileno())

    def append_prompt(self, event: Assessed) -> None:
        """Add a prompt that was assessed on all clients."""
        line = {
            "prompt": event.prompt,
            "origin": event.origin,
            "train_loss": event.train_loss,
            "dev_loss": event.dev_loss,
            "dev_accuracy": event.dev_accuracy,
            "loss": event.loss,
        }
        with (self.path / "prompts.jsonl").open("ab") as file:
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def write_prompt(self, prompt: TunedPrompt) -> None:
        """The best prompt so far; replaces the one before."""
        prompt.save(self.path / "prompt.json")

    def write_result(self, result: RunResult, prompt: TunedPrompt, settings: Settings) -> None:
        """The result and its report."""
        write_json(self.path / "result.json", result.to_dict())
        shown = ReportInput(
            model=f"{prompt.model['name']} ({prompt.model['kind']})",
            template=prompt.template.source,
            label_words=dict(zip(prompt.label_words.labels, prompt.label_words.words, strict=True)),
            verbalizer=prompt.verbalizer.kind,
            settings=settings.model_dump(mode="json"),
            versions=self._versions,
            estimate=read_estimate(self.path),
        )
        write_report(result, shown, self.path / "report.html")

    def close(self) -> None:
        self._rounds.close()


def read_estimate(folder: Path) -> Estimate | None:
    """What was foreseen before the run; None where nobody asked.

    Raises:
        RunFolderError: The file is damaged.
    """
    path = folder / ESTIMATE
    return Estimate.from_dict(read_json(path, _LIMIT)) if path.exists() else None


def read_result(folder: Path) -> RunResult:
    """The result of a finished run.

    Raises:
        RunFolderError: No such run, or its files are damaged.
    """
    return RunResult.from_dict(read_json(folder / "result.json", _LIMIT))
