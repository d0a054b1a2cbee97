"""Where the search starts: examples that the model writes; models, budgets and texts that make it hard."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fedbpt_api.errors import BackendError
from fedbpt_api.prompts.written import CHOICES
from fedbpt_api.run.events import Assessed, Event, Noted
from fedbpt_api.run.result import RunResult
from fedbpt_api.scoring.backend import Prompt, Usage
from fedbpt_api.scoring.encode import Encoder
from toy import LABEL_WORDS, PROMPT, TEMPLATE, ToyBackend, Toys, make_task
from toy_runs import Values, run_toy

Lists = list[dict[int, float]]
EXAMPLES: Values = {"search.form": "demonstrations", "search.rounds": 1, "budget": {"scored": 3000}}


class Writer(ToyBackend):
    """A toy whose lists of words are what `change` makes of them, for whoever writes lines."""

    change: Callable[[Lists], Lists]

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[Lists, Usage]:
        lists, usage = await super().top_words(prompts, k)
        return (self.change(lists), usage) if k == CHOICES else (lists, usage)


def no_lists(lists: Lists) -> Lists:
    raise BackendError("this server lists no words")


async def run(
    toys: Toys,
    change: Callable[[Lists], Lists] | None,
    changes: Values,
    events: list[Event] | None = None,
    **sizes: int,
) -> tuple[RunResult, list[Assessed]]:
    """A run on a toy that writes so, and what was judged; what it tells goes into `events`."""
    if change is not None:
        toys.opened["toy"] = toy = Writer()
        toy.change = change
    events = [] if events is None else events
    result = await run_toy(make_task(**sizes), changes, events=events)
    return result, [event for event in events if isinstance(event, Assessed)]


def shown(judged: list[Assessed]) -> list[str]:
    return [event.prompt for event in judged if event.origin == "made-up examples"]


async def test_each_prompt_with_examples_has_one_for_every_label(toys: Toys) -> None:
    _, judged = await run(toys, None, EXAMPLES)
    assert len(shown(judged)) >= 4
    firsts: set[bool] = set()
    for prompt in shown(judged):
        assert prompt.count("Text:") == 2
        assert prompt.count("\nMood: negative\n\n") == prompt.count("\nMood: positive\n\n") == 1
        firsts.add(prompt.index("\nMood: negative\n\n") < prompt.index("\nMood: positive\n\n"))
        assert prompt.startswith((f"{PROMPT}Text:", "Text:"))
    assert len(firsts) == 2  # the order is drawn too


@pytest.mark.parametrize(
    "change",
    [
        no_lists,
        lambda lists: [{} for _ in lists],
        lambda lists: [{10: 0.0} for _ in lists],  # nothing but line breaks
    ],
    ids=["an error", "empty lists", "line breaks"],
)
@pytest.mark.parametrize("kind", ["bias", "weighted"])
async def test_where_the_model_cannot_write_random_words_take_the_place(
    toys: Toys, change: Callable[[Lists], Lists], kind: str
) -> None:
    events: list[Event] = []
    result, judged = await run(toys, change, EXAMPLES | {"verbalizer.kind": kind}, events)
    assert result.stopped == "rounds" and result.test is not None
    (told,) = [event.message for event in events if isinstance(event, Noted) and "random" in event.message]
    assert "nothing for 'negative', 'positive'" in told
    assert shown(judged)
    words = shown(judged)[-1].split("Text:")[1].split("\n")[0].split()
    assert len(words) == 2  # search.positions


async def test_no_more_prompts_with_examples_are_drawn_than_asked_for(toys: Toys) -> None:
    _, judged = await run(toys, None, EXAMPLES | {"search.draws": 3})
    assert 1 <= len(shown(judged)) <= 3


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT.rstrip(), ""])
async def test_the_model_writes_under_the_users_prompt_and_the_label(toys: Toys, prompt: str) -> None:
    begun = set[str]()

    class Listener(ToyBackend):
        async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[Lists, Usage]:
            begun.update([await self.detokenize(p.ids) for p in prompts if k == CHOICES])
            return await super().top_words(prompts, k)

    toys.opened["toy"] = Listener()
    await run_toy(make_task(), EXAMPLES | {"prompts": [prompt]})
    lead = f"{PROMPT.rstrip()}\n" if prompt else ""
    starts = tuple(f"{lead}Mood: {label}\nText:" for label in ("negative", "positive"))
    assert begun >= set(starts) and all(text.startswith(starts) for text in begun)


@pytest.mark.parametrize("form", ["demonstrations", "auto"])
async def test_lines_without_a_word_that_could_be_changed_start_no_search(toys: Toys, form: str) -> None:
    def letters(lists: Lists) -> Lists:
        return [{65 + i: -1.0 * i for i in range(20)} for _ in lists]

    result, judged = await run(toys, letters, EXAMPLES | {"search.form": form})
    assert result.stopped == "rounds" and not shown(judged)


async def test_no_prompt_is_judged_that_does_not_fit_beside_the_longest_text(toys: Toys) -> None:
    task = make_task()
    toy = ToyBackend()
    encoder = Encoder(toy, TEMPLATE, LABEL_WORDS)
    rows = [row for client in task.clients for _, part in client.parts() for row in part]
    longest = max(len(text.after) for text in await encoder.texts(rows))
    counts = []
    for room in (60, 80, 120):
        toys.opened["toy"] = ToyBackend(context=longest + room)
        result, judged = await run(toys, None, EXAMPLES)
        assert result.stopped == "rounds"
        lengths = [len(await toy.tokenize(prompt)) for prompt in shown(judged)]
        assert max(lengths, default=0) <= room
        counts.append(len(lengths))
    assert counts[0] < counts[-1]


async def test_writing_takes_a_small_share_of_a_clients_own_budget(toys: Toys) -> None:
    own: Values = {"clients.0.budget": {"scored": 300}, "budget": {"scored": 20_000}, "search.rounds": 3}
    result, _ = await run(toys, None, own | {"search.form": "auto"})
    assert result.rounds[1].clients[0].answered
    assert result.spent["client0"]["scored"] <= 300


async def test_parties_with_little_of_their_own_write_for_every_label(toys: Toys) -> None:
    """Each of three has two lines to write; for one label alone they would be of no use."""
    own: Values = {f"clients.{n}.budget": {"scored": 400} for n in range(3)}
    events: list[Event] = []
    _, judged = await run(toys, None, EXAMPLES | own | {"budget": {"scored": 20_000}}, events)
    assert shown(judged)
    assert not [event.message for event in events if isinstance(event, Noted) and "random" in event.message]


async def test_nothing_is_written_where_no_prompt_with_examples_could_be_judged(toys: Toys) -> None:
    small: Values = {"budget": {"scored": 1000}, "search.rounds": 1, "search.form": "auto"}
    asked = 0

    def count(lists: Lists) -> Lists:
        nonlocal asked
        asked += 1
        return lists

    _, judged = await run(toys, count, small, train=60, dev=30)
    assert not shown(judged) and asked == 0


async def test_without_development_texts_a_prompt_that_was_searched_for_can_win(toys: Toys) -> None:
    changes: Values = {"search.rounds": 8, "budget": {"scored": 2000}, "search.form": "words"}
    result, judged = await run(toys, None, changes, dev=0)
    best = min(judged, key=lambda event: event.train_loss)
    assert result.prompt == best.prompt
    assert best.origin != "start"
