"""Runs that are interrupted anywhere and go on: the same prompt, the same numbers, nothing paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.fake_vllm import FakeVllm, healthy
from fedbpt_api import resume
from fedbpt_api.errors import ConfigError, FedbptError, QuotaError, RunFolderError
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.config import load_settings, load_task
from fedbpt_api.run.events import Noted
from fedbpt_api.run.folder import RunFolder
from fedbpt_api.run.inputs import Inputs, read_settings
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.replay import replay
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.resume import resumed
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.backend import Scores, Usage
from toy import ToyBackend, Toys, make_task
from toy_runs import FILES, after_round, make_settings, numbers, run_toy, scored, without_times, write_config

TASK = make_task()
CHANGES: dict[str, object] = {"search.rounds": 3, "budget.scored": 2500}
SETTLED: dict[str, object] = {
    "search.form": "auto", "search.choice": "committee", "search.ensemble": 3, "search.min_gain": 5.0,
    "search.opening": 0.75, "budget.scored": 2500,
}  # fmt: skip


class Dying(ToyBackend):
    """Answers so many requests, then no more: the process dies with those that are under way."""

    left = 10**9

    async def score(self, prompts: Any, words: Any) -> Scores:
        self._count()
        return await super().score(prompts, words)

    async def top_words(self, prompts: Any, k: int) -> tuple[list[dict[int, float]], Usage]:
        self._count()
        return await super().top_words(prompts, k)

    def _count(self) -> None:
        if self.left <= 0:
            raise asyncio.CancelledError
        self.left -= 1


async def undisturbed(
    toys: Toys, folder: Path, changes: dict[str, object] = CHANGES
) -> tuple[RunResult, int]:
    toys.opened.clear()
    result = await run_toy(TASK, changes, folder)
    return result, toys["toy"].requests


def same_files(one: Path, other: Path) -> None:
    """But for times, and the order in which clients were answered."""
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()} == FILES
    for name in FILES - {"model.facts", "result.json", "report.html"}:
        if not name.endswith(".journal"):
            assert without_times(one / name) == without_times(other / name), name


@pytest.mark.parametrize(("changes", "stopped"), [(CHANGES, "rounds"), (SETTLED, "settled")])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deaths=st.lists(st.integers(0, 120), min_size=1, max_size=4))
def test_a_run_that_dies_anywhere_ends_as_if_it_had_not(
    toys: Toys,
    tmp_path_factory: pytest.TempPathFactory,
    changes: dict[str, object],
    stopped: str,
    deaths: list[int],
) -> None:
    async def work() -> None:
        folder = tmp_path_factory.mktemp("runs")
        whole, requests = await undisturbed(toys, folder / "whole", changes)
        toys.opened.clear()
        toy = Dying()
        toys.opened["toy"] = toy
        tuner: Callable[[], Tuner] = lambda: Tuner(make_settings(TASK, changes), TASK, folder / "run")  # noqa: E731
        for left in deaths:
            toy.left = left
            try:
                result = await tuner().run()
            except asyncio.CancelledError:
                pass
            else:
                break
            tuner = lambda: resumed(folder / "run", TASK)  # noqa: E731
        else:
            toy.left = 10**9
            result = await tuner().run()
        assert result.stopped == whole.stopped == stopped
        assert numbers(result) == numbers(whole)
        assert result.prompt == whole.prompt
        assert result.test == whole.test
        assert toy.requests == requests
        same_files(folder / "whole", folder / "run")

    asyncio.run(work())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.lists(st.integers(0, 7), max_size=60),
    limit=st.sampled_from(["scored 900", "scored 1211", "scored 1500", "scored 1777", "tokens 40000"]),
)
def test_any_interleaving_of_clients_gives_the_same_run(toys: Toys, turns: list[int], limit: str) -> None:
    """However long each request takes, and where the budget ends in the middle of a round too."""

    async def work() -> None:
        what, _, most = limit.partition(" ")
        changes: dict[str, object] = {"search.rounds": 9, "budget.scored": 10**6, f"budget.{what}": int(most)}
        toys.opened["toy"] = ToyBackend()
        plain = await run_toy(TASK, changes)
        toys.opened["toy"] = ToyBackend(turns=turns)
        slow = await run_toy(TASK, changes)
        assert numbers(slow) == numbers(plain)
        assert slow.prompt == plain.prompt and slow.test == plain.test
        for client, counts in slow.spent.items():  # what was in the cache is the server's own affair
            assert counts | {"cached_tokens": plain.spent[client]["cached_tokens"]} == plain.spent[client]

    asyncio.run(work())


async def cut_off(toys: Toys, folder: Path, left: int, changes: dict[str, object] = CHANGES) -> Dying:
    """A run whose process dies after so many requests."""
    toy = Dying()
    toy.left = left
    toys.opened["toy"] = toy
    with pytest.raises(asyncio.CancelledError):
        await run_toy(TASK, changes, folder)
    toy.left = 10**9
    return toy


async def test_a_run_that_was_stopped_goes_on_to_the_same_end(toys: Toys, tmp_path: Path) -> None:
    whole, requests = await undisturbed(toys, tmp_path / "whole")
    toys.opened.clear()
    tuner: Tuner
    stop = after_round(1, lambda: tuner.stop())
    tuner = Tuner(make_settings(TASK, CHANGES), TASK, tmp_path / "run", stop)
    stopped = await tuner.run()
    assert stopped.stopped == "cancelled"
    events: list[object] = []
    result = await resume(tmp_path / "run", task=TASK, on_event=events.append)
    assert numbers(result) == numbers(whole) and result.test == whole.test
    assert toys["toy"].requests == requests
    assert next(e.message for e in events if isinstance(e, Noted)).startswith(f"{scored(stopped):,} scored")
    same_files(tmp_path / "whole", tmp_path / "run")


async def test_a_lost_server_ends_the_run_and_a_new_one_goes_on(toys: Toys, tmp_path: Path) -> None:
    whole, requests = await undisturbed(toys, tmp_path / "whole")
    toys.opened["toy"] = ToyBackend(fail_from=requests // 2)
    with pytest.raises(FedbptError):
        await run_toy(TASK, CHANGES, tmp_path / "run")
    answered = toys["toy"].answered.total()
    toys.opened["toy"] = ToyBackend()
    result = await resume(tmp_path / "run", task=TASK)
    assert numbers(result) == numbers(whole)
    before, after = (toys["toy"].answered.total(), answered)
    assert before + after <= scored(whole) + sum(int(c["test_scored"]) for c in whole.spent.values())


@pytest.mark.parametrize("kind", ["vllm", "openai"])
async def test_an_exhausted_quota_ends_the_run_and_it_goes_on_when_somebody_has_paid(
    tmp_path: Path, kind: str
) -> None:
    """The server is opened again without a question that costs, and still knows the run's words."""
    server = FakeVllm(longest=20 if kind == "openai" else 200)
    async with server.serve() as url:
        changes = CHANGES | {"backend.kind": kind, "backend.base_url": url}
        if kind == "openai":
            changes |= {"backend.base_url": f"{url}/v1", "backend.model": "toy", "backend.api_key_env": ""}
        whole = await run_toy(TASK, changes, tmp_path / "whole")
        requests, server.completions = server.completions, 0
        server.script = lambda number, repeat: "quota" if number > requests // 2 else ""
        with pytest.raises(QuotaError, match="quota"):
            await run_toy(TASK, changes, tmp_path / "run")
        server.script, before = healthy, server.completions
        result = await resume(tmp_path / "run", task=TASK)
        assert numbers(result) == numbers(whole)
        assert result.prompt == whole.prompt and result.test == whole.test
        under_way = before - requests // 2
        assert server.completions <= requests + under_way + 8  # some go in other lists than they did
    assert (await replay(tmp_path / "run", TASK)).differences == ()


