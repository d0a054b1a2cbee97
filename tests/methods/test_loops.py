"""The baselines' loops: calibration by its formula, edits that keep pieces, examples nobody is judged on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.methods.edits import edit, neighbours, phrases
from fedbpt_api.prompts.codebook import Codebook
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.events import Assessed, Event
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.task import Example
from fedbpt_api.verbalizer.committee import alone
from toy import IDS, LABEL_WORDS, PROMPT, TEMPLATE, ToyBackend, Toys, make_task
from toy_runs import run_toy

BOOK = Codebook(
    (1, 2, 3, 4), (" good", " great", " bad", " mood"), np.eye(4) * [[1], [1.1], [5], [9]], "test"
)


async def test_calibration_divides_by_what_texts_without_content_get(toys: Toys, tmp_path: Path) -> None:
    await run_toy(make_task(), {"method": "calibration", "verbalizer.kind": "words"}, tmp_path / "run")
    toy = ToyBackend()
    words = [IDS[group[0]] for group in LABEL_WORDS.words]
    shares = []
    prompt = await toy.tokenize(PROMPT)
    for text in await Encoder(toy, TEMPLATE, LABEL_WORDS).texts([Example(t) for t in ("N/A", "[MASK]", "")]):
        logprobs = (await toy.score([text.with_prompt(prompt)], words)).logprobs[0]
        shares.append(np.exp(logprobs) / np.exp(logprobs).sum())
    wanted = -np.log(np.mean(shares, axis=0))
    found = alone(TunedPrompt.load(tmp_path / "run").verbalizer)
    assert found.scale == 1.0 and not found.weights.any()
    np.testing.assert_allclose(np.diff(found.bias), np.diff(wanted), atol=1e-6)


@given(st.text(alphabet="ab .,\n", max_size=80))
def test_phrases_are_the_text(text: str) -> None:
    parts = phrases(text)
    assert "".join(parts) == text
    assert all(len(part.split()) <= 4 for part in parts)


@given(st.integers(0, 10_000), st.integers(0, 2))
def test_an_edit_deletes_swaps_adds_or_replaces(seed: int, gone: int) -> None:
    parts = phrases("Is the mood good or bad, or great? Say it now.\n")
    deleted = ["Please. ", "Hm "][:gone]
    edited, removed = edit(parts, deleted, BOOK, np.random.default_rng(seed))
    if removed is not None:
        assert sorted([*edited, removed]) == sorted(parts)
    elif len(edited) == len(parts) + 1:
        rest = list(edited)
        for part in parts:
            rest.remove(part)
        assert rest[0] in deleted
    elif sorted(edited) != sorted(parts):
        changed = [(a, b) for a, b in zip(parts, edited, strict=True) if a != b]
        assert len(changed) == 1


def test_a_word_is_replaced_by_a_near_one() -> None:
    assert neighbours(BOOK, "good")[0] == "great"
    assert neighbours(BOOK, "Good")[0] == "great"
    assert neighbours(BOOK, "unheard") == []


async def test_examples_in_context_are_never_judged_by_themselves(toys: Toys) -> None:
    task = make_task()
    events: list[Event] = []
    await run_toy(task, {"method": "in-context", "budget.scored": 600}, events=events)
    shown = [e.prompt for e in events if isinstance(e, Assessed) and e.origin == "examples of the clients"]
    assert shown
    train = {row.text for client in task.clients for row in client.train}
    judged = {row.text for client in task.clients for row in (*client.dev, *client.test)}
    for prompt in shown:
        texts = {line.removeprefix("Text: ") for line in prompt.splitlines() if line.startswith("Text: ")}
        assert texts and texts <= train and not texts & (judged - train)
