"""Classifying with a tuned prompt: from its file alone, in order, and with every mismatch told."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.classify import Classifier, Prediction, overall
from fedbpt_api.run.events import Event, Warned
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.backend import Prompt, Scores
from fedbpt_api.task import Example, LabelWords
from fedbpt_api.verbalizer import Verbalizer
from fedbpt_api.verbalizer.committee import alone
from toy import ALIKE, IDS, TEXTS, ToyBackend, Toys, make_examples, make_task
from toy_clients import Listing
from toy_runs import make_settings

TASK = make_task()


@pytest.fixture
async def tuned(toys: Toys, tmp_path: Path) -> tuple[RunResult, TunedPrompt]:
    """A run's result, and its prompt from a copy of the one file."""
    result = await Tuner(make_settings(TASK), TASK, tmp_path / "run").run()
    shutil.copy(tmp_path / "run" / "prompt.json", tmp_path / "elsewhere.json")
    shutil.rmtree(tmp_path / "run")
    return result, TunedPrompt.load(tmp_path / "elsewhere.json")


@pytest.fixture
async def classifier(toys: Toys, tuned: tuple[RunResult, TunedPrompt]) -> AsyncIterator[Classifier]:
    async with await Classifier.open(tuned[1]) as opened:
        yield opened


async def test_predictions_come_in_order_with_a_probability_for_each_label(classifier: Classifier) -> None:
    texts: list[Example | str] = [
        "great lovely perfect the day",
        "awful worst rude night",
        Example("happy nice superb people"),
    ]
    said = await classifier.classify(texts)
    assert [prediction.label for prediction in said] == ["positive", "negative", "positive"]
    for prediction in said:
        assert list(prediction.probabilities) == ["negative", "positive"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0)
        assert prediction.label == max(prediction.probabilities, key=lambda k: prediction.probabilities[k])
        assert prediction.to_dict() == {"label": prediction.label, "probabilities": prediction.probabilities}
    assert classifier.usage.scored == 3
    assert classifier.warnings == []


async def test_each_text_gets_the_same_answer_alone_and_among_many(classifier: Classifier) -> None:
    rows = make_examples(70, 50)
    together = await classifier.classify(rows)
    assert len(together) == 70
    for number in (0, 31, 32, 69):
        assert await classifier.classify([rows[number]]) == [together[number]]


async def test_answers_are_given_as_they_come(toys: Toys, classifier: Classifier) -> None:
    toy = toys["toy"]
    before = toy.requests
    answers = classifier.stream(make_examples(70, 50))
    assert isinstance(await anext(answers), Prediction)
    assert toy.requests == before + 1
    assert len([answer async for answer in answers]) == 69
    assert toy.requests == before + 3


async def test_what_the_run_s_test_found_is_found_again_from_the_file(
    tuned: tuple[RunResult, TunedPrompt], classifier: Classifier
) -> None:
    result = tuned[0]
    assert result.test is not None
    (row,) = [r for r in result.test.rows if (r.method, r.client) == ("tuned", "*")]
    report = await classifier.evaluate([e for client in TASK.clients for e in client.test])
    found = overall(report)
    assert (found.n, found.correct, found.confusion) == (row.n, row.correct, row.confusion)
    assert found.macro_f1 == pytest.approx(row.macro_f1)
    assert (found.ci_low, found.ci_high) == pytest.approx((row.ci_low, row.ci_high))


async def test_evaluation_counts_what_is_right(classifier: Classifier) -> None:
    rows = make_examples(40, 51)
    said = await classifier.classify(rows)
    right = sum(p.label == e.label for p, e in zip(said, rows, strict=True))
    row = overall(await classifier.evaluate(rows))
    assert (row.n, row.correct, row.accuracy) == (40, right, right / 40)
    assert 0 <= row.ci_low < row.accuracy <= row.ci_high <= 1
    assert sum(map(sum, row.confusion)) == 40


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (
            [Example("good", "positive"), Example("bad", "angry")],
            "labels that the prompt does not know: angry",
        ),
        ([Example("good")], "does not know: None"),
        ([], "the data has no rows"),
    ],
)
async def test_data_that_cannot_be_evaluated_is_a_clear_error(
    toys: Toys, classifier: Classifier, rows: list[Example], match: str
) -> None:
    before = toys["toy"].requests
    with pytest.raises(ConfigError, match=match) as raised:
        await classifier.evaluate(rows)
    assert "negative, positive" in raised.value.hint
    assert toys["toy"].requests == before


