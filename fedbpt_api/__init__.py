"""Tune one prompt for a language model that can only be queried, over texts that nobody shares.

    from fedbpt_api import tune_sync
    result = tune_sync("config.toml", run_dir="runs/first")

Importing this package reads no file, opens no connection and changes nothing outside itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedbpt_api.api import make_tuner, resume, resume_sync, run_sync, stream, tune, tune_sync
    from fedbpt_api.errors import (
        BackendError,
        ConfigError,
        FedbptError,
        QuorumError,
        QuotaError,
        RunFolderError,
    )
    from fedbpt_api.prompts.tuned import TunedPrompt
    from fedbpt_api.run.classify import Classifier, Prediction
    from fedbpt_api.run.config import Settings, build_settings, load_settings, load_task
    from fedbpt_api.run.events import Assessed, Event, Finished, RoundDone, Started, Status, Testing, Warned
    from fedbpt_api.run.replay import Replay, replay
    from fedbpt_api.run.result import RoundRecord, RunResult, TestReport
    from fedbpt_api.run.tune import Tuner
    from fedbpt_api.task import ClientData, Example, LabelWords, Task, Template
    from fedbpt_api.verbalizer import Verbalizer

__version__ = "0.1.0"

__all__ = [
    "Assessed",
    "BackendError",
    "Classifier",
    "ClientData",
    "Committee",
    "ConfigError",
    "Event",
    "Example",
    "FedbptError",
    "Finished",
    "LabelWords",
    "Prediction",
    "QuorumError",
    "QuotaError",
    "Replay",
    "RoundDone",
    "RoundRecord",
    "RunFolderError",
    "RunResult",
    "Settings",
    "Started",
    "Status",
    "Task",
    "Template",
    "TestReport",
    "Testing",
    "TunedPrompt",
    "Tuner",
    "Verbalizer",
    "Warned",
    "build_settings",
    "load_settings",
    "load_task",
    "make_tuner",
    "replay",
    "resume",
    "resume_sync",
    "run_sync",
    "stream",
    "tune",
    "tune_sync",
]

_PLACES = {
    "Assessed": "fedbpt_api.run.events",
    "BackendError": "fedbpt_api.errors",
    "Classifier": "fedbpt_api.run.classify",
    "ClientData": "fedbpt_api.task",
    "Committee": "fedbpt_api.verbalizer",
    "ConfigError": "fedbpt_api.errors",
    "Event": "fedbpt_api.run.events",
    "Example": "fedbpt_api.task",
    "FedbptError": "fedbpt_api.errors",
    "Finished": "fedbpt_api.run.events",
    "LabelWords": "fedbpt_api.task",
    "Prediction": "fedbpt_api.run.classify",
    "QuorumError": "fedbpt_api.errors",
    "QuotaError": "fedbpt_api.errors",
    "Replay": "fedbpt_api.run.replay",
    "RoundDone": "fedbpt_api.run.events",
    "RoundRecord": "fedbpt_api.run.result",
    "RunFolderError": "fedbpt_api.errors",
    "RunResult": "fedbpt_api.run.result",
    "Settings": "fedbpt_api.run.config",
    "Started": "fedbpt_api.run.events",
    "Status": "fedbpt_api.run.events",
    "Task": "fedbpt_api.task",
    "Template": "fedbpt_api.task",
    "TestReport": "fedbpt_api.run.result",
    "Testing": "fedbpt_api.run.events",
    "TunedPrompt": "fedbpt_api.prompts.tuned",
    "Tuner": "fedbpt_api.run.tune",
    "Verbalizer": "fedbpt_api.verbalizer",
    "Warned": "fedbpt_api.run.events",
    "build_settings": "fedbpt_api.run.config",
    "load_settings": "fedbpt_api.run.config",
    "load_task": "fedbpt_api.run.config",
    "make_tuner": "fedbpt_api.api",
    "replay": "fedbpt_api.run.replay",
    "resume": "fedbpt_api.api",
    "resume_sync": "fedbpt_api.api",
    "run_sync": "fedbpt_api.api",
    "stream": "fedbpt_api.api",
    "tune": "fedbpt_api.api",
    "tune_sync": "fedbpt_api.api",
}
"""Where the names are: a module is imported when a name of it is first used, so that parts stay light."""


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
