"""A coordinator and parties that share nothing but messages: the same run, whatever ends in between."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import orjson
import pytest

from fedbpt_api.errors import ConfigError, FedbptError, QuorumError
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.flower.bundle import unpack
from fedbpt_api.flower.coordinator import coordinate
from fedbpt_api.run.result import RunResult
from fedbpt_api.task import Task
from toy import Toys, make_task
from toy_grid import Federation, ToyGrid, ToyNode
from toy_runs import numbers, run_toy, scored, texts_of

COMMITTEE: dict[str, object] = {
    "budget.scored": 10_000,
    "search.opening": 0.15,
    "search.choice": "committee",
    "search.ensemble": 2,
    "search.form": "demonstrations",
    "search.proposals": 1,
    "test.compare": "all",
}


def same(there: RunResult, here: RunResult, but: tuple[str, ...] = ()) -> None:
    """The same prompt, test and rounds, to the bit; but for some numbers of rounds."""
    assert there.prompt == here.prompt
    assert there.test == here.test
    shown = [
        [{key: repr(value) for key, value in record.items() if key not in but} for record in numbers(result)]
        for result in (there, here)
    ]
    assert shown[0] == shown[1]


def asked(grid: ToyGrid, kind: str) -> int:
    """How often parties were asked that."""
    bundles = [data for node in grid.members.values() for data in node.seen]
    return sum(opened(envelope).kind == kind for data in bundles for envelope in unpack(data))


def awake(grid: ToyGrid) -> ToyGrid:
    """The same parties, none of them frozen."""
    return ToyGrid({number: ToyNode(node.host) for number, node in grid.members.items()})


@pytest.mark.parametrize("changes", [{}, COMMITTEE], ids=["default", "committee"])
async def test_it_is_the_run_of_one_process(toys: Toys, fed: Federation, changes: dict[str, object]) -> None:
    task = make_task()
    here = await run_toy(task, changes)
    config = fed.write(task, changes)
    grid = fed.grid(task)
    there = await coordinate(grid, config, fed.run)
    same(there, here)
    private = [text.encode() for text in texts_of(task.clients)]
    for node in grid.members.values():
        assert not any(text in data for data in node.seen for text in private)
    kept = b"".join(path.read_bytes() for path in fed.run.iterdir() if path.is_file())
    assert not any(text in kept for text in private)


async def test_questions_of_a_moment_travel_together(toys: Toys, fed: Federation) -> None:
    """Prompts that are judged side by side take as many messages as one does."""
    task, config = make_task(), fed.write(make_task(), COMMITTEE)
    grid = fed.grid(task)
    await coordinate(grid, config, fed.run)
    fits, messages = asked(grid, "fit"), sum(len(node.seen) for node in grid.members.values())
    assert fits >= 8 * len(task.clients)
    assert messages < 4 * fits


async def test_a_search_of_which_no_gain_is_expected_ends_with_the_wave_that_says_so(
    toys: Toys, fed: Federation
) -> None:
    settled = COMMITTEE | {"search.opening": 0.75, "search.min_gain": 5.0}
    config = fed.write(make_task(), settled)
    result = await coordinate(fed.grid(make_task()), config, fed.run)
    assert result.stopped == "settled" and result.test is not None
    lines = [orjson.loads(line) for line in (fed.run / "prompts.jsonl").read_bytes().splitlines()]
    assert [line["origin"] for line in lines].count("made-up examples") == 32
    assert scored(result) < 10_000 / 2


@pytest.mark.parametrize("every", [9, 23])
async def test_a_coordinator_that_ends_anywhere_goes_on(toys: Toys, fed: Federation, every: int) -> None:
    task, config = make_task(), fed.write(make_task(), COMMITTEE)
    here = await run_toy(task, COMMITTEE)
    hosts = {100 + k: fed.host(client.name) for k, client in enumerate(task.clients)}
    loop, result, lives = asyncio.get_running_loop(), None, 0
    lives_of: list[asyncio.Task[RunResult]] = []
    while result is None:
        lives += 1
        left = itertools.count(every * len(task.clients), -1)

        def before(node: int, data: bytes, left: itertools.count[int] = left) -> None:
            if next(left) == 0:
                loop.call_soon_threadsafe(lives_of[-1].cancel)

        grid = ToyGrid({number: ToyNode(host) for number, host in hosts.items()}, before)
        lives_of.append(asyncio.create_task(coordinate(grid, config, fed.run)))
        with contextlib.suppress(asyncio.CancelledError):
            result = await lives_of[-1]
        assert lives < 30
    assert lives > 2
    same(result, here, ("clients", "bytes_up"))  # an update that is sent again says that it cost nothing
    assert {n: row["scored"] for n, row in result.spent.items()} == {
        n: row["scored"] for n, row in here.spent.items()
    }
    again = await coordinate(ToyGrid({}), config, fed.run)
    assert repr(again) == repr(result)  # it is finished, and nobody is asked


async def test_parties_that_are_started_again_pay_nothing_twice(toys: Toys, fed: Federation) -> None:
    task, config = make_task(), fed.write(make_task(), COMMITTEE)
    here = await run_toy(task, COMMITTEE)
    paid = toys["toy"].requests
    moments = itertools.count(1)
    grid = fed.grid(task)
    dead: list[object] = []

    def before(node: int, data: bytes) -> None:
        if next(moments) % 17 == 0:
            member = grid.members[node]
            dead.append(member.host)  # SIGKILL closes nothing; but what is locked is another process's then
            member.host = fed.host(member.host.name)

    grid.before = before
    there = await coordinate(grid, config, fed.run)
    same(there, here, ("scored", "tokens", "clients", "bytes_up"))  # told at another moment
    assert len(dead) > 3
    assert toys["toy"].requests - paid <= paid  # what a run costs, once more: nothing was asked twice


async def test_a_party_that_is_started_again_tells_its_test_from_its_search(
    toys: Toys, fed: Federation
) -> None:
    task, config = make_task(), fed.write(make_task())
    grid = fed.grid(task)
    result = await coordinate(grid, config, fed.run)
    asked_of = [envelope for data in grid.members[101].seen for envelope in unpack(data)]
    host = fed.host("client1")
    for kind in ("task", "words"):  # the first of each
        answer = opened(await host.answer(next(e for e in asked_of if opened(e).kind == kind)))
    paid, told = result.spent["client1"], answer.fields["spent"]
    assert told["search"]["scored"] == paid["scored"] and told["test"]["scored"] == paid["test_scored"] > 0


async def test_a_party_that_freezes_is_left_out_and_comes_back(toys: Toys, fed: Federation) -> None:
    task = make_task()
    config = fed.write(task, {"federation.timeout": 60, "search.rounds": 4})
    grid = fed.grid(task, jump=61)
    frozen = grid.members[101]

    def before(node: int, data: bytes) -> None:
        kinds = [opened(envelope).kind for envelope in unpack(data)]
        searched = asked(grid, "search")
        if "search" in kinds:
            frozen.frozen = 3 <= searched < 6  # the second round

    grid.before = before
    result = await coordinate(grid, config, fed.run)
    notes = [
        [client.note for client in record.clients if client.client == "client1"] for record in result.rounds
    ]
    assert any("no answer within" in note for (note,) in notes)
    assert notes[-1] == [""] and result.test is not None
    assert {row.client for row in result.test.rows} == {"*", "client0", "client1", "client2"}


@pytest.mark.parametrize(
    ("kind", "nth"),
    [("write", 0), ("fit", 4), ("fit message", 4), ("evaluate", 4), ("joint losses", 1), ("proposal", 1)],
)
async def test_a_party_that_freezes_at_any_question_and_never_comes_back_stops_nothing(
    toys: Toys, fed: Federation, kind: str, nth: int
) -> None:
    task = make_task()
    config = fed.write(task, COMMITTEE | {"federation.timeout": 60, "search.rounds": 2})
    grid = fed.grid(task, jump=61)
    frozen = grid.members[101]

    def before(node: int, data: bytes) -> None:
        kinds = [opened(envelope).kind for envelope in unpack(data)]
        frozen.frozen = frozen.frozen or (kind in kinds and asked(grid, kind) >= nth)

    grid.before = before
    async with asyncio.timeout(20 * 60):  # twenty deadlines
        result = await coordinate(grid, config, fed.run)
    assert frozen.frozen and result.test is not None
    assert "client1" not in {row.client for row in result.test.rows}


async def test_a_party_that_is_gone_for_good_is_named_and_costs_ten_deadlines(
    toys: Toys, fed: Federation
) -> None:
    task = make_task()
    config = fed.write(task, {"federation.timeout": 60, "search.rounds": 14})
    grid = fed.grid(task, jump=61)
    frozen = grid.members[101]

    def before(node: int, data: bytes) -> None:
        frozen.frozen = frozen.frozen or asked(grid, "search") >= 2

    grid.before = before
    result = await coordinate(grid, config, fed.run)
    notes = [client.note for r in result.rounds for client in r.clients if client.client == "client1"]
    assert any("left out: it has failed 10 times in a row" in note for note in notes)
    assert result.test is not None and "client1" not in {row.client for row in result.test.rows}


async def test_nobody_answering_stops_the_run_and_it_goes_on_later(toys: Toys, fed: Federation) -> None:
    task = make_task()
    here = await run_toy(task)
    config = fed.write(task, {"federation.timeout": 60})
    grid = fed.grid(task, jump=61)

    def before(node: int, data: bytes) -> None:
        for member in grid.members.values():
            member.frozen = asked(grid, "search") >= 3

    grid.before = before
    with pytest.raises(QuorumError, match="0 of 3 clients answered"):
        await coordinate(grid, config, fed.run)
    there = await coordinate(awake(grid), config, fed.run)
    assert there.prompt == here.prompt and there.test == here.test


@pytest.mark.parametrize(
    ("kind", "nth"), [("fit", 7), ("fit message", 4), ("evaluate", 3), ("evaluate", 4), ("search", 3)]
)
async def test_a_run_that_too_few_answered_goes_on_though_one_did(
    toys: Toys, fed: Federation, kind: str, nth: int
) -> None:
    """Two parties of three are frozen; that the third one answers makes their silence no answer for good."""
    task = make_task()
    changes = COMMITTEE | {"search.rounds": 2}
    here = await run_toy(task, changes | {"federation.timeout": 900})
    config = fed.write(task, changes | {"federation.timeout": 60})
    grid = fed.grid(task, jump=61)

    def before(node: int, data: bytes) -> None:
        kinds = [opened(envelope).kind for envelope in unpack(data)]
        for member in (101, 102):
            frozen = grid.members[member]
            frozen.frozen = frozen.frozen or (kind in kinds and asked(grid, kind) >= nth)

    grid.before = before
    with pytest.raises(QuorumError, match="1 of 3 clients answered"):
        await coordinate(grid, config, fed.run)
    there = await coordinate(awake(grid), config, fed.run)
    assert there.test is not None and here.test is not None and len(there.test.rows) == len(here.test.rows)
    # In these it had gone on without the first of the two, and does so again.
    if (kind, nth) not in (("fit message", 4), ("evaluate", 4)):
        assert there.prompt == here.prompt and there.test == here.test


async def test_a_party_that_cannot_take_part_yet_is_asked_again(toys: Toys, fed: Federation) -> None:
    task, config = make_task(), fed.write(make_task())
    grid, texts = fed.grid(task), fed.folder / "client1" / "train.jsonl"
    hidden = texts.rename(texts.with_suffix(".away"))
    with pytest.raises(FedbptError, match="client1"):
        await coordinate(grid, config, fed.run)
    hidden.rename(texts)
    result = await coordinate(fed.grid(task), config, fed.run)
    assert result.test is not None and len(result.test.rows) > 0


async def test_a_test_that_nobody_answers_is_asked_for_again(toys: Toys, fed: Federation) -> None:
    task = make_task()
    here = await run_toy(task)
    config, grid = fed.write(task, {"federation.timeout": 60}), fed.grid(task, jump=61)

    def before(node: int, data: bytes) -> None:
        for member in grid.members.values():
            member.frozen = member.frozen or "test" in [opened(envelope).kind for envelope in unpack(data)]

    grid.before = before
    with pytest.raises(QuorumError, match="nobody has answered the test"):
        await coordinate(grid, config, fed.run)
    there = await coordinate(awake(grid), config, fed.run)
    assert there.prompt == here.prompt and there.test == here.test


async def test_two_parties_of_one_name_are_refused(toys: Toys, fed: Federation) -> None:
    task = make_task()
    config = fed.write(task)
    grid = fed.grid(task)
    grid.members[102] = ToyNode(fed.host("client1"))
    with pytest.raises(FedbptError, match="two parties are called client1"):
        await coordinate(grid, config, fed.run)


async def test_other_settings_are_refused_in_a_folder_that_has_a_run(toys: Toys, fed: Federation) -> None:
    task = make_task()
    config = fed.write(task)
    await coordinate(fed.grid(task), config, fed.run)
    (fed.run / "result.json").unlink()
    config.write_text(config.read_text().replace("seed = 0", "seed = 1"))
    with pytest.raises(ConfigError, match="began with other settings"):
        await coordinate(fed.grid(task), config, fed.run)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"method": "calibration"}, "asks a party's server itself"),
        ({"method": "in-context"}, "shows parties' texts"),
        ({"prompt_place": "auto"}, "prompt_place"),
        ({"prompt_padding": "on"}, "prompt_padding"),
    ],
)
async def test_what_needs_texts_here_is_refused_before_anything_is_asked(
    toys: Toys, fed: Federation, change: dict[str, object], problem: str
) -> None:
    task: Task = make_task()
    config = fed.write(task, change)
    if "method" in change:
        text = config.read_text()
        config.write_text(text.replace('algorithm = "rounds"', ""))
    grid = fed.grid(task)
    with pytest.raises(ConfigError, match=problem):
        await coordinate(grid, config, fed.run)
    assert not any(node.seen for node in grid.members.values())


async def test_a_party_says_no_more_of_its_own_troubles_than_that_it_has_them(
    toys: Toys, fed: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task()
    config = fed.write(task)
    path = fed.folder / "client1" / "train.jsonl"
    path.write_text(path.read_text() + '{"text": "a secret", "label": "unheard of"}\n')
    grid = fed.grid(task)
    with pytest.raises(FedbptError, match="client1: client1 cannot take part; its own log") as refused:
        await coordinate(grid, config, fed.run)
    assert "unheard of" not in str(refused.value) and "train.jsonl" not in str(refused.value)
    assert "unheard of" in caplog.text and "train.jsonl" in caplog.text


async def test_a_party_is_told_no_file_and_no_server(toys: Toys, fed: Federation) -> None:
    fed.write(make_task())
    host = fed.host("client0")
    wrong: list[dict[str, object]] = [
        {"clients": [{"name": "x", "train": "/etc/passwd"}]},
        {"backend": {"kind": "toy"}},
        {"data": {}},
    ]
    for settings in wrong:
        fields: dict[str, object] = {"run": "r", "number": 0, "settings": settings}
        answer = opened(await host.answer(seal(Envelope("task", fields))))
        assert answer.kind == "failed" and "tells what it must not" in answer.fields["answer"]["message"]
    for fields in ({"run": "../x", "number": 0}, {"run": "r", "number": -1}, {}):
        answer = opened(await host.answer(seal(Envelope("task", {**fields, "settings": {}}))))
        assert answer.kind == "failed" and "without the name of a run" in answer.fields["answer"]["message"]
    assert opened(await host.answer(seal(Envelope("facts", {})))).kind == "forgotten"