async def test_a_text_longer_than_the_context_is_named(classifier: Classifier) -> None:
    rows = [Example("good day"), Example("the " * 600 + "end")]
    with pytest.raises(ConfigError, match=r"text 2 has 6\d\d tokens with its prompt, the limit is 512"):
        await classifier.classify(rows)
    assert classifier.usage.scored == 0


async def test_leaving_closes_the_backend(toys: Toys, tuned: tuple[RunResult, TunedPrompt]) -> None:
    closed = toys["toy"].closed
    async with await Classifier.open(tuned[1]):
        assert toys["toy"].closed == closed
    assert toys["toy"].closed == closed + 1


async def test_another_model_with_the_same_vocabulary_is_used_and_told(
    toys: Toys, tuned: tuple[RunResult, TunedPrompt]
) -> None:
    toys.opened["other"] = ToyBackend(seed=5)
    async with await Classifier.open(tuned[1], "toy", name="other") as other:
        assert len(await other.classify(["good day"])) == 1
        (warning,) = other.warnings
    assert "toy-0" in warning and "toy-5" in warning


class Renumbered(ToyBackend):
    """The toy with every token's number moved: another vocabulary, the same model."""

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(i + 7 for i in await super().tokenize(text))

    async def detokenize(self, ids: Sequence[int]) -> str:
        if not all(7 <= i < len(TEXTS) + 7 for i in ids):
            raise BackendError("no such token")
        return await super().detokenize([i - 7 for i in ids])

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        moved = [Prompt(tuple(i - 7 for i in p.ids), p.shared) for p in prompts]
        return await super().score(moved, [word - 7 for word in words])


async def test_with_another_vocabulary_the_prompt_goes_as_text(
    toys: Toys, tuned: tuple[RunResult, TunedPrompt], classifier: Classifier
) -> None:
    toys.opened["other"] = Renumbered()
    rows = make_examples(40, 52)
    async with await Classifier.open(tuned[1], "toy", name="other") as other:
        assert await other.classify(rows) == await classifier.classify(rows)
        (warning,) = other.warnings
    assert "as text" in warning


async def test_where_not_all_words_come_back_label_words_and_bias_do(
    toys: Toys, tuned: tuple[RunResult, TunedPrompt]
) -> None:
    fitted = alone(tuned[1].verbalizer)
    weighted = replace(fitted, kind="weighted", weights=np.full_like(fitted.weights, 0.5))
    prompt = replace(tuned[1], verbalizer=weighted)
    assert prompt.fallback is not None
    rows = make_examples(40, 52)
    async with await Classifier.open(replace(prompt, verbalizer=prompt.fallback)) as bias:
        expected = await bias.classify(rows)
    toys.opened["short"] = ToyBackend(complete=False)
    async with await Classifier.open(prompt, "toy", name="short") as short:
        for ours, theirs in zip(await short.classify(rows), expected, strict=True):
            assert ours.probabilities == pytest.approx(theirs.probabilities)
        (warning,) = short.warnings
    assert "weighted" in warning and "bias" in warning
    assert len(short.prompt.verbalizer.words) == 2


