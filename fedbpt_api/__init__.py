"""Tune one prompt for a language model that can only be queried, over texts that nobody shares.

    from fedbpt_api import tune_sync
    result = tune_sync("config.toml", run_dir="runs/first")

Importing this package reads no file, opens no connection and changes nothing outside itself.
"""

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
