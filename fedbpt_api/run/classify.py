"""Using a tuned prompt: labels and probabilities for new texts, from the prompt file alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.prompts.space import Ids
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.result import Row, TestReport
from fedbpt_api.run.stats import compare
from fedbpt_api.scoring.backend import Backend, Prompt, Scores, Usage
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.trie import label_trie
from fedbpt_api.task import Example
from fedbpt_api.verbalizer import Verbalizer
from fedbpt_api.verbalizer.committee import label_logits, together, verbalizers_of
from fedbpt_api.verbalizer.verbalizer import log_sum

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
        backend: Where it is asked, as `LabelTrie.over` makes it; closed with the classifier.
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
            BackendError: It cannot be opened.
            ConfigError: The prompt cannot be used there: its model cannot tell the label words apart, or a
                continuous prompt has no place there.
        """
        backend = await open_backend(kind or prompt.model["kind"], log_folder=None, known=None, **options)
        try:
            trie = await label_trie(backend, prompt.label_words)
            backend = trie.over(backend)
            fitting, warnings = await adapted(prompt, backend, trie.tokens)
        except BaseException:
            await backend.aclose()
            raise
        self = cls(fitting, backend)
        self.warnings += warnings
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
            found = [await self._scores([text.with_prompt(one) for text in texts], begin) for one in asked]
            answers = [(scores.logprobs, scores.exact) for scores in found]
            logits = label_logits(self.prompt.verbalizer, answers)
            for row in np.exp(logits - log_sum(logits)):
                shares = {label: float(p) for label, p in zip(labels, row, strict=True)}
                yield Prediction(labels[int(np.argmax(row))], shares)

    async def _scores(self, prompts: Sequence[Prompt], begin: int) -> Scores:
        """The answers to texts from the number `begin` on, counted from 0."""
        room = self.backend.info.context
        for number, prompt in enumerate(prompts, start=begin + 1):
            if len(prompt) > room:
                raise ConfigError(
                    f"text {number} has {len(prompt)} tokens with its prompt, the limit is {room}",
                    "shorten it, or raise backend.context",
                )
        scores = await self.backend.score(prompts, self.prompt.verbalizer.words)
        self.usage = self.usage + scores.usage
        return scores

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


async def adapted(
    prompt: TunedPrompt, backend: Backend, label_tokens: Sequence[int]
) -> tuple[TunedPrompt, list[str]]:
    """A tuned prompt as another server can take it, and what that costs, in sentences.

    Where the vocabulary is another, the prompt is sent as text. Where not every word of a weighted
    verbalizer comes back, the label words with their bias take its place; also where it was fitted on
    another server's short lists, as lists of another length would be other numbers.

    Args:
        prompt: The tuned prompt.
        backend: The server; it answers for the label words as `LabelTrie.over` makes it.
        label_tokens: What stands for them there.

    Raises:
        ConfigError: The prompt is continuous, and the vocabulary is another.
    """
    warnings: list[str] = []
    info, verbalizer = backend.info, prompt.verbalizer
    readers = verbalizers_of(verbalizer)
    words: list[int | None] = list(verbalizer.words)
    # Before anything else: servers that take text alone know only the words they have met.
    ids, *found = [await backend.tokenize(text) for text in (prompt.text, *prompt.word_texts)]
    joined = tuple([(text, await backend.tokenize(text)) for text, _ in prompt.joined])
    if not await _same_vocabulary(prompt, backend):
        if prompt.soft is not None:
            raise ConfigError(
                f"{info.model} has another vocabulary; a continuous prompt works with its own model only",
                f"use the model it was tuned on: {prompt.model['name']}",
            )
        words = [pieces[0] if len(pieces) == 1 else None for pieces in found]
        prompt = replace(prompt, ids=ids, joined=joined)
        warnings.append(f"{info.model} has another vocabulary: the prompt and the words are used as text")
    flat = [column for group in verbalizer.groups for column in group]
    for column, token in zip(flat, label_tokens, strict=True):
        words[column] = token
    columns = sorted(flat)
    kept = tuple(word for word in words if word is not None)
    plain = verbalizer.kind != "weighted"
    listed = any(reader.margin is not None for reader in readers)
    fits = info.fingerprint == prompt.model["fingerprint"] if listed else info.complete
    if len(kept) == len(words) and (plain or (len(words) <= info.max_words and fits)):
        verbalizer = together([replace(reader, words=kept) for reader in readers])
    else:
        if not plain:
            readers = (prompt.fallback,) if prompt.fallback else ()
            why = (
                f"the weighted verbalizer was fitted on the short lists of {prompt.model['name']}"
                if listed
                else f"{info.model} does not answer for all {len(words)} words of the weighted verbalizer "
                f"({info.details.get('way', 'unknown way')})"
            )
            instead = f"the label words with {'their bias' if readers else 'no bias'} are used instead"
            warnings.append(f"{why}; {instead}: expect less")
        readers = readers or (Verbalizer.from_words(verbalizer.words, verbalizer.groups),)
        groups = [[columns.index(column) for column in group] for group in verbalizer.groups]
        labels = [word for column in columns if (word := words[column]) is not None]
        verbalizer = together(
            [Verbalizer.from_bias(labels, groups, r.scale, r.bias, kind=r.kind) for r in readers]
        )
        prompt = replace(prompt, word_texts=tuple(prompt.word_texts[column] for column in columns))
    if info.fingerprint != prompt.model["fingerprint"]:
        warnings.append(
            f"tuned on {prompt.model['name']} ({prompt.model['fingerprint']}), asked on "
            f"{info.model} ({info.fingerprint}): accuracies may differ"
        )
    return replace(prompt, verbalizer=verbalizer), warnings


async def _same_vocabulary(prompt: TunedPrompt, backend: Backend) -> bool:
    """Whether every word of the verbalizer has the text there that it was tuned with.

    A label word's number says nothing about a vocabulary; where there are no others, the prompt's text does.
    """
    words = zip(prompt.verbalizer.words, prompt.word_texts, strict=True)
    known: list[tuple[Ids, str]] = [((token,), text) for token, text in words if token >= 0 and text]
    for ids, text in known or [(prompt.ids, prompt.text)]:
        try:
            if ids and await backend.detokenize(ids) != text:
                return False
        except BackendError:
            return False  # a number that this model does not have
    return True


def overall(report: TestReport) -> Row:
    """The row of the tuned prompt on all texts."""
    return report.rows[0]