async def test_weights_fitted_on_short_lists_are_used_on_that_server_and_on_no_other(
    toys: Toys, tuned: tuple[RunResult, TunedPrompt]
) -> None:
    fitted = alone(tuned[1].verbalizer)
    words = tuple(range(300, 300 + len(fitted.words) - 2))
    plain = replace(fitted, words=(*fitted.words[:2], *words), kind="weighted")
    weighted = replace(plain, weights=np.linspace(-0.5, 0.5, plain.weights.size).reshape(2, -1), margin=0.5)
    texts = tuple([await ToyBackend().detokenize([word]) for word in weighted.words])
    prompt = replace(tuned[1], verbalizer=weighted, word_texts=texts)
    toys.opened["list"] = Listing(complete=False, k=len(texts) // 2)
    toys.opened["other"] = ToyBackend(seed=5)
    rows = make_examples(40, 52)
    async with await Classifier.open(prompt, "toy", name="list") as same:
        assert same.warnings == [] and same.prompt.verbalizer == weighted
        told = await same.classify(rows)
        same.prompt = replace(prompt, verbalizer=replace(weighted, margin=None))
        assert told != await same.classify(rows)  # the marks are used
    async with await Classifier.open(prompt, "toy", name="other") as other:
        assert other.prompt.verbalizer.kind == "bias"
        first, _ = other.warnings
    assert "fitted on the short lists of toy" in first and "bias" in first


async def test_label_words_that_cannot_be_told_apart_there_are_refused_and_the_backend_closed(
    toys: Toys, tuned: tuple[RunResult, TunedPrompt]
) -> None:
    words = LabelWords(("negative", "positive"), ((" negative",), (" negative day",)))
    closed = toys["toy"].closed
    with pytest.raises(ConfigError, match="' negative day' begins with all of"):
        await Classifier.open(replace(tuned[1], label_words=words))
    assert toys["toy"].closed == closed + 1


# Label words that begin alike -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["weighted", "bias", "words"])
async def test_words_that_begin_alike_are_tuned_tested_and_used_from_the_file_alone(
    toys: Toys, tmp_path: Path, kind: str
) -> None:
    task = replace(TASK, label_words=ALIKE)
    said: list[Event] = []
    tuner = Tuner(make_settings(task, {"verbalizer.kind": kind}), task, tmp_path / "run", said.append)
    result = await tuner.run()
    told = [event.message for event in said if isinstance(event, Warned)]
    assert any("' very good' is 2 tokens" in message for message in told)
    assert any("each text takes 2 inputs instead of 1" in message for message in told)
    spent = sum(counts["scored"] + counts["test_scored"] for counts in result.spent.values())
    lists = 36 if kind == "weighted" else 0
    assert toys["toy"].scored == spent - lists
    assert max(toys["toy"].answered.values()) == 1  # nothing was paid for twice

    prompt = TunedPrompt.load(tmp_path / "run")
    assert prompt.verbalizer.words[:3] == (-1, -2, IDS[" lovely"])
    assert prompt.word_texts[:3] == (" very bad", " very good", " lovely")
    assert len(prompt.word_texts) == (12 if kind == "weighted" else 3)
    assert " very" not in prompt.word_texts
    assert result.test is not None
    (row,) = [r for r in result.test.rows if (r.method, r.client) == ("tuned", "*")]
    toys.opened["other"] = Renumbered()
    examples = [e for client in task.clients for e in client.test]
    found = []
    for name in ("toy", "other"):
        async with await Classifier.open(prompt, "toy", name=name) as opened:
            report = overall(await opened.evaluate(examples))
            assert (report.n, report.correct, report.confusion) == (row.n, row.correct, row.confusion)
            assert opened.usage.scored == 2 * row.n
            found.append((await opened.classify(examples), opened.warnings))
    assert found[0][0] == found[1][0]
    assert found[0][1] == [] and "as text" in found[1][1][0]


async def test_where_only_words_that_begin_alike_are_named_the_prompt_s_text_tells_the_vocabulary(
    toys: Toys, tuned: tuple[RunResult, TunedPrompt]
) -> None:
    words = LabelWords(ALIKE.labels, ((" very bad",), (" very good",)))
    bias = Verbalizer.from_bias((-1, -2), ((0,), (1,)), 1.0, np.array([0.2, -0.2]))
    prompt = replace(tuned[1], label_words=words, verbalizer=bias, word_texts=(" very bad", " very good"))
    rows = make_examples(20, 52)
    toys.opened["other"] = Renumbered()
    async with await Classifier.open(prompt) as own, await Classifier.open(prompt, name="other") as other:
        assert await own.classify(rows) == await other.classify(rows)
        assert not own.warnings and "as text" in other.warnings[0]
    async with await Classifier.open(replace(prompt, ids=(), text=""), name="other") as empty:
        await empty.classify(rows)
        assert not empty.warnings


class Bytewise(Renumbered):
    """The same, and without words: every token is a byte."""

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(i + 7 for i in text.encode())


async def test_label_words_that_are_several_tokens_elsewhere_are_read_there_as_they_are(
    toys: Toys, tuned: tuple[RunResult, TunedPrompt]
) -> None:
    """ " negative" and " positive" are one token each at home, and begin with the same blank there."""
    toys.opened["other"] = Bytewise()
    assert tuned[1].fallback is not None
    async with await Classifier.open(tuned[1], name="other") as other:
        assert len(await other.classify(["a good day"])) == 1
        assert other.prompt.verbalizer.words == (-1, -2)
        assert other.usage.scored == 2
        assert other.prompt.verbalizer.kind == "bias"


async def test_an_option_that_the_backend_does_not_have_is_refused(
    tuned: tuple[RunResult, TunedPrompt],
) -> None:
    with pytest.raises(ConfigError, match=r"backend\.nome.*did you mean 'name'"):
        await Classifier.open(tuned[1], nome="x")
