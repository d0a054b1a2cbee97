"""Using a tuned prompt: labels and probabilities for new texts, from the prompt file alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.result import Row, TestReport
from fedbpt_api.run.stats import compare
from fedbpt_api.scoring.backend import Backend, Usage
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.task import Example

_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Prediction:
    """One text's answer: the most probable label, and the probability of each."""

    label: str
    probabilities: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {"label": self.label, "probabilities": self.probabilities}


class Classifier:
    """A tuned prompt with an open backend. Use it as an async context manager, or close it.

    Args:
        prompt: The tuned prompt.
        backend: Where it is asked; closed with the classifier.
    """

    def __init__(self, prompt: TunedPrompt, backend: Backend) -> None:
        self.prompt = prompt
        self.backend = backend
        self.usage = Usage()
        self.warnings: list[str] = []

    @classmethod
    async def open(cls, prompt: TunedPrompt, kind: str | None = None, **options: object) -> Classifier:
        """Open the backend that the prompt was tuned on, or another one.

        Raises:
            BackendError: It cannot be opened, or its vocabulary is not the one the prompt was tuned for.
        """
        backend = await open_backend(kind or prompt.model["kind"], log_folder=None, **options)
        self = cls(prompt, backend)
        try:
            await self._check()
        except BaseException:
            await backend.aclose()
            raise
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.backend.aclose()

    async def stream(self, examples: Sequence[Example]) -> AsyncIterator[Prediction]:
        """Predictions in the order of the texts, as they come."""
        labels = self.prompt.label_words.labels
        encoder = Encoder(self.backend, self.prompt.template, self.prompt.label_words)
        asked = await self.prompt.on(self.backend)
        for begin in range(0, len(examples), _CHUNK):
            texts = await encoder.texts(examples[begin : begin + _CHUNK])
            prompts = [text.with_prompt(asked) for text in texts]
            room = self.backend.info.context
            for number, prompt in enumerate(prompts, start=begin + 1):
                if len(prompt) > room:
                    raise ConfigError(
                        f"text {number} has {len(prompt)} tokens with its prompt, the limit is {room}",
                        "shorten it, or raise backend.context",
                    )
            scores = await self.backend.score(prompts, self.prompt.verbalizer.words)
            self.usage = self.usage + scores.usage
            for row in self.prompt.verbalizer.probabilities(scores.logprobs):
                shares = {label: float(p) for label, p in zip(labels, row, strict=True)}
                yield Prediction(labels[int(np.argmax(row))], shares)

    async def classify(self, examples: Sequence[Example | str]) -> list[Prediction]:
        """Predictions for texts or examples."""
        rows = [Example(e) if isinstance(e, str) else e for e in examples]
        return [prediction async for prediction in self.stream(rows)]

    async def evaluate(self, examples: Sequence[Example]) -> TestReport:
        """Accuracy with its interval, macro-F1 and confusion matrix on labelled examples.

        Raises:
            ConfigError: An example has no label, or one the prompt does not know.
        """
        labels = list(self.prompt.label_words.labels)
        unknown = sorted({str(e.label) for e in examples if e.label not in labels})
        if unknown or not examples:
            raise ConfigError(
                f"the data has labels that the prompt does not know: {', '.join(unknown)}"
                if examples
                else "the data has no rows",
                f"every row needs one of: {', '.join(labels)}",
            )
        truth = np.array([labels.index(str(e.label)) for e in examples], dtype=np.int64)
        said = [labels.index(p.label) for p in await self.classify(examples)]
        names = np.array(["data"] * len(examples))
        return compare(labels, truth, {"tuned": np.array(said, dtype=np.int64)}, names)

    async def _check(self) -> None:
        for token, text in zip(self.prompt.verbalizer.words, self.prompt.word_texts, strict=True):
            if text and await self.backend.detokenize([token]) != text:
                raise BackendError(
                    f"token {token} is not {text!r} for {self.backend.info.model}: another vocabulary",
                    f"use the model it was tuned on: {self.prompt.model['name']}",
                )
        if self.backend.info.fingerprint != self.prompt.model["fingerprint"]:
            self.warnings.append(
                f"tuned on {self.prompt.model['name']} ({self.prompt.model['fingerprint']}), asked on "
                f"{self.backend.info.model} ({self.backend.info.fingerprint}): accuracies may differ"
            )


def overall(report: TestReport) -> Row:
    """The row of the tuned prompt on all texts."""
    return report.rows[0]
