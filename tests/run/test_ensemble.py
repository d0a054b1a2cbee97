"""Prompts that answer together: a mean of scores, chosen without a call, kept in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedbpt_api.prompts.tuned import JOINED, TunedPrompt
from fedbpt_api.run.classify import Classifier
from fedbpt_api.run.events import Assessed, Event
from fedbpt_api.run.replay import replay
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import Encoder, Ensemble
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.task import Example
from toy import IDS, LABEL_WORDS, TEMPLATE, ToyBackend, Toys, make_task
from toy_runs import fedbpt, run_toy, scored

CHANGES: dict[str, object] = {"search.ensemble": 3, "search.rounds": 4}


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


async def _run(folder: Path) -> tuple[TunedPrompt, list[Assessed], int]:
    """A run whose result is an ensemble; the first of a few seeds that gives one."""
    for seed in range(4):
        events: list[Event] = []
        place = folder / str(seed)
        result = await run_toy(make_task(seed=seed), {**CHANGES, "seed": seed}, place, events)
        prompt = TunedPrompt.load(place)
        if prompt.joined:
            assert JOINED in result.prompt
            return prompt, [e for e in events if isinstance(e, Assessed)], seed
    raise AssertionError("no seed gave an ensemble")


async def test_an_ensemble_is_chosen_without_a_call_and_is_better_on_held_out_texts(
    rough: Toys, tmp_path: Path
) -> None:
    prompt, judged, seed = await _run(tmp_path)
    single = [e for e in judged if e.origin != "ensemble"]
    together = [e for e in judged if e.origin == "ensemble"]
    assert together and min(e.loss for e in together) < min(e.loss for e in single)
    assert 1 <= len(prompt.joined) <= 2
    alone = await run_toy(make_task(seed=seed), {**CHANGES, "seed": seed, "search.ensemble": 1})
    both = await run_toy(make_task(seed=seed), {**CHANGES, "seed": seed})
    assert scored(both) == scored(alone)
    assert len(both.rounds) == len(alone.rounds) + 1 and both.rounds[-1].scored == 0
    tested = [sum(counts["test_scored"] for counts in result.spent.values()) for result in (alone, both)]
    assert tested[1] == tested[0] + 30 * len(prompt.joined)  # each member is asked about the 30 test texts


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
