"""Where the prompt stands: decided by lengths, then by held-out loss, and kept to the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedbpt_api import TunedPrompt
from fedbpt_api.run.classify import Classifier
from fedbpt_api.run.events import Event, Noted, Testing
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.backend import Prompt, Scores
from toy import IDS, ToyBackend, Toys, make_task
from toy_runs import make_settings


class Prefers(ToyBackend):
    """A toy that answers only where the word " home" stands before (or behind) the text's mood words."""

    first = True

    async def score(self, prompts: list[Prompt], words: tuple[int, ...]) -> Scores:  # type: ignore[override]
        scores = await super().score(prompts, words)
        home = IDS[" home"]
        for row, prompt in zip(scores.logprobs, prompts, strict=True):
            ids = list(prompt.ids)
            if home in ids and (ids.index(home) < len(ids) // 2) != self.first:
                row[:] = np.log(1.0 / len(row))  # it does not understand
        return scores


async def decided(toys: Toys, folder: Path, prompt: str, **changes: object) -> tuple[str, Tuner]:
    """What a run says about its layout before it tests."""
    notes: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Noted):
            notes.append(event.message)
        assert not (isinstance(event, Testing) and not notes)

    task = make_task()
    values = {"prompt_place": "auto", "template": "Text: {text}\nMood:", "prompts": [prompt]} | changes
    tuner = Tuner(make_settings(task, values), task, folder, hear)
    await tuner.run()
    (note,) = notes
    return note, tuner


@pytest.mark.parametrize(("first", "place"), [(True, "prompt first"), (False, "example first")])
async def test_the_layout_that_the_model_understands_wins(
    toys: Toys, tmp_path: Path, first: bool, place: str
) -> None:
    toys.opened["toy"] = toy = Prefers()
    toy.first = first
    note, _ = await decided(toys, tmp_path / "run", " home")
    assert note.startswith(place) and "held-out loss" in note
    prompt = TunedPrompt.load(tmp_path / "run")
    assert prompt.template.source.startswith("{prompt}") == first
    async with await Classifier.open(prompt) as classifier:  # the artefact remembers it
        rows = [e for client in make_task().clients for e in client.test]
        assert (await classifier.evaluate(rows)).rows[0].accuracy > 0.6


async def test_a_prompt_longer_than_the_texts_stays_in_front_without_a_trial(
    toys: Toys, tmp_path: Path
) -> None:
    note, _ = await decided(toys, tmp_path / "run", " home" * 60)
    assert note.startswith("prompt first: it is longer (60 tokens)")


async def test_a_trial_that_the_budget_does_not_bear_is_not_made(toys: Toys, tmp_path: Path) -> None:
    note, tuner = await decided(toys, tmp_path / "run", " home", **{"budget.scored": 300})
    assert "too many here" in note
    assert tuner.status.scored <= 300
