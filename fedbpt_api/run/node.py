"""A party's own side of a federation: its settings, read only there, and the task that it opens for it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, ValidationError

from fedbpt_api.errors import ConfigError
from fedbpt_api.federation.draws import own_draws
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.federation.responder import Responder
from fedbpt_api.prompts.tuned import read_json, write_json
from fedbpt_api.run.config import build_settings, load_task
from fedbpt_api.run.config_problems import describe
from fedbpt_api.run.enclosed import LEAST_BATCH, OwnSide, responder_of
from fedbpt_api.run.opening import open_parties
from fedbpt_api.run.parties import Keep, Parties
from fedbpt_api.run.public import not_public
from fedbpt_api.run.schema import (
    BackendSettings,
    BudgetSettings,
    ColumnsSettings,
    DataPath,
    PartyName,
    Positive,
    PositiveFloat,
    PriceSettings,
    PrivacySettings,
    Section,
)
from fedbpt_api.scoring.budget import Budget

_LIMIT = 1_000_000  # bytes of the list of runs
_RUN = re.compile(r"[0-9a-zA-Z_-]{1,64}")


class NodePrivacySettings(Section):
    """What a party insists on, whatever the task says.

    Attributes:
        needs: The `privacy.mode` that a task must have; "none" takes part in any.
        epsilon: Largest epsilon that a task with noise may promise.
        delta: Largest delta that it may.
        unit: What noise must protect; where "text", all texts together will do as well.
        runs: Most runs with noise that this party takes part in, ever, as its folder remembers them: what
            they promise adds up.
    """

    needs: Literal["none", "sums", "gaussian"] = "none"
    epsilon: PositiveFloat | None = None
    delta: PositiveFloat | None = None
    unit: Literal["text", "party"] | None = None
    runs: Positive | None = None

    def problem(self, task: PrivacySettings) -> str:
        """Why a task will not do; empty where it will."""
        if self.needs not in ("none", task.mode):
            return (
                f"privacy.needs: this party takes part with {self.needs!r} only, the task has {task.mode!r}"
            )
        noisy = task.mode == "gaussian"
        for key, most in (("epsilon", self.epsilon), ("delta", self.delta)):
            if most is not None and (not noisy or getattr(task, key) > most):
                promised = f"{getattr(task, key):g}" if noisy else "none"
                return f"privacy.{key}: this party allows {most:g}, and the task promises {promised}"
        if self.unit is not None and (not noisy or (self.unit, task.unit) == ("party", "text")):
            protects = repr(task.unit) if noisy else "nothing with noise"
            return f"privacy.unit: this party wants {self.unit!r} protected, and the task protects {protects}"
        return ""


def enter(place: Path, run: str, most: int | None) -> None:
    """Count a run with noise, once; `place` remembers the names of all.

    Raises:
        ConfigError: It would be one more than a party allows.
    """
    known = [str(name) for name in read_json(place, _LIMIT)["runs"]] if place.exists() else []
    if run in known:
        return
    if most is not None and len(known) >= most:
        raise ConfigError(
            f"privacy.runs: this party has taken part in {len(known)} runs with noise and allows {most}; "
            f"{place} names them",
            "allow more in this party's file, if its texts may be told more of",
        )
    write_json(place, {"runs": [*known, run]})


class NodeSettings(Section):
    """What a party decides itself.

    Attributes:
        name: What it is called in tables and reports; everybody sees it.
        folder: Where its answers are kept, a folder a run.
        train, dev, test: Its files.
        columns: Which column or field of them holds what.
        backend: The model server that it asks.
        budget: What it will spend on a run at most, the test apart.
        price: What its server charges.
        privacy: What it insists on.
    """

    name: PartyName
    folder: DataPath = Field(default=Path("fedbpt-node"), validate_default=True)
    train: DataPath
    dev: DataPath | None = None
    test: DataPath | None = None
    columns: ColumnsSettings = ColumnsSettings()
    backend: BackendSettings = BackendSettings()
    budget: BudgetSettings | None = None
    price: PriceSettings | None = None
    privacy: NodePrivacySettings = NodePrivacySettings()


def load_node(path: Path) -> NodeSettings:
    """Read a party's settings; relative paths in them start from the file's folder.

    Raises:
        ConfigError: It cannot be read, or with every problem of what it says.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{path}: it cannot be read: {error}", "write one from node.example.toml"
        ) from error
    try:
        node = NodeSettings.model_validate(values, context={"base": path.resolve().parent})
    except ValidationError as error:
        problems = [f"{path}: {describe(detail, NodeSettings)}" for detail in error.errors(include_url=False)]
        raise ConfigError(problems, "put this right and start again") from error
    files = {"train": node.train, "dev": node.dev, "test": node.test}
    missing = [
        f"{path}: {part}: no file {file}" for part, file in files.items() if file and not file.is_file()
    ]
    if missing:
        raise ConfigError(missing, "correct the path or create it")
    return node


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task that a party has opened; `federation.host.Opened`."""

    parties: Parties
    responder: Responder

    async def aclose(self) -> None:
        await self.parties.aclose()


async def open_task(node: NodeSettings, told: Mapping[str, Any]) -> OpenTask:
    """Open a party's texts and server for the task that it is told (`federation.host.task_envelope`).

    Raises:
        MessageError: It is told no task.
        ConfigError: Its files do not fit the task, or the task not what it insists on; or its server is
            another than when the run began.
        FedbptError: Its server cannot be reached.
    """
    run, number, public = told.get("run"), told.get("number"), told.get("settings")
    if not isinstance(run, str) or not _RUN.fullmatch(run) or type(number) is not int or number < 0:
        raise MessageError("a task without the name of a run, or without a number")
    if not isinstance(public, dict) or (extra := not_public(public)):
        raise MessageError(f"a task that tells what it must not: {', '.join(extra) if public else 'nothing'}")
    own = node.model_dump(mode="json", exclude_none=True)
    client = {key: own[key] for key in ("name", "train", "dev", "test", "budget") if key in own}
    values = {**public, **{key: own[key] for key in ("columns", "backend", "price") if key in own}}
    settings = build_settings({**values, "clients": [client]}, source="task")
    if problem := node.privacy.problem(settings.privacy):
        raise ConfigError(problem, "ask the coordinator for another task, or allow it in this party's file")
    task = load_task(settings)
    folder = node.folder / run
    folder.mkdir(parents=True, exist_ok=True)
    draws = own_draws(folder / "draws.secret") if settings.privacy.mode != "none" else ()
    parties = await open_parties(settings, task, lambda: False, Keep(folder, counted=True), first=number)
    (mine,) = parties.local
    mine.draws = draws
    mine.budget.parent = Budget()  # its share of the run's, which the server looks after
    parties.start()
    about = orjson.dumps([run, public], option=orjson.OPT_SORT_KEYS)
    own_side = OwnSide(
        peers=node.folder / "peers.json",
        releases=folder / "releases.records",
        weighings=folder / "weighings.json",
        about=about,
        batch=LEAST_BATCH,
    )
    try:
        responder = responder_of(mine, settings, parties, run, own_side)
        if settings.privacy.mode == "gaussian":
            enter(node.folder / "noisy-runs.json", run, node.privacy.runs)
    except BaseException:
        await parties.aclose()
        raise
    return OpenTask(parties, responder)
