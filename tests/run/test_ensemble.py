"""Prompts that answer together: a mean of scores, chosen without a call, kept in the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.classify import Classifier
from fedbpt_api.run.events import Assessed, Event
from fedbpt_api.run.replay import replay
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import Encoder, Ensemble
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.task import Example
from fedbpt_api.verbalizer import Committee, Verbalizer, fit
from toy import IDS, LABEL_WORDS, TEMPLATE, ToyBackend, Toys, make_task
from toy_clients import make_client
from toy_runs import fedbpt, run_toy, scored

TOGETHER = "--- and ---"
CHANGES: dict[str, object] = {"search.choice": "committee", "search.ensemble": 3, "search.rounds": 4}


@pytest.fixture
def rough(toys: Toys) -> Toys:
    """A toy whose answers are noisy from prompt to prompt, so that a mean of several is worth something."""
    toys["toy"].ripple = 1.5
    return toys


async def test_an_ensembles_scores_are_the_mean_of_its_members() -> None:
    toy = ToyBackend()
    scorer = Scorer(toy, Budget())
    scorer.use_words(tuple(IDS[group[0]] for group in LABEL_WORDS.words))
    texts = await Encoder(toy, TEMPLATE, LABEL_WORDS).texts([Example("good day"), Example("bad night")])
    one, two = await toy.tokenize("Is it good?\n"), await toy.tokenize("Say the mood.\n")
    together, exact = await scorer.scores(Ensemble((one, two)), texts)
    apart = [await scorer.score(prompt, texts) for prompt in (one, two)]
    np.testing.assert_array_equal(together, (apart[0] + apart[1]) / 2)
    assert exact.all() and scorer.budget.spent.scored == 4  # the second time they were known


async def test_joint_losses_are_of_the_members_readings_together(rough: Toys) -> None:
    toy, rng = rough["toy"], np.random.default_rng(4)
    words = tuple(IDS[group[0]] for group in LABEL_WORDS.words)
    client = await make_client(backend=toy, words=words)
    prompts = [await toy.tokenize(text) for text in ("Is it good?\n", "Say the mood.\n", "")]
    readers = [Verbalizer.from_bias(words, ((0,), (1,)), 1.0, rng.normal(size=2)) for _ in prompts]
    found = await client.joint_losses(list(zip(prompts, readers, strict=True)), [(0,), (1, 2)])
    texts, labels = client._dev.texts, client._dev.labels
    said = []  # by hand: softmax of (label log-probabilities + bias), prompt by prompt
    for prompt, reader in zip(prompts, readers, strict=True):
        logits = await client.scorer.score(prompt, texts) + reader.bias
        said.append(np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)))
    for places, value in zip([(0,), (1, 2)], found, strict=True):
        wanted = 0.0
        for n, label in enumerate(labels):
            some = np.exp(sum(said[p][n] for p in places) / len(places))
            wanted -= float(np.log(some[label] / some.sum()))
        assert value == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(3))
async def test_one_prompt_is_the_one_that_reads_development_texts_best(rough: Toys, seed: int) -> None:
    events: list[Event] = []
    changes: dict[str, object] = {**CHANGES, "search.ensemble": 1, "seed": seed}
    result = await run_toy(make_task(seed=seed), changes, events=events)
    judged = [e for e in events if isinstance(e, Assessed)]
    best = min(judged, key=lambda e: e.dev_loss)
    assert TOGETHER not in result.prompt
    given = [e for e in judged if e.origin == "start"]  # one of these may win by the guard
    assert result.prompt in {best.prompt, *(e.prompt for e in given if e.loss < best.loss)}


async def _run(folder: Path) -> tuple[TunedPrompt, list[Assessed], int]:
    """A run whose result is an ensemble; the first of a few seeds that gives one."""
    for seed in range(4):
        events: list[Event] = []
        place = folder / str(seed)
        result = await run_toy(make_task(seed=seed), {**CHANGES, "seed": seed}, place, events)
        prompt = TunedPrompt.load(place)
        if prompt.joined:
            assert TOGETHER in result.prompt
            return prompt, [e for e in events if isinstance(e, Assessed)], seed
    raise AssertionError("no seed gave an ensemble")


async def test_an_ensemble_is_chosen_without_a_call_and_beats_what_the_user_gave(
    rough: Toys, tmp_path: Path
) -> None:
    prompt, judged, seed = await _run(tmp_path)
    given = [e for e in judged if e.origin == "start"]
    (together,) = [e for e in judged if e.origin == "ensemble"]
    assert together.loss < min(e.loss for e in given)
    assert 1 <= len(prompt.joined) <= 2
    alone = await run_toy(make_task(seed=seed), {**CHANGES, "seed": seed, "search.ensemble": 1})
    both = await run_toy(make_task(seed=seed), {**CHANGES, "seed": seed})
    assert scored(both) == scored(alone)
    assert [r.scored for r in both.rounds] == [r.scored for r in alone.rounds]
    assert both.rounds[-1].scored == 0
    members = {prompt.text, *(text for text, _ in prompt.joined)}
    for result, own in ((alone, {alone.prompt}), (both, members)):
        tested = sum(counts["test_scored"] for counts in result.spent.values())
        assert tested == 30 * len(own | {given[0].prompt})  # once a prompt and test text


@pytest.mark.parametrize("budget", range(400, 1000, 75))
async def test_on_a_noisy_server_too_it_is_chosen_without_a_call(
    rough: Toys, tmp_path: Path, budget: int
) -> None:
    rough["toy"].noise = 0.3
    changes: dict[str, object] = {**CHANGES, "search.rounds": None, "budget.scored": budget}
    result = await run_toy(make_task(), changes, tmp_path)
    assert result.stopped == "budget" and result.rounds[-1].scored == 0
    assert scored(result) <= budget
    assert TunedPrompt.load(tmp_path).joined


async def test_its_file_comes_back_and_classifies_as_the_run_did(rough: Toys, tmp_path: Path) -> None:
    prompt, _, seed = await _run(tmp_path)
    assert TunedPrompt.from_dict(prompt.to_dict()) == prompt
    assert prompt.to_dict()["format"] == 3
    task = make_task(seed=seed)
    rows = [row for client in task.clients for row in client.test]
    async with await Classifier.open(prompt) as classifier:
        report = await classifier.evaluate(rows)
        assert classifier.usage.scored == len(rows) * (1 + len(prompt.joined))
    result = await run_toy(task, {**CHANGES, "seed": seed})
    assert result.test is not None
    tuned = next(row for row in result.test.rows if row.method == "tuned")
    assert report.rows[0].confusion == tuned.confusion


async def test_each_member_has_a_verbalizer_fitted_on_all_texts_as_it_reads_them(
    rough: Toys, tmp_path: Path
) -> None:
    prompt, _, seed = await _run(tmp_path)
    assert isinstance(prompt.verbalizer, Committee)
    task = make_task(seed=seed)
    examples = [e for client in task.clients for e in (*client.train, *client.dev)]
    labels = np.array([LABEL_WORDS.labels.index(str(e.label)) for e in examples])
    scorer = Scorer(rough["toy"], Budget())
    scorer.use_words(prompt.verbalizer.words)
    texts = await Encoder(rough["toy"], TEMPLATE, LABEL_WORDS).texts(examples)
    members = [prompt.ids, *(ids for _, ids in prompt.joined)]
    for ids, found in zip(members, prompt.verbalizer.members, strict=True):
        rows = await scorer.score(ids, texts)
        alone, _ = fit(rows, labels, found.words, found.groups)
        np.testing.assert_allclose(found.logits(rows), alone.logits(rows), atol=1e-4)


async def test_on_another_server_its_members_are_read_as_far_as_that_answers(
    rough: Toys, tmp_path: Path
) -> None:
    prompt, _, seed = await _run(tmp_path)
    assert isinstance(prompt.verbalizer, Committee) and prompt.fallback is not None
    rows = [row for client in make_task(seed=seed).clients for row in client.test]
    rough.opened["short"] = ToyBackend(complete=False)
    rough["short"].ripple = 1.5
    async with await Classifier.open(replace(prompt, verbalizer=prompt.fallback)) as bias:
        expected = await bias.classify(rows)
    async with await Classifier.open(prompt, "toy", name="short") as short:
        for ours, theirs in zip(await short.classify(rows), expected, strict=True):
            assert ours.probabilities == pytest.approx(theirs.probabilities)
        assert any("their bias" in warning for warning in short.warnings)
    biases = Committee(tuple(replace(v, kind="bias") for v in prompt.verbalizer.members))
    async with await Classifier.open(replace(prompt, verbalizer=biases)) as same:
        expected = await same.classify(rows)
    async with await Classifier.open(replace(prompt, verbalizer=biases), "toy", name="short") as short:
        for ours, theirs in zip(await short.classify(rows), expected, strict=True):
            assert ours.probabilities == pytest.approx(theirs.probabilities)


async def test_a_file_of_an_earlier_version_is_read_by_the_mean_of_its_members(
    rough: Toys, tmp_path: Path
) -> None:
    prompt, _, seed = await _run(tmp_path)
    assert isinstance(prompt.verbalizer, Committee)
    old = replace(prompt, verbalizer=prompt.verbalizer.members[0])
    assert old.to_dict()["format"] == 2
    rows = [row for client in make_task(seed=seed).clients for row in client.test]
    scorer = Scorer(rough["toy"], Budget())
    scorer.use_words(prompt.verbalizer.words)
    texts = await Encoder(rough["toy"], TEMPLATE, LABEL_WORDS).texts(rows)
    members = [prompt.ids, *(ids for _, ids in prompt.joined)]
    mean = np.mean([await scorer.score(ids, texts) for ids in members], axis=0)
    async with await Classifier.open(TunedPrompt.from_dict(old.to_dict())) as classifier:
        said = await classifier.classify(rows)
    found = [list(answer.probabilities.values()) for answer in said]
    np.testing.assert_allclose(found, prompt.verbalizer.members[0].probabilities(mean), atol=1e-6)


async def test_an_ensemble_is_replayed(rough: Toys, tmp_path: Path) -> None:
    _, _, seed = await _run(tmp_path)
    asked = rough["toy"].scored
    again = await replay(tmp_path / str(seed), make_task(seed=seed))
    assert not again.differences
    assert rough["toy"].scored == asked


def test_damaged_members_are_refused() -> None:
    data = {"format": 2, "prompt": {"text": "", "ids": []}, "joined": [{"text": "a"}]}
    with pytest.raises(Exception, match="damaged"):
        TunedPrompt.from_dict(data)


async def test_people_see_every_member_and_a_tensor_of_several_is_refused(
    rough: Toys, tmp_path: Path
) -> None:
    prompt, _, seed = await _run(tmp_path)
    shown = fedbpt("show", tmp_path / str(seed) / "prompt.json")
    assert shown.output.count("joined with") == len(prompt.joined)
    refused = fedbpt("export", tmp_path / str(seed), tmp_path / "x.pt", "--weights", tmp_path)
    assert refused.exit_code == 2 and "answer together" in refused.output
