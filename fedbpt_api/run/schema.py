"""The schema of a run's settings: every section, key, type and default, as frozen models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from fedbpt_api.methods.recipes import DEFAULT, RECIPES, beneath, with_preset
from fedbpt_api.run.config_problems import NOISE_NEEDS, cross_problems


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """A path as seen from the folder of the config file, or from the working directory without one."""
    base = (info.context or {}).get("base", Path.cwd())
    return Path(base, path).resolve()


def _as_words(value: object) -> object:
    """One word is a group of one word."""
    return (value,) if isinstance(value, str) else value


def _known_method(name: str) -> str:
    """The name of a recipe."""
    if name not in RECIPES:
        raise ValueError(f"expected one of {', '.join(RECIPES)}")
    return name


PARTY_NAME = r"\w[\w-]{0,63}"
"""A party's name where it is behind a network: it stands in the names of files, too."""

PartyName = Annotated[str, Field(pattern=f"^{PARTY_NAME}$")]
DataPath = Annotated[Path, AfterValidator(_absolute)]
Words = Annotated[tuple[str, ...], BeforeValidator(_as_words)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
AtLeastTwo = Annotated[int, Field(ge=2)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """What all sections share: unknown keys are mistakes, nothing changes once it is checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackendSettings(Section):
    """Which model answers. Keys other than `kind` are handed to the backend as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    kind: Annotated[str, Field(min_length=1)] = "llamacpp"

    @property
    def options(self) -> dict[str, object]:
        """The keys for the backend itself."""
        return dict(self.model_extra or {})


class BudgetSettings(Section):
    """What may be spent before the search stops; whichever ends first."""

    scored: Positive | None = None
    tokens: Positive | None = None
    seconds: PositiveFloat | None = None
    money: PositiveFloat | None = None


class PriceSettings(Section):
    """What a server charges per million tokens, here or in a file.

    Attributes:
        input: Of prompt tokens.
        cached: Of prompt tokens from its cache; `input` without it.
        output: Of generated tokens.
        currency: What the numbers are in.
        file: A TOML file with these keys, or with a table of them for each model.
        model: Which of the file's tables; the backend's model without it.
    """

    input: NotNegative | None = None
    cached: NotNegative | None = None
    output: NotNegative | None = None
    currency: Annotated[str, Field(min_length=1)] = "USD"
    file: DataPath | None = None
    model: str | None = None


class ColumnsSettings(Section):
    """Which column or field of the data files holds what."""

    text: str = "text"
    label: str = "label"
    text_b: str | None = None


class ClientSettings(Section):
    """One party: its files, and its own budget, backend and price where they differ from the run's."""

    name: str = Field(min_length=1)
    train: DataPath
    dev: DataPath | None = None
    test: DataPath | None = None
    budget: BudgetSettings | None = None
    backend: BackendSettings | None = None
    price: PriceSettings | None = None


class DataSettings(Section):
    """One set of files that is split over clients."""

    train: DataPath
    dev: DataPath | None = None
    test: DataPath | None = None
    clients: Positive
    split: Literal["iid", "dirichlet"] = "iid"
    alpha: PositiveFloat = 1.0


class SearchSettings(Section):
    """How each client looks for a better prompt.

    Attributes:
        algorithm: The loop that is run; as a rule the method says which.
        space: Words, "codebook"; or vectors, "soft", where the server takes them.
        form: Words after the prompt, words of examples that the model writes, or whichever does better.
        draws: Most prompts with examples that the model writes.
        opening: Share of the budget that starting prompts, those among them, may take before the rounds; more
            of them are judged where no further round fits into it.
        positions: Words of the prompt, L.
        coordinates: Principal coordinates of the embeddings for each word, k; the search has L k dimensions.
        dimensions: Dimensions of a search over vectors, d.
        alpha: Size of the first steps of a search over vectors, against an embedding.
        sigma: Initial step size.
        popsize: Candidates of a generation.
        iterations: Generations that a client runs in a round, I.
        loss: What a client minimises.
        margin: Margin of the hinge loss.
        perturb: Share of the text's tokens that equation 7 of the FedBPT paper perturbs; 0 is off.
        min_gain: A search for a committee of prompts in words ends among its prompts with examples, once all
            that the budget still allows are expected to lower the loss of the development texts by less, in
            nats a text; 0: it goes on to its budget. Behind a network it is asked after every 32 prompts.
        rounds: Most rounds; without it the budget alone ends the run.
        proposals: Clients whose best candidate is assessed in a round beside the merged mean, in turn.
        minibatch: Training texts that a generation is scored on; all of them without it. Parties behind a
            network want 8 or more.
        choice: How the result is chosen: the prompt with the smallest held-out loss, or the committee of
            prompts that together read the development texts best.
        ensemble: Most prompts that answer together in the result of a committee; each text is then asked as
            often.
    """

    algorithm: Literal["rounds", "start", "prompts", "calibration", "random", "in-context", "edits"] = (
        "rounds"
    )
    space: Literal["codebook", "soft"] = "codebook"
    form: Literal["auto", "words", "demonstrations"] = "auto"
    draws: Positive = 240
    opening: Share = 0.5
    positions: Positive = 4
    coordinates: Positive = 4
    dimensions: Positive = 100
    alpha: PositiveFloat = 1.0
    sigma: PositiveFloat = 1.0
    popsize: Annotated[int, Field(ge=3)] = 6  # what pycma needs
    iterations: Positive = 4
    loss: Literal["cross-entropy", "hinge", "accuracy"] = "cross-entropy"
    margin: PositiveFloat = 2.0
    perturb: Annotated[float, Field(ge=0, lt=1)] = 0.0
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    rounds: Positive | None = None
    minibatch: Positive | None = None
    proposals: Annotated[int, Field(ge=0)] = 1
    choice: Literal["held-out", "committee"] = "held-out"
    ensemble: Annotated[int, Field(ge=1, le=8)] = 1


class FederationSettings(Section):
    """How the clients' answers become one.

    Attributes:
        aggregator: The rule that merges updates.
        trim: Share of the answers that `trimmed` leaves out at each end, coordinate by coordinate.
        sigma_rule: Which published variant of the step-size correction `fedbpt` uses.
        participation: Share of the clients that are asked in a round.
        quorum: Share of the asked clients that must answer for the run to go on.
        timeout: Seconds after which a client is left out of a round.
        clip: Multiple of the median at which clients' steps are cut before the merge; 0 is off.
        cross_scoring: Whether verbalizers are fitted without each client in turn, so that one whose answers
            make the others' texts be read much worse is found and left out; with 4 to 32 clients. It costs no
            call.
        late: Whether a search that is later goes on, and joins the merge of a later round; or is dropped.
    """

    aggregator: Literal["fedbpt", "fedavg", "median", "trimmed"] = "fedbpt"
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    sigma_rule: Literal["paper", "reference"] = "paper"
    participation: Share = 1.0
    quorum: Share = 0.5
    timeout: PositiveFloat | None = None
    late: Literal["use", "drop"] = "use"
    clip: NotNegative = 3.0
    cross_scoring: bool = True


class PrivacySettings(Section):
    """What the server may see of a party.

    Attributes:
        mode: "none": sums over each party's texts. "sums": only what all parties' sums add up to; three
            parties or more, all of which must answer. "gaussian": sums over each party's texts with noise;
            differential privacy, see `docs/privacy.md`.
        unit: What noise protects: one text, or all texts of a party together.
        epsilon: Largest epsilon that is promised: for each part of a party's texts where the unit is a text,
            for all of them together where it is a party.
        delta: The delta that goes with it; below one over the number of texts.
        prompts: Prompts that are judged with noise at most.
        clip_loss: Nats at which a text's loss is clipped before noise.
        clip_logits: Length in nats at which a text's centred label log-probabilities are clipped.
        clip_mean: Length at which a search's displacement is clipped, in step sizes times the root of d.
    """

    mode: Literal["none", "sums", "gaussian"] = "none"
    unit: Literal["text", "party"] = "text"
    epsilon: Annotated[float, Field(gt=0, le=100)] = 8.0  # beyond, nothing is protected
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    prompts: AtLeastTwo = 12
    clip_loss: PositiveFloat = 2.0
    clip_logits: PositiveFloat = 3.0
    clip_mean: PositiveFloat = 1.0


class VerbalizerSettings(Section):
    """How word probabilities become label probabilities.

    Attributes:
        kind: "words" are the label words alone, "bias" adds one number a label, "weighted" more words.
        words: Words that are asked for in all, the label words included.
    """

    kind: Literal["weighted", "bias", "words"] = "weighted"
    words: AtLeastTwo = 128


class CacheSettings(Section):
    """What runs on one machine share.

    Attributes:
        scores: Whether answers are looked for and kept in the shared store, in the user's cache folder.
        charged: Whether answers that are found there count against the budget as if they were asked for, so
            that runs can be compared at the same budget.
    """

    scores: bool = False
    charged: bool = False


class TestSettings(Section):
    """What is compared on the test texts.

    Attributes:
        compare: "start" sets the starting prompt beside the tuned one, "all" each of the user's prompts,
            "none" tests the tuned one alone.
    """

    compare: Literal["none", "start", "all"] = "start"


class Settings(Section):
    """All settings of a run. The first prompt is the starting prompt; paths are absolute once checked.

    `parties` counts or names those behind a network (Flower), in place of clients and data of this process.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    method: Annotated[str, AfterValidator(_known_method)] = DEFAULT
    prompts: tuple[str, ...] = Field(min_length=1)
    template: str
    prompt_place: Literal["before", "after", "auto"] = "before"
    prompt_padding: Literal["off", "on", "auto"] = "off"
    labels: dict[str, Words]
    columns: ColumnsSettings = ColumnsSettings()
    clients: tuple[ClientSettings, ...] = ()
    data: DataSettings | None = None
    parties: Positive | tuple[PartyName, ...] | None = None
    backend: BackendSettings = BackendSettings()
    budget: BudgetSettings
    price: PriceSettings | None = None
    search: SearchSettings = SearchSettings()
    federation: FederationSettings = FederationSettings()
    privacy: PrivacySettings = PrivacySettings()
    verbalizer: VerbalizerSettings = VerbalizerSettings()
    test: TestSettings = TestSettings()
    cache: CacheSettings = CacheSettings()

    @model_validator(mode="before")
    @classmethod
    def _of_the_method(cls, values: Any) -> Any:
        """What the method stands for, beneath what the settings say themselves."""
        if not isinstance(values, Mapping):
            return values
        private = values.get("privacy")
        noisy = isinstance(private, Mapping) and private.get("mode") == "gaussian"
        return with_preset(beneath(NOISE_NEEDS, values) if noisy else values)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuse settings whose keys contradict each other."""
        problems = list(cross_problems(self.model_dump()))
        if problems:
            raise ValueError("; ".join(problems))
        return self
