"""A suite file: which tasks, how texts are spread over clients, which recipes, budgets and seeds."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from fedbpt_api.errors import ConfigError
from fedbpt_api.methods import RECIPES
from fedbpt_api.run.config_problems import describe
from fedbpt_api.run.schema import Positive, PositiveFloat, Section

_VARIABLE = re.compile(r"\$\{(\w+)\}")


class TaskFiles(Section):
    """A task: its config, and its data.

    Attributes:
        config: A config as for `fedbpt tune`; its clients or data are replaced.
        fewshot: Folder of published few-shot files, SEED/train.jsonl and SEED/dev.jsonl.
        pool: File that other splits draw training and development texts from.
        test: File of test texts.
        rows: Test texts, as many of each label, always the same ones; all where not given.
    """

    config: str
    fewshot: str | None = None
    pool: str | None = None
    test: str
    rows: Positive | None = None


class SplitOver(Section):
    """How texts are spread over clients.

    Attributes:
        each: Training texts of a label, drawn from the pool by the seed, and as many development texts;
            the published few-shot files where not given.
        clients: Clients.
        split: "iid", or "dirichlet" for label mixes of their own.
        alpha: Of the Dirichlet distribution.
    """

    each: Positive | None = None
    clients: Positive = 1
    split: Literal["iid", "dirichlet"] = "iid"
    alpha: PositiveFloat = 1.0


class Variant(Section):
    """A recipe with other settings, under a name of its own.

    Attributes:
        base: The recipe.
        set: Settings by dotted key.
    """

    base: str
    set: dict[str, Any] = Field(default_factory=dict)


class Grid(Section):
    """Runs of every combination."""

    tasks: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1)
    splits: tuple[str, ...] = ("one",)
    budgets: tuple[Positive, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)


class Suite(Section):
    """What is compared.

    Attributes:
        tasks: By name.
        splits: By name; "one" is one party with the published few-shot files.
        methods: Variants of recipes, beside the recipes themselves.
        set: Settings of all runs, by dotted key, such as the backend's.
        grid: What is run.
        base: Folder that relative paths start from.
    """

    tasks: dict[str, TaskFiles]
    splits: dict[str, SplitOver] = Field(default_factory=dict)
    methods: dict[str, Variant] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)
    grid: tuple[Grid, ...] = Field(min_length=1)
    base: Path = Path()

    @model_validator(mode="after")
    def _known(self) -> Self:
        """Refuse names that nothing stands behind."""
        known = {"tasks": self.tasks, "splits": {"one", *self.splits}, "methods": {*RECIPES, *self.methods}}
        problems = [
            f"grid.{number}.{kind}: {name!r} is not known; expected one of {', '.join(sorted(names))}"
            for number, grid in enumerate(self.grid)
            for kind, names in known.items()
            for name in getattr(grid, kind)
            if name not in names
        ]
        problems += [
            f"methods.{name}.base: {variant.base!r} is no recipe; expected one of {', '.join(RECIPES)}"
            for name, variant in self.methods.items()
            if variant.base not in RECIPES
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def split(self, name: str) -> SplitOver:
        return self.splits.get(name, SplitOver())

    def variant(self, name: str) -> Variant:
        """A method of the grid: a recipe as it is, or a variant of one."""
        return self.methods.get(name) or Variant(base=name)

    def path(self, text: str, seed: int | None = None) -> Path:
        """A path of the suite with its environment variables filled in.

        Raises:
            ConfigError: A variable is not set.
        """
        missing = [name for name in _VARIABLE.findall(text) if name not in os.environ]
        if missing:
            raise ConfigError(
                f"{text}: the environment variable {missing[0]} is not set", f"export {missing[0]}=FOLDER"
            )
        filled = _VARIABLE.sub(lambda match: os.environ[match[1]], text)
        return self.base / (filled if seed is None else filled.replace("{seed}", str(seed)))


def load_suite(path: Path) -> Suite:
    """Read and check a suite file.

    Raises:
        ConfigError: It cannot be read, or with every problem of what it says.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the suite cannot be read ({error.strerror})", "check the path") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", "correct the line") from None
    try:
        return Suite.model_validate({"base": path.resolve().parent, **values})
    except ValidationError as error:
        problems = [
            line
            for detail in error.errors(include_url=False)
            for line in (
                describe(detail, Suite) if detail["loc"] else str(detail["ctx"]["error"])
            ).splitlines()
        ]
        raise ConfigError([f"{path}: {problem}" for problem in problems], "correct the suite") from None