async def test_seconds_count_on_from_the_session_before(toys: Toys, tmp_path: Path) -> None:
    await cut_off(toys, tmp_path / "run", 40)
    tuner = resumed(tmp_path / "run", TASK)
    result = await tuner.run()
    assert sum(record.seconds for record in result.rounds) > 0
    assert all(record.seconds >= 0 for record in result.rounds)


async def test_what_has_changed_is_named_before_anything_is_asked(toys: Toys, tmp_path: Path) -> None:
    await cut_off(toys, tmp_path / "run", 30)
    other = make_task(seed=5)
    with pytest.raises(ConfigError, match=r"clients.*train .*is not what it was") as caught:
        await resume(tmp_path / "run", task=other)
    assert len(caught.value.problems) > 1
    toys.opened["toy"] = ToyBackend(seed=3)
    with pytest.raises(ConfigError, match="fingerprint was toy-0, it is toy-3"):
        await resume(tmp_path / "run", task=TASK)
    assert toys["toy"].requests == 0
    with pytest.raises(RunFolderError, match="holds a run already") as refused:
        await run_toy(TASK, CHANGES, tmp_path / "run")
    assert "fedbpt resume" in refused.value.hint


async def test_a_changed_configuration_or_file_is_named(toys: Toys, tmp_path: Path) -> None:
    config = write_config(tmp_path, TASK, {"search.rounds": 3})
    given = {"budget.scored": 2500}
    run = load_settings(config, given)
    folder = RunFolder.begin(tmp_path / "run", run, Inputs.of(load_task(run), config, given))
    toy = toys.opened["toy"] = Dying()
    toy.left = 30
    with pytest.raises(asyncio.CancelledError):
        await Tuner(run, load_task(run), folder).run()
    toy.left = 10**9
    text = config.read_text()
    config.write_text(text.replace('"rounds": 3', '"rounds": 4').replace("rounds = 3", "rounds = 4"))
    with pytest.raises(ConfigError, match=r"search\.rounds was 3 when the run began, it is 4") as caught:
        resumed(tmp_path / "run")
    assert "--as-begun" in caught.value.hint
    config.write_text(text)
    data = Path(run.clients[0].train)
    rows = data.read_text()
    data.write_text(rows.replace("good", "bad"))
    with pytest.raises(ConfigError, match=r"train\.jsonl.*texts as then, but others"):
        resumed(tmp_path / "run")
    data.write_text(rows)
    result = await resumed(tmp_path / "run").run()
    assert result.stopped in ("rounds", "budget")
    with pytest.raises(RunFolderError, match="is finished"):
        resumed(tmp_path / "run")


