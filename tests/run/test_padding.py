"""Whole cache blocks: decided by tokens, then by held-out loss; off and without blocks nothing changes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedbpt_api import TunedPrompt
from fedbpt_api.run.events import Assessed, Event, Noted
from fedbpt_api.run.result import RunResult
from fedbpt_api.scoring.backend import Prompt, Scores
from fedbpt_api.task import Template
from toy import IDS, PROMPT, TEMPLATE, ToyBackend, Toys, make_task
from toy_runs import Values, numbers, run_toy, scored

LEAD = 2  # "Text" and ":"
BREAK = 10  # "\n"
START = asyncio.run(ToyBackend().tokenize(PROMPT))


class Judges(ToyBackend):
    """A toy that understands only prompts with (or without) a line break at their beginning."""

    likes = True

    async def score(self, prompts: list[Prompt], words: tuple[int, ...]) -> Scores:  # type: ignore[override]
        scores = await super().score(prompts, words)
        for row, prompt in zip(scores.logprobs, prompts, strict=True):
            if (prompt.ids[0] == BREAK) != self.likes:
                row[:] = np.log(1.0 / len(row))
        return scores


async def run(
    toys: Toys, mode: str, changes: Values | None = None, toy: ToyBackend | None = None, block: int = 16
) -> tuple[RunResult, list[str], list[Assessed]]:
    """A run, what it noted and what it judged."""
    toys.opened["toy"] = toy = toy or ToyBackend()
    toy.block = block
    events: list[Event] = []
    values: Values = {"prompt_padding": mode, "prompts": [PROMPT]} | (changes or {})
    task = make_task()
    if "prompt_place" in values:
        task = replace(task, template=Template.parse(TEMPLATE.source.removeprefix("{prompt}"), "after"))
    result = await run_toy(task, values, events=events)
    notes = [event.message for event in events if isinstance(event, Noted)]
    return result, notes, [event for event in events if isinstance(event, Assessed)]


def shared(toy: ToyBackend) -> set[int]:
    """Lengths of what inputs had in front of their texts, of those that were not the user's prompt's."""
    lead = (IDS["Text"], ord(":"))
    found = set()
    for ids, _ in toy.answered:
        places = [i for i in range(len(ids) - 1) if ids[i : i + 2] == lead]
        if ids[: places[-1]] != START:
            found.add(places[-1] + LEAD)
    return found


@pytest.mark.parametrize("form", ["words", "demonstrations"])
async def test_every_prompt_of_the_search_fills_whole_blocks(toys: Toys, form: str) -> None:
    changes: Values = {"search.form": form, "budget": {"scored": 3000}}
    result, (note,), judged = await run(toys, "on", changes)
    assert note.startswith("prompts fill whole blocks of 16")
    toy = toys["toy"]
    for event in judged:
        if event.origin in ("merged mean", "best candidate", "padded start"):
            assert (LEAD + len(await toy.tokenize(event.prompt))) % 16 == 0
    if form == "words":
        assert {length % 16 for length in shared(toy)} == {0}
    assert result.stopped == "rounds"


@pytest.mark.parametrize(("mode", "block"), [("off", 16), ("auto", 1), ("on", 1)])
@pytest.mark.parametrize("form", ["words", "demonstrations"])
async def test_off_and_without_blocks_the_run_is_the_same_to_the_bit(
    toys: Toys, mode: str, block: int, form: str
) -> None:
    changes: Values = {"search.form": form, "budget": {"scored": 2500}}
    plain, _, _ = await run(toys, "off", changes, block=1)
    other, notes, _ = await run(toys, mode, changes, block=block)
    assert numbers(other) == numbers(plain)
    assert (other.prompt, other.spent, other.test) == (plain.prompt, plain.spent, plain.test)
    assert [note[:18] for note in notes] == (["prompts not padded"] if mode == "on" else [])


@pytest.mark.parametrize("likes", [True, False])
async def test_auto_pads_only_where_held_out_texts_are_no_worse(
    toys: Toys, tmp_path: Path, likes: bool
) -> None:
    toy = Judges()
    toy.likes = likes
    _, (note,), judged = await run(toys, "auto", toy=toy)
    assert note.startswith("prompts fill whole blocks of 16" if likes else "prompts not padded, though")
    assert "loss" in note
    assert [event.origin for event in judged][:2] == ["start", "padded start"]
    searched = [e.prompt for e in judged if e.origin in ("merged mean", "best candidate")]
    assert {prompt.startswith("\n") for prompt in searched} == {likes}


async def test_the_users_prompt_is_judged_and_tested_as_it_is(toys: Toys, tmp_path: Path) -> None:
    toys.opened["toy"] = toy = Judges()
    toy.likes, toy.block = True, 16
    folder = tmp_path / "run"
    values: Values = {"prompt_padding": "on", "prompts": [PROMPT]}
    result = await run_toy(make_task(), values, folder)
    assert result.start == PROMPT and result.test is not None
    asked = [ids[: len(START)] == START for ids, _ in toy.answered]
    assert 0 < sum(asked) < len(asked)
    prompt = TunedPrompt.load(folder)
    assert (len(prompt.ids) + LEAD) % 16 == 0 and prompt.text.startswith("\n")
    assert (prompt.space["block"], prompt.space["lead"]) == (16, LEAD)


@pytest.mark.parametrize(
    ("mode", "changes", "block", "why"),
    [
        ("auto", {"search.minibatch": 1}, 16, "would save 0%"),
        ("auto", {"prompts": ["a" * 59], "search.sigma": 100.0}, 64, "would save"),
        ("auto", {"budget": {"tokens": 60_000}}, 16, "the budget counts tokens"),
        ("auto", {"budget": {"scored": 500}}, 16, "trying it takes 60 scored examples"),
        ("on", {"prompt_place": "after"}, 16, "with the example first"),
        ("on", {}, 1, "the server's cache has no blocks"),
        ("on", {}, 128, "would not fit beside the longest text"),
    ],
)
async def test_why_prompts_are_not_padded(
    toys: Toys, mode: str, changes: Values, block: int, why: str
) -> None:
    toy = ToyBackend(context=128)
    result, (note,), judged = await run(toys, mode, changes, toy, block)
    assert note.startswith("prompts not padded: ") and why in note
    assert "padded start" not in [event.origin for event in judged]
    plain, _, _ = await run(toys, "off", changes, ToyBackend(context=128), block)
    assert scored(result) == scored(plain) and numbers(result) == numbers(plain)


async def test_vectors_are_left_as_they_are(toys: Toys) -> None:
    _, (note,), _ = await run(toys, "on", {"search.space": "soft"}, ToyBackend(soft=True))
    assert note == "prompts not padded: continuous ones are as long as they are"
