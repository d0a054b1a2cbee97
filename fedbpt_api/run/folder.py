"""The run folder: what a run leaves on disk, as it goes. Numbers and prompts only, never a text.

settings.json  the resolved settings          versions.json  what took part
inputs.json    what tells whether data or configuration are still the same
rounds.jsonl   every round's numbers          prompts.jsonl  every prompt that all clients judged
estimate.json  what was foreseen, where an estimate was asked for
prompt.json    the best prompt so far, then the tuned one
result.json    the whole result               report.html    the same, to look at and to send
scores-N.journal  every score of client N, on disk before it was used
answers-NAME.records, parties.json  in their place, where parties are behind a network: what they answered
late.records   where a party's search was late: in which round its update joined
model.facts    what the model's server said beside scores

The journals, the facts, the settings and who was late are the run; everything else follows from them, and is
written anew when the run goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path

import orjson
from filelock import FileLock, Timeout

from fedbpt_api.errors import RunFolderError
from fedbpt_api.prompts.tuned import TunedPrompt, read_json, write_json
from fedbpt_api.run.config import Settings
from fedbpt_api.run.events import Assessed
from fedbpt_api.run.foreseen import Estimate
from fedbpt_api.run.inputs import Inputs
from fedbpt_api.run.report import ReportInput, write_report
from fedbpt_api.run.result import RoundRecord, RunResult

ESTIMATE = "estimate.json"
_LEFT = ("model.facts", "versions.json", "estimate.json", "rounds.jsonl", "prompts.jsonl", "prompt.json",
         "result.json", "report.html", "parties.json", "late.records")  # fmt: skip
_KEPT = ("scores-*.journal", "answers-*.records")
_LIMIT = 50_000_000  # bytes of any file that is read back


class RunFolder:
    """One run's folder, open for writing; nobody else can write to it meanwhile."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock
        self._rounds: FileIO | None = None
        self._versions: dict[str, str] = {}

    @classmethod
    def begin(cls, path: Path, settings: Settings, inputs: Inputs) -> RunFolder:
        """Make a new run folder, with what the run is asked to do.

        Raises:
            RunFolderError: There is a run already, or the folder cannot be written.
        """
        self = cls._locked(path, new=True)
        try:
            with _writing(path):
                write_json(path / "inputs.json", inputs.to_dict())
                write_json(path / "settings.json", settings.model_dump(mode="json"))
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open the folder of a run that is to go on.

        Raises:
            RunFolderError: There is no such run, it is being worked on, or the folder cannot be written.
        """
        if not (path / "settings.json").exists():
            raise RunFolderError(
                f"{path} holds no run that began", "name a run folder, or begin one with fedbpt tune"
            )
        return cls._locked(path, new=False)

    @classmethod
    def _locked(cls, path: Path, *, new: bool) -> RunFolder:
        lock = FileLock(path / ".lock", timeout=0)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            if new and any(any(path.glob(kept)) for kept in _KEPT):
                lock.release()
                raise RunFolderError(
                    f"{path} holds a run already",
                    f"go on with it (fedbpt resume {path}), or name another folder with --run-dir; "
                    "runs are never overwritten",
                )
            if new:  # what an attempt left that ended before anything was scored
                for name in _LEFT:
                    (path / name).unlink(missing_ok=True)
            return cls(path, lock)
        except Timeout:
            raise RunFolderError(
                f"{path} is being written by another process", "wait for it to end, or name another folder"
            ) from None
        except OSError as error:
            lock.release()
            raise RunFolderError(
                f"{path} cannot be written: {error.strerror}", "choose another --run-dir"
            ) from error

    def start(self) -> None:
        """Begin to write what follows from the journals, anew where there is something already."""
        with _writing(self.path):
            for name in ("result.json", "report.html", "prompts.jsonl"):
                (self.path / name).unlink(missing_ok=True)
            self._rounds = (self.path / "rounds.jsonl").open("wb", buffering=0)

    def write_estimate(self, estimate: Estimate) -> None:
        """What was foreseen, before anything is asked."""
        with _writing(self.path):
            write_json(self.path / ESTIMATE, estimate.to_dict())

    def write_versions(self, versions: dict[str, str]) -> None:
        """What takes part, known once the model is open."""
        self._versions = versions
        with _writing(self.path):
            write_json(self.path / "versions.json", versions)

    def append_round(self, record: RoundRecord) -> None:
        """Add a round, on disk when this returns."""
        assert self._rounds is not None, "the run was not started"
        with _writing(self.path):
            self._rounds.write(orjson.dumps(record.to_dict(), option=orjson.OPT_APPEND_NEWLINE))
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
            "scored": event.scored,
        }
        with _writing(self.path), (self.path / "prompts.jsonl").open("ab", buffering=0) as file:
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def write_prompt(self, prompt: TunedPrompt) -> None:
        """The best prompt so far; replaces the one before."""
        with _writing(self.path):
            prompt.save(self.path / "prompt.json")

    def write_result(self, result: RunResult, prompt: TunedPrompt, settings: Settings) -> None:
        """The result and its report."""
        shown = ReportInput(
            model=f"{prompt.model['name']} ({prompt.model['kind']})",
            template=prompt.template.source,
            label_words=dict(zip(prompt.label_words.labels, prompt.label_words.words, strict=True)),
            verbalizer=prompt.verbalizer.kind,
            settings=settings.model_dump(mode="json"),
            versions=self._versions,
            estimate=read_estimate(self.path),
        )
        with _writing(self.path):
            write_report(result, shown, self.path / "report.html")
            write_json(self.path / "result.json", result.to_dict())  # last: it says that the run is finished

    def close(self) -> None:
        if self._rounds is not None:
            self._rounds.close()
        self._lock.release()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What is written follows from the journals, so that a full disk costs nothing but time."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error.strerror}",
            "make room, then go on with `fedbpt resume`; what was paid for is kept",
        ) from error


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end; one that was stopped did not.

    Raises:
        RunFolderError: Its result is damaged.
    """
    return (folder / "result.json").exists() and read_result(folder).stopped != "cancelled"


def read_estimate(folder: Path) -> Estimate | None:
    """What was foreseen before the run; None where nobody asked.

    Raises:
        RunFolderError: The file is damaged.
    """
    path = folder / ESTIMATE
    return Estimate.from_dict(read_json(path, _LIMIT)) if path.exists() else None


def read_result(folder: Path) -> RunResult:
    """The result of a finished run, in the folder where it is now.

    Raises:
        RunFolderError: No such run, or its files are damaged.
    """
    result = RunResult.from_dict(read_json(folder / "result.json", _LIMIT))
    return replace(result, folder=str(folder))