async def test_one_writer_at_a_time(toys: Toys, tmp_path: Path) -> None:
    await cut_off(toys, tmp_path / "run", 30)
    first = resumed(tmp_path / "run", TASK)
    with pytest.raises(RunFolderError, match="being written by another process"):
        resumed(tmp_path / "run", TASK)
    await first.run()


async def test_where_nothing_began_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not exist"):
        resumed(tmp_path / "nowhere")


async def test_a_resume_that_is_refused_leaves_the_run_s_records(toys: Toys, tmp_path: Path) -> None:
    await cut_off(toys, tmp_path / "run", 60)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert before["rounds.jsonl"]
    toys.opened["toy"] = ToyBackend(seed=3)
    with pytest.raises(ConfigError, match="fingerprint"):
        await resume(tmp_path / "run", task=TASK)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


async def test_an_attempt_that_failed_before_it_scored_is_no_run(toys: Toys, tmp_path: Path) -> None:
    toys.opened["toy"] = ToyBackend(context=20)
    with pytest.raises(ConfigError, match="does not fit"):
        await run_toy(TASK, CHANGES, tmp_path / "run")
    toys.opened["toy"] = ToyBackend()
    assert (await run_toy(TASK, CHANGES, tmp_path / "run")).stopped in ("rounds", "budget")


async def test_a_relative_file_from_the_command_line_is_found_from_anywhere(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, TASK, {"search.rounds": 1})
    monkeypatch.chdir(tmp_path)
    given = {"clients.0.train": "client0/train.jsonl", "budget.scored": 2500}
    settings = load_settings(config, given)
    folder = RunFolder.begin(tmp_path / "run", settings, Inputs.of(load_task(settings), config, given))
    folder.close()
    monkeypatch.chdir("/")
    resumed(tmp_path / "run")._folder.close()  # type: ignore[union-attr]


# Replay -----------------------------------------------------------------------------------------


async def test_a_replay_asks_nobody_and_is_the_same_to_the_bit(toys: Toys, tmp_path: Path) -> None:
    whole, _ = await undisturbed(toys, tmp_path / "run")
    toys.opened.clear()
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    found = await replay(tmp_path / "run", TASK)
    assert found.differences == ()
    assert found.answers == scored(whole) and found.rounds == len(whole.rounds) - 1
    assert not toys.opened
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("noise", [0.0, 1.0])
async def test_a_replay_is_the_same_where_test_texts_are_among_the_others(
    toys: Toys, tmp_path: Path, noise: float
) -> None:
    toys["toy"].noise = noise
    clients = tuple(replace(client, test=client.dev + client.train) for client in TASK.clients)
    task = replace(TASK, clients=clients)
    await run_toy(task, {"search.algorithm": "prompts", "verbalizer.kind": "bias"}, tmp_path / "run")
    assert (await replay(tmp_path / "run", task)).differences == ()


