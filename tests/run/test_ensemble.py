"""Prompts that answer together: a mean of scores, chosen without a call, kept in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbpt_api.federation.client import Client
from fedbpt_api.federation.envelope import opened
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.responder import Responder
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.classify import Classifier
from fedbpt_api.run.events import Assessed, Event
from fedbpt_api.run.replay import replay
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import Encoder, Ensemble
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.task import Example
from fedbpt_api.verbalizer import Verbalizer
from lies import reached_through
from toy import IDS, LABEL_WORDS, TEMPLATE, ToyBackend, Toys, make_task
from toy_clients import make_client
from toy_runs import fedbpt, make_settings, run_toy, scored

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


async def test_agreement_is_the_cross_entropy_with_committee_and_labels(rough: Toys) -> None:
    toy, rng = rough["toy"], np.random.default_rng(4)
    words = tuple(IDS[group[0]] for group in LABEL_WORDS.words)
    client = await make_client(backend=toy, words=words)
    prompts = [await toy.tokenize(text) for text in ("Is it good?\n", "Say the mood.\n", "")]
    readers = [Verbalizer.from_bias(words, ((0,), (1,)), 1.0, rng.normal(size=2)) for _ in prompts]
    judged, counting = list(zip(prompts, readers, strict=True)), np.array([0.5, 0.2, 0.3])
    found = await client.agreement(judged, [(0,), (1, 2)], 0.25, counting)
    texts, labels = client._dev.texts, client._dev.labels
    said = []  # by hand: softmax of (label log-probabilities + bias), prompt by prompt
    for prompt, reader in zip(prompts, readers, strict=True):
        logits = await client.scorer.score(prompt, texts) + reader.bias
        said.append(np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)))
    for places, value in zip([(0,), (1, 2)], found, strict=True):
        wanted = 0.0
        for n, label in enumerate(labels):
            everyone = np.exp(sum(v * s[n] for v, s in zip(counting, said, strict=True)))
            some = np.exp(sum(said[p][n] for p in places) / len(places))
            target = 0.75 * everyone / everyone.sum() + 0.25 * np.eye(2)[label]
            wanted -= float((target * np.log(some / some.sum())).sum())
        assert value == pytest.approx(wanted)


async def test_one_prompt_is_chosen_by_agreement_too(rough: Toys) -> None:
    events: list[Event] = []
    result = await run_toy(make_task(), {**CHANGES, "search.ensemble": 1}, events=events)
    judged = [e for e in events if isinstance(e, Assessed)]
    assert TOGETHER not in result.prompt
    assert result.prompt in {e.prompt for e in judged}


async def test_prompts_that_tell_less_of_labels_count_for_less_in_the_committee(rough: Toys) -> None:
    """The shares that clients are told follow from what they told of single prompts, by the equation."""
    told: list[tuple[dict[str, Any], list[float]]] = []

    def between(client: Client) -> Exchange:
        party = Responder(client, tuple(IDS[group[0]] for group in LABEL_WORDS.words))

        async def exchange(data: bytes) -> bytes:
            answer = await party.answer(data)
            if (question := opened(data)).kind == "agreement":
                told.append((dict(question.fields), opened(answer).fields["answer"]["distances"]))
            return answer

        return exchange

    task = make_task()
    await Tuner(make_settings(task, CHANGES), task, opener=reached_through(between)).run()
    single = [losses for fields, losses in told if all(len(places) == 1 for places in fields["sets"])][:3]
    later = [fields for fields, _ in told if any(len(places) == 2 for places in fields["sets"])]
    assert [fields["trust"] for fields, _ in told[:3]] == [1.0] * 3
    n = 3 * 8
    alone = np.sum(single, axis=0) / n
    wanted = np.maximum(0, np.log(2) - alone) ** 2
    assert len(later) == 3 and later[0]["trust"] == 0.5
    for fields in later:
        np.testing.assert_allclose(fields["shares"], wanted / wanted.sum())
    assert max(later[0]["shares"]) > 1.2 / len(wanted)  # they do differ


@pytest.mark.parametrize("seed", range(3))
async def test_with_full_trust_in_labels_it_is_the_prompt_that_reads_development_texts_best(
    rough: Toys, seed: int
) -> None:
    events: list[Event] = []
    changes: dict[str, object] = {**CHANGES, "search.ensemble": 1, "search.trust": 1.0, "seed": seed}
    result = await run_toy(make_task(seed=seed), changes, events=events)
    judged = [e for e in events if isinstance(e, Assessed)]
    best = min(judged, key=lambda e: e.dev_loss)
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
    tested = [sum(counts["test_scored"] for counts in result.spent.values()) for result in (alone, both)]
    assert tested[1] == tested[0] + 30 * len(prompt.joined)  # each member is asked about the 30 test texts


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
    assert prompt.to_dict()["format"] == 2
    task = make_task(seed=seed)
    rows = [row for client in task.clients for row in client.test]
    async with await Classifier.open(prompt) as classifier:
        report = await classifier.evaluate(rows)
        assert classifier.usage.scored == len(rows) * (1 + len(prompt.joined))
    result = await run_toy(task, {**CHANGES, "seed": seed})
    assert result.test is not None
    tuned = next(row for row in result.test.rows if row.method == "tuned")
    assert report.rows[0].confusion == tuned.confusion


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
