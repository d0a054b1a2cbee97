"""Runs in which only sums over all parties arrive: the same result, and nothing of a single party."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from fedbpt_api import resume
from fedbpt_api.errors import ConfigError, FedbptError, QuorumError
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.facts import Facts
from fedbpt_api.federation.hidden import OPEN, Hidden, common
from fedbpt_api.federation.masks import Masks, to_words
from fedbpt_api.federation.summable import packed
from fedbpt_api.federation.together import TOGETHER, Together, _all
from fedbpt_api.run import enclosed
from fedbpt_api.run.events import Assessed, Event
from fedbpt_api.run.replay import replay
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tune import Tuner
from fedbpt_api.task import LabelWords
from toy import ALIKE, LABEL_WORDS, Toys, make_task
from toy_runs import after_round, make_settings

SPENT: dict[str, object] = {"search.choice": "committee", "search.ensemble": 2, "budget.scored": 800}
RUNS: dict[str, dict[str, object]] = {
    "rounds": {"search.rounds": 4, "budget.scored": 4000},
    "averages": {"search.rounds": 3, "federation.aggregator": "fedavg"},
    "together": {
        "search.choice": "committee",
        "search.ensemble": 3,
        "search.rounds": 2,
        "search.form": "auto",
        "search.opening": 0.3,
        "budget.scored": 6000,
    },
}


async def run(
    changes: dict[str, object], folder: Path | None = None, label_words: LabelWords = LABEL_WORDS
) -> tuple[RunResult, list[Assessed]]:
    """A toy run of four parties; the prompts that it judged."""
    task = replace(make_task(clients=4), label_words=label_words)
    judged: list[Assessed] = []

    def listen(event: Event) -> None:
        if isinstance(event, Assessed):
            judged.append(event)

    changes = {"search.proposals": 0} | changes
    return await Tuner(make_settings(task, changes), task, folder, on_event=listen).run(), judged


def pooled(result: RunResult) -> dict[str, object]:
    assert result.test is not None
    return {row.method: (row.n, row.accuracy) for row in result.test.rows if row.client == "*"}


@pytest.mark.parametrize(
    ("name", "label_words"), [*((name, LABEL_WORDS) for name in RUNS), ("rounds", ALIKE)]
)
async def test_a_run_of_sums_is_the_run(toys: Toys, name: str, label_words: LabelWords) -> None:
    plain, judged = await run(RUNS[name], label_words=label_words)
    summed, again = await run(RUNS[name] | {"privacy.mode": "sums"}, label_words=label_words)
    assert summed.prompt == plain.prompt
    assert [a.prompt for a in again] == [a.prompt for a in judged]
    for field in ("loss", "train_loss", "dev_loss"):
        np.testing.assert_allclose(
            [getattr(a, field) for a in again], [getattr(a, field) for a in judged], atol=1e-6, rtol=0
        )
    assert pooled(summed) == pooled(plain)
    assert [r.sigma for r in summed.rounds] == pytest.approx([r.sigma for r in plain.rounds], rel=1e-6)
    total = sum(spent["scored"] for spent in plain.spent.values())
    assert list(summed.spent) == [TOGETHER] and summed.spent[TOGETHER]["scored"] == total


async def test_the_server_never_holds_a_single_party_s_numbers(
    toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: defaultdict[str, list[tuple[bytes, bytes]]] = defaultdict(list)  # questions and answers, by party
    bare: defaultdict[bytes, dict[str, np.ndarray]] = defaultdict(dict)  # rows before masks

    class Logged(Together):
        def __init__(self, members: dict[str, Exchange], tasks: dict[str, bytes]) -> None:
            def logged(name: str, exchange: Exchange) -> Exchange:
                async def exchange_(data: bytes) -> bytes:
                    answer = await exchange(data)
                    held[name].append((data, answer))
                    return answer

                return exchange_

            super().__init__({name: logged(name, e) for name, e in members.items()}, tasks)

    hide = Hidden.hide

    def seen(self: Hidden, question, answer):  # type: ignore[no-untyped-def]
        if answer.kind not in OPEN:
            body = answer.body
            row = np.frombuffer(body) if answer.kind == "weighed" else packed(answer, 1 << 18)[1]
            bare[common(question)][self._masks.name] = row
        return hide(self, question, answer)

    monkeypatch.setattr(enclosed, "Together", Logged)
    monkeypatch.setattr(Hidden, "hide", seen)
    await run(RUNS["rounds"] | {"privacy.mode": "sums"})

    masked = 0
    for name, exchanges in held.items():
        for asked, answered in exchanges:
            question, answer = opened(asked), opened(answered)
            if answer.kind != "masked":
                assert answer.kind in OPEN
                assert b"mean" not in orjson.dumps(answer.fields) and not answer.body
                continue
            masked += 1
            row = bare[common(question)][name]
            told = np.frombuffer(answer.body, dtype="<u8")
            assert len(told) == len(row)
            # Each word is another than without its mask; by chance one of 2^64 would not be.
            assert (told != to_words(row)).all()
    assert masked > 100


async def test_a_party_that_is_started_again_agrees_anew(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = await run(RUNS["rounds"] | {"privacy.mode": "sums"})
    asked = 0

    class Restarting(Together):
        async def __call__(self, data: bytes) -> bytes:
            nonlocal asked
            asked += 1
            if asked in (6, 15, 30):  # a new process knows no keys
                hidden = next(iter(restarted)) if asked == 6 else list(restarted)[1]
                hidden._masks = Masks(hidden._masks.name)
            return await super().__call__(data)

    restarted: list[Hidden] = []
    begin: Callable[[Hidden, Masks, bytes, Path | None], None] = Hidden.__init__

    def noted(self: Hidden, masks: Masks, about: bytes, place: Path | None) -> None:
        begin(self, masks, about, place)
        restarted.append(self)

    monkeypatch.setattr(Hidden, "__init__", noted)
    monkeypatch.setattr(enclosed, "Together", Restarting)
    again, _ = await run(RUNS["rounds"] | {"privacy.mode": "sums"})
    assert asked > 30
    assert again.prompt == plain.prompt and pooled(again) == pooled(plain)
    assert again.spent[TOGETHER]["scored"] == plain.spent[TOGETHER]["scored"]


async def test_a_run_of_sums_goes_on_where_it_was(toys: Toys, tmp_path: Path) -> None:
    changes = RUNS["rounds"] | {"privacy.mode": "sums", "search.proposals": 0}
    whole, _ = await run(changes)
    requests = toys["toy"].requests
    toys.opened.clear()
    task = make_task(clients=4)
    tuner: Tuner
    stop = after_round(2, lambda: tuner.stop())
    tuner = Tuner(make_settings(task, changes), task, tmp_path / "run", stop)
    assert (await tuner.run()).stopped == "cancelled"
    result = await resume(tmp_path / "run", task=task)
    assert result.prompt == whole.prompt and result.test == whole.test  # masks vanish to the last bit
    assert result.spent[TOGETHER]["scored"] == whole.spent[TOGETHER]["scored"]
    assert toys["toy"].requests == requests
    assert (await replay(tmp_path / "run", task=task)).differences == ()


async def test_what_costs_nothing_is_answered_when_the_budget_is_spent(toys: Toys) -> None:
    """The members of an ensemble are scored already, so judging it takes no budget."""
    summed, judged = await run(SPENT | {"privacy.mode": "sums", "search.rounds": 9})
    assert summed.stopped == "budget" and summed.spent[TOGETHER]["scored"] <= 800
    assert judged[-1].origin == "ensemble" and summed.test is not None


async def test_what_does_not_go_together_is_refused(toys: Toys) -> None:
    with pytest.raises(ConfigError, match=r"privacy.mode = 'sums' hides it"):
        await run({"privacy.mode": "sums", "federation.aggregator": "median"})
    task = make_task(clients=2)
    with pytest.raises(FedbptError, match="from 3 parties up, and these are 2"):
        await Tuner(make_settings(task, {"privacy.mode": "sums"}), task).run()
    assert toys["toy"].requests == 0


@pytest.mark.parametrize("kind", ["fit", "evaluate", "search", "weighed"])
async def test_a_party_that_freezes_ends_the_run_in_time(
    toys: Toys, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    class Frozen(Together):
        def __init__(self, members: dict[str, Exchange], tasks: dict[str, bytes]) -> None:
            name, exchange = sorted(members.items())[1]

            async def frozen(data: bytes) -> bytes:
                if opened(data).kind == kind:
                    await asyncio.Event().wait()
                return await exchange(data)

            super().__init__({**members, name: frozen}, tasks)

    monkeypatch.setattr(enclosed, "Together", Frozen)
    with pytest.raises(QuorumError):
        async with asyncio.timeout(60):
            await run({"privacy.mode": "sums", "search.rounds": 2, "federation.timeout": 0.5})


async def test_lines_that_are_none_are_refused(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty(Together):
        def __init__(self, members: dict[str, Exchange], tasks: dict[str, bytes]) -> None:
            name, exchange = sorted(members.items())[1]

            async def empty(data: bytes) -> bytes:
                answer = opened(await exchange(data))
                fields = dict(answer.fields)
                if answer.kind == "lines":
                    fields["answer"] = {}
                return seal(Envelope(answer.kind, fields, answer.body))

            super().__init__({**members, name: empty}, tasks)

    monkeypatch.setattr(enclosed, "Together", Empty)
    result, _ = await run({"privacy.mode": "sums"} | RUNS["together"])
    assert result.test is not None


async def test_parties_may_lack_a_label() -> None:
    told = {
        "name": "a", "train": 2, "dev": 2, "test": 2, "labels": [1, 1], "tokens": [1, 2], "longest": 5,
        "scored": None, "kind": "k", "model": "m", "fingerprint": "f", "context": 100, "max_words": 10,
        "noise": 0.0, "block": 1, "inputs": [1],
    }  # fmt: skip
    facts = [Facts.read(told | {"labels": labels, "train": sum(labels)}) for labels in ([1, 1], [2], [0, 1])]
    assert _all(facts).labels == (3, 2) and _all(facts).train == 5


async def test_a_party_that_fails_is_asked_again_and_then_ends_the_run(
    toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"c1": 2}

    class Failing(Together):
        def __init__(self, members: dict[str, Exchange], tasks: dict[str, bytes]) -> None:
            name, exchange = sorted(members.items())[1]

            async def failing(data: bytes) -> bytes:
                if opened(data).kind == "evaluate" and left["c1"]:
                    left["c1"] -= 1
                    raise FedbptError("the line is cut")
                return await exchange(data)

            super().__init__({**members, name: failing}, tasks)

    monkeypatch.setattr(enclosed, "Together", Failing)
    result, _ = await run({"privacy.mode": "sums"})
    assert left["c1"] == 0 and result.test is not None
    left["c1"] = 1000
    with pytest.raises(FedbptError, match="the line is cut"):
        await run({"privacy.mode": "sums"})
