"""Runs that share the store: what one has paid for costs the next nothing, and changes nothing."""

from __future__ import annotations

import builtins
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbpt_api.run.events import Event, Warned
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.stored import Shelves, scope_of, server_of
from fedbpt_api.scoring import store_file
from fedbpt_api.scoring.backend import BackendInfo, Usage
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import EncodedText
from fedbpt_api.scoring.journal import Journal, read_journal
from fedbpt_api.scoring.scorer import Scorer, Stopped
from fedbpt_api.scoring.store import Server, Store
from fedbpt_api.scoring.trie import label_trie
from fedbpt_api.task import Task
from toy import ALIKE, LABEL_WORDS, ToyBackend, Toys, make_task
from toy_runs import numbers, run_toy, scored

ON: dict[str, object] = {"cache.scores": True}
WORDS = (300, 301)
TEXTS = [EncodedText((), (i, i + 1), part="train") for i in range(40)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDBPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDBPT_NO_CACHE", raising=False)
    return tmp_path / "cache" / "scores"


@pytest.fixture
def task() -> Task:
    return make_task(2, train=6, dev=4, test=5)


def found(result: RunResult) -> int:
    return int(sum(c["stored"] + c.get("test_stored", 0) for c in result.spent.values()))


def paid(result: RunResult) -> int:
    return scored(result) + int(sum(c.get("test_scored", 0) for c in result.spent.values()))


# Whole runs -------------------------------------------------------------------------------------


async def test_a_second_run_pays_nothing_and_ends_the_same(toys: Toys, task: Task, tmp_path: Path) -> None:
    plain = await run_toy(task)
    first = await run_toy(task, ON, tmp_path / "first")
    second = await run_toy(task, ON, tmp_path / "second")
    assert paid(first) == paid(plain) == found(second) > 0
    assert paid(second) == found(first) == 0
    assert second.prompt == first.prompt == plain.prompt
    assert second.test == first.test == plain.test
    cost = {"scored", "tokens", "clients", "bytes_up"}  # counts of what was spent travel too
    for one, other in zip(numbers(first), numbers(second), strict=True):
        assert {k: v for k, v in one.items() if k not in cost} == {
            k: v for k, v in other.items() if k not in cost
        }


async def test_the_second_run_s_journal_holds_every_answer_at_no_cost(
    toys: Toys, task: Task, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        await run_toy(task, ON, tmp_path / name)
    for number in range(2):
        one, two = (
            {key: np.asarray(list(answer.items()) if isinstance(answer, dict) else answer).tobytes()
             for record in read_journal(tmp_path / name / f"scores-{number}.journal")
             for key, answer in zip(record.keys, record.answers, strict=True)}
            for name in ("first", "second")
        )  # fmt: skip
        assert one == two
        second = read_journal(tmp_path / "second" / f"scores-{number}.journal")
        assert {record.usage for record in second} == {Usage()}


async def test_a_run_of_many_rounds_that_finds_everything_is_not_taken_for_idle(toys: Toys) -> None:
    task = make_task(1, train=4, dev=3, test=0)
    more = ON | {"search.rounds": 30, "budget.scored": 100_000}
    first, second = await run_toy(task, more), await run_toy(task, more)
    assert (first.stopped, len(first.rounds)) == (second.stopped, len(second.rounds))
    assert paid(second) == 0


async def test_another_server_or_model_shares_nothing(toys: Toys, task: Task) -> None:
    await run_toy(task, ON)
    assert found(await run_toy(task, ON | {"backend.name": "b"})) == 0
    toys["toy"].seed = 1
    toys["toy"].__post_init__()
    assert found(await run_toy(task, ON)) == 0


async def test_a_server_that_answers_otherwise_under_the_same_names_is_found_out(
    toys: Toys, task: Task
) -> None:
    await run_toy(task, ON)
    toys["toy"]._base = toys["toy"]._base[::-1].copy()
    events: list[Event] = []
    result = await run_toy(task, ON, events=events)
    assert found(result) == 0 and paid(result) > 0
    (told,) = [event.message for event in events if isinstance(event, Warned) and "store" in event.message]
    assert "answers otherwise" in told and "fedbpt cache prune --server 1" in told


# Off means off ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["default", "setting", "machine", "process"])
async def test_off_touches_no_file(
    how: str, toys: Toys, task: Task, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_toy(task, ON)
    others: dict[str, dict[str, object]] = {"default": {}, "setting": {"cache.scores": False}}
    changes = others.get(how, ON)
    if how == "machine":
        store_file.switch(on=False)
    if how == "process":
        monkeypatch.setenv("FEDBPT_NO_CACHE", "1")
    touched: list[str] = []

    def noting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: object, *args: Any, **kwargs: Any) -> Any:
            if isinstance(path, str | os.PathLike) and place in (Path(path), *Path(path).parents):
                touched.append(str(path))
            return real(path, *args, **kwargs)

        return call

    for module, name in (
        (builtins, "open"),
        (os, "open"),
        (os, "mkdir"),
        (os, "stat"),
        (sqlite3, "connect"),
    ):
        monkeypatch.setattr(module, name, noting(getattr(module, name)))
    result = await run_toy(task, changes)
    assert not touched and found(result) == 0 and paid(result) > 0


async def test_nothing_is_made_where_it_is_off(toys: Toys, task: Task, place: Path) -> None:
    await run_toy(task)
    assert not place.parent.exists()


# Trouble ----------------------------------------------------------------------------------------


async def test_a_store_that_cannot_be_used_is_told_and_the_run_goes_on(
    toys: Toys, task: Task, place: Path
) -> None:
    place.mkdir(parents=True)
    (place / store_file.FILE).write_bytes(b"x" * 5000)
    events: list[Event] = []
    plain, result = await run_toy(task), await run_toy(task, ON, events=events)
    assert paid(result) == paid(plain) and result.prompt == plain.prompt
    (told,) = [event.message for event in events if isinstance(event, Warned)]
    assert "goes on without it" in told and "fedbpt cache prune --all" in told


async def test_a_store_that_breaks_in_mid_run_is_told(toys: Toys, task: Task, place: Path) -> None:
    await run_toy(task, ON)
    path, events = place / store_file.FILE, list[Event]()
    data = path.read_bytes()
    path.write_bytes(data[: 4 * 4096] + b"\xff" * (len(data) - 4 * 4096))
    plain, result = await run_toy(task), await run_toy(task, ON, events=events)
    assert result.prompt == plain.prompt and paid(result) + found(result) == paid(plain)
    assert [event for event in events if isinstance(event, Warned) and "store" in event.message]


# The scorer -------------------------------------------------------------------------------------


def scorer(store: Store, backend: ToyBackend, **more: Any) -> Scorer:
    made = Scorer(backend, Budget(), shelf=store.shelf(Server({"kind": "toy"}, {})), **more)
    made.use_words(WORDS)
    return made


async def test_only_what_the_store_lacks_is_asked_and_reservations_are_given_back(tmp_path: Path) -> None:
    store, backend = Store(tmp_path / "s"), ToyBackend()
    await scorer(store, backend).score((5,), TEXTS[:25])
    store.close()
    store, asked = Store(tmp_path / "s"), ToyBackend()
    second = scorer(store, asked)
    rows = await second.score((5,), TEXTS)
    store.close()
    np.testing.assert_array_equal(rows, await _plain(TEXTS))
    assert (asked.scored, second.budget.spent.scored, second.budget.stored) == (15, 15, 25)
    assert second.budget._reserved == Usage()


async def _plain(texts: list[EncodedText]) -> object:
    made = Scorer(ToyBackend(), Budget())
    made.use_words(WORDS)
    return await made.score((5,), texts)


async def test_a_journal_with_found_answers_is_enough_without_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    await scorer(store, ToyBackend()).score((5,), TEXTS)
    store.close()
    store, path = Store(tmp_path / "s"), tmp_path / "scores.journal"
    began = scorer(store, ToyBackend(), journal=Journal(path, b"secret"))
    rows = await began.score((5,), TEXTS)
    assert began.journal is not None
    began.journal.close()
    store.close()
    backend, journal = ToyBackend(), Journal(path, b"secret")
    resumed = Scorer(backend, Budget(), journal=journal)
    resumed.use_words(WORDS)
    np.testing.assert_array_equal(await resumed.score((5,), TEXTS), rows)
    journal.close()
    assert (backend.requests, resumed.budget.spent, resumed.budget.stored) == (0, Usage(), len(TEXTS))
    assert (began.budget.stored, began.budget.duplicates) == (
        resumed.budget.stored,
        resumed.budget.duplicates,
    )


async def test_a_second_look_is_always_new(tmp_path: Path) -> None:
    store, backend = Store(tmp_path / "s"), ToyBackend(noise=0.1)
    for _ in range(2):
        asked = scorer(store, backend)
        await asked.scores((5,), TEXTS)
        await asked.scores((5,), TEXTS, repeat=1)
        store.close()
        store = Store(tmp_path / "s")
    store.close()
    assert backend.scored == 3 * len(TEXTS)


async def test_a_run_that_finds_everything_can_be_stopped(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    await scorer(store, ToyBackend()).score((5,), TEXTS)
    store.close()
    store = Store(tmp_path / "s")
    with pytest.raises(Stopped):
        await scorer(store, ToyBackend(), stopping=lambda: True).score((5,), TEXTS)
    store.close()


# Who answers ------------------------------------------------------------------------------------


async def test_whatever_may_change_a_score_makes_another_server() -> None:
    toy = ToyBackend()
    plain, alike = await label_trie(toy, LABEL_WORDS), await label_trie(toy, ALIKE)
    info = BackendInfo(
        "openai", "m", "f", 100, details={"url": "http://me:pw@host:1/v1", "way": "chat", "noise": "0"}
    )
    options = {"base_url": "http://me:pw@host:1/v1", "system": "Be brief."}
    base = server_of(info, options, plain, [(1, 2)])
    others = [
        server_of(replace(info, kind="vllm"), options, plain, [(1, 2)]),
        server_of(replace(info, model="n"), options, plain, [(1, 2)]),
        server_of(replace(info, fingerprint="g"), options, plain, [(1, 2)]),
        server_of(replace(info, details=info.details | {"way": "completions"}), options, plain, [(1, 2)]),
        server_of(
            replace(info, details=info.details | {"url": "http://host:2/v1"}), options, plain, [(1, 2)]
        ),
        server_of(info, options | {"system": "Be kind."}, plain, [(1, 2)]),
        server_of(info, options, alike, [(1, 2)]),
        server_of(info, options, plain, [(1, 3)]),
    ]
    salt = b"s" * 32
    assert len({server.identity(salt) for server in (base, *others)}) == len(others) + 1
    same = replace(info, details=info.details | {"noise": "0.1", "requests of the probe": "9"}, noise=0.1)
    assert server_of(same, options, plain, [(1, 2)]).identity(salt) == base.identity(salt)
    assert "pw" not in str(base.about) and base.about["url"] == "http://host:1/v1"


def test_lists_depend_on_all_that_a_run_says_before() -> None:
    said = {"prompts": ["a"], "template": "{text}", "labels": {"x": ["y"]}, "seed": 0}
    scopes = {scope_of(b"texts", said), scope_of(b"other", said)}
    scopes |= {scope_of(b"texts", said | {key: ["z"]}) for key in ("prompts", "template", "labels")}
    assert len(scopes) == 5 and scope_of(b"texts", said | {"seed": 1}) in scopes


async def test_a_server_that_cannot_be_asked_leaves_the_run_without_a_store(place: Path) -> None:
    warnings: list[str] = []
    toy = ToyBackend(fail_from=1)
    shelves = await Shelves.open(True, b"", warnings)
    assert await shelves.of(toy, {}, await label_trie(toy, LABEL_WORDS)) is None
    await shelves.aclose()
    assert "without the shared store" in warnings[0]