@pytest.mark.parametrize("left", [5, 40, 80])
async def test_a_run_that_was_cut_off_is_replayed_as_far_as_it_came(
    toys: Toys, tmp_path: Path, left: int
) -> None:
    await cut_off(toys, tmp_path / "run", left)
    toys.opened.clear()
    assert (await replay(tmp_path / "run", TASK)).differences == ()


@pytest.mark.parametrize(
    "changes", [{"budget.tokens": 60_000}, {"verbalizer.kind": "bias"}, {"search.perturb": 0.5}, {"seed": 9}]
)
async def test_other_runs_are_replayed_too(toys: Toys, tmp_path: Path, changes: dict[str, object]) -> None:
    await run_toy(TASK, CHANGES | changes, tmp_path / "run")
    assert (await replay(tmp_path / "run", TASK)).differences == ()


async def test_a_run_that_time_ended_is_replayed(toys: Toys, tmp_path: Path) -> None:
    """Time is over in the middle of a generation, some of whose answers come later."""

    class Slow(ToyBackend):
        async def score(self, prompts: Any, words: Any) -> Scores:
            now[0] += 0.01 * len(prompts)
            return await super().score(prompts, words)

    class Timed(Tuner):
        def _judge(self, parties: Parties) -> Assessor:
            for budget in (parties.budget, *(client.budget for client in parties.clients)):
                budget.clock = lambda: now[0]
            return super()._judge(parties)

    now = [0.0]
    for seconds in (7.0, 9.3, 11.1):
        toys.opened["toy"], now[0] = Slow(), 0.0
        folder = tmp_path / f"run{seconds}"
        changes: dict[str, object] = {"search.rounds": 50, "budget.scored": 10**6, "budget.seconds": seconds}
        assert (await Timed(make_settings(TASK, changes), TASK, folder).run()).stopped == "budget"
        assert (await replay(folder, TASK)).differences == ()


async def test_a_continuous_prompt_is_replayed_without_the_model_s_embeddings(
    toys: Toys, tmp_path: Path
) -> None:
    toys.opened["toy"] = ToyBackend(soft=True)
    await run_toy(TASK, CHANGES | {"search.space": "soft", "search.dimensions": 8}, tmp_path / "run")
    toys.opened.clear()
    assert (await replay(tmp_path / "run", TASK)).differences == ()


async def test_a_changed_number_is_found_and_placed(toys: Toys, tmp_path: Path) -> None:
    await undisturbed(toys, tmp_path / "run")
    path = tmp_path / "run" / "rounds.jsonl"
    lines = path.read_bytes().splitlines()
    record = orjson.loads(lines[2])
    record["dev_loss"] += 0.25
    lines[2] = orjson.dumps(record)
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = await replay(tmp_path / "run", TASK)
    assert len(found.differences) == 1 and found.differences[0].startswith(
        "rounds.jsonl, line 3: dev_loss was"
    )


@given(place=st.floats(0.02, 0.98), bit=st.integers(0, 7))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_a_journal_is_named(
    toys: Toys, tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    async def work() -> None:
        folder = tmp_path_factory.mktemp("run") / "run"
        await run_toy(TASK, {"search.rounds": 1, "budget.scored": 1200}, folder)
        path = folder / "scores-1.journal"
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= 1 << bit
        path.write_bytes(data)
        try:
            found = await replay(folder, TASK)
        except RunFolderError as error:
            assert "damaged" in str(error) or "no fedbpt-journal" in str(error) or "version" in str(error)
        else:
            assert found.differences  # the last record: taken for torn

    asyncio.run(work())


async def test_a_run_from_before_methods_had_names_goes_on_as_it_began(toys: Toys, tmp_path: Path) -> None:
    await run_toy(TASK, {"method": "rounds"}, tmp_path / "run")
    path = tmp_path / "run" / "settings.json"
    values = orjson.loads(path.read_bytes())
    del values["method"], values["search"]["algorithm"], values["search"]["choice"]
    path.write_bytes(orjson.dumps(values))
    found = read_settings(tmp_path / "run")
    assert (found.method, found.search.algorithm, found.search.choice) == (
        "rounds",
        "rounds",
        "held-out",
    )
