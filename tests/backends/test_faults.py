"""Whole runs on a server that fails: what passes leaves no trace, what lasts ends the run well."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends.fake_vllm import (
    PASSING,
    FakeVllm,
    Fault,
    Script,
    always,
    at,
    healthy,
    now_and_then,
    write_weights,
)
from fedbpt_api import FedbptError, RunResult, TunedPrompt, tune
from fedbpt_api.run.events import Event
from fedbpt_api.scoring.backend import Prompt
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.task import Task
from fedbpt_backends import pacing
from toy import make_task
from toy_runs import Values, after_round, make_values, numbers, without_times

KEY = "sk-never-shown"
VARIABLE = "FEDBPT_TEST_KEY"


@dataclass(frozen=True)
class Whole:
    """A run and where it is kept."""

    folder: Path
    result: RunResult

    def told_alike(self, folder: Path, result: RunResult) -> bool:
        """Whether another run says the same, in its result and in its files."""
        assert told(result) == told(self.result)
        for name in ("prompt.json", "rounds.jsonl", "prompts.jsonl"):
            assert without_times(folder / name) == without_times(self.folder / name), name
        return True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_backoff", lambda state: 0.0)
    monkeypatch.setattr(pacing, "_soon", lambda state: 0.0)


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(2, train=6, dev=4, test=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's own files: with them no word of the built-in table must be looked up."""
    return asyncio.run(write_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def whole(task: Task, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run without faults."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return Whole(folder, asyncio.run(run(FakeVllm(), task, weights, folder)))


def config(task: Task, url: str, weights: Path, changes: Mapping[str, object] | None = None) -> Values:
    """Two rounds on the server, a few hundred scored examples."""
    backend = {"kind": "vllm", "base_url": url, "weights": str(weights)}
    return make_values(task, {"budget.scored": 600, "backend": backend} | dict(changes or {}))


async def run(
    fake: FakeVllm, task: Task, weights: Path, folder: Path, changes: Mapping[str, object] | None = None
) -> RunResult:
    async with fake.serve() as url:
        return await tune(config(task, url, weights, changes), task=task, run_dir=folder)


def told(result: RunResult) -> tuple[object, ...]:
    """All that a run says, but for seconds, requests and cached tokens."""
    spent = {
        client: {key: n for key, n in counts.items() if key not in ("requests", "cached_tokens")}
        for client, counts in result.spent.items()
    }
    return result.prompt, result.stopped, numbers(result), spent, result.test


async def test_two_runs_without_faults_are_the_same(
    task: Task, weights: Path, tmp_path: Path, whole: Whole
) -> None:
    again = await run(FakeVllm(), task, weights, tmp_path / "run")
    assert again.stopped == "rounds"
    assert whole.told_alike(tmp_path / "run", again)


# Faults that pass -------------------------------------------------------------------------------

QUICK = tuple(fault for fault in PASSING if fault != "stall")  # all but the one that takes a timeout


@pytest.mark.parametrize("fault", QUICK)
async def test_a_fault_that_passes_changes_no_number(
    task: Task, weights: Path, tmp_path: Path, whole: Whole, fault: Fault
) -> None:
    fake = FakeVllm()
    fake.script = now_and_then([fault])
    result = await run(fake, task, weights, tmp_path / "run")
    assert fake.faults[fault] > 5
    assert whole.told_alike(tmp_path / "run", result)


@pytest.mark.parametrize("seed", range(3))
async def test_all_of_them_mixed_change_no_number_either(
    task: Task, weights: Path, tmp_path: Path, whole: Whole, seed: int
) -> None:
    fake = FakeVllm()
    fake.script = now_and_then([fault for fault in QUICK if fault not in ("other ids", "missing")], 0.5, seed)
    result = await run(fake, task, weights, tmp_path / "run")
    assert len(fake.faults) > 5
    assert whole.told_alike(tmp_path / "run", result)


async def test_a_request_that_stalls_is_sent_again(
    task: Task, weights: Path, tmp_path: Path, whole: Whole
) -> None:
    fake = FakeVllm()
    fake.script = at({12: "stall"})
    result = await run(fake, task, weights, tmp_path / "run", {"backend.timeout": 1.0})
    assert fake.faults["stall"] == 1
    assert whole.told_alike(tmp_path / "run", result)


async def test_lists_that_another_program_spoils_are_asked_for_until_they_are_well(weights: Path) -> None:
    """While another one names tokens half of the lists are; a line takes twenty in a row."""
    fake, prompts = FakeVllm(), [Prompt((1, 2, 3)), Prompt((4, 5, 6))]
    async with fake.serve() as url:
        backend = await open_backend("vllm", base_url=url, weights=str(weights))
        try:
            before, _ = await backend.top_words(prompts, 60)
            fake.script = lambda number, repeat: "spoiled" if repeat % 20 else ""
            assert (await backend.top_words(prompts, 60))[0] == before
            assert fake.faults["spoiled"] > pacing.ATTEMPTS
            fake.script = always("spoiled")
            with pytest.raises(FedbptError, match=r"-9999.*30 times"):
                await backend.top_words(prompts, 60)
        finally:
            await backend.aclose()


@pytest.mark.parametrize("fault", ["429", "503", "reset", "truncated"])
@pytest.mark.parametrize("number", (1, 2))
async def test_a_busy_moment_while_the_server_is_probed_is_not_taken_for_an_inability(
    weights: Path, fault: Fault, number: int
) -> None:
    fake = FakeVllm()
    details = []
    async with fake.serve() as url:
        for script in (healthy, at({number: fault})):
            fake.completions, fake.script = 0, script
            backend = await open_backend("vllm", base_url=url, weights=str(weights))
            await backend.aclose()
            details.append((backend.info.details, backend.info.max_words, backend.info.noise))
    assert fake.faults[fault] == 1
    assert details[0] == details[1]


# Less able servers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("grammar", "way"), [(True, "structured choice"), (False, "top-200")])
async def test_an_older_server_is_read_another_way_and_faults_that_pass_change_nothing_there(
    task: Task, weights: Path, tmp_path: Path, grammar: bool, way: str
) -> None:
    results = []
    for number, script in enumerate((healthy, now_and_then(("429", "truncated", "shuffled")))):
        fake = FakeVllm(named=False, grammar=grammar)
        fake.script = script
        results.append(await run(fake, task, weights, tmp_path / str(number)))
    assert told(results[0]) == told(results[1])
    assert f'"{way}"' in (tmp_path / "0" / "versions.json").read_text(encoding="utf-8")


# Faults that last -------------------------------------------------------------------------------

LASTING: dict[Fault, str] = {
    "changed": r"changed in mid-run: it was vllm-0\.32\.0-toy, it is vllm-0\.33\.0-other",
    "other ids": "did not answer for 'token_id:",
    "missing": r"sent \d+ answers to \d+ prompts",
    "400": "answered 400: logits processor is broken",
    "401": "answered 401: Unauthorized",
    "quota": "answered 429: You exceeded your current quota",
    "429": r"answered 429: slow down \(6 times\)",
    "500": r"answered 500: EngineCore encountered an issue \(6 times\)",
    "reset": r"no answer from http://127\.0\.0\.1:\d+/v1/completions.*\(6 times\)",
    "truncated": r"cut off or no JSON.*\(6 times\)",
}


@pytest.mark.parametrize("fault", LASTING)
async def test_a_fault_that_lasts_ends_the_run_with_the_server_s_words_and_the_best_prompt(
    task: Task, weights: Path, tmp_path: Path, whole: Whole, fault: Fault
) -> None:
    fake = FakeVllm()
    listen = after_round(1, lambda: setattr(fake, "script", always(fault)))
    async with fake.serve() as url:
        with pytest.raises(FedbptError, match=LASTING[fault]) as caught:
            await tune(config(task, url, weights), task=task, run_dir=tmp_path / "run", on_event=listen)
    assert caught.value.hint
    best = TunedPrompt.load(tmp_path / "run")
    assert best.text == whole.result.rounds[1].prompt
    kept, rounds = [without_times(f / "rounds.jsonl") for f in (tmp_path / "run", whole.folder)]
    assert isinstance(kept, list) and isinstance(rounds, list)
    assert kept == rounds[:2]


@pytest.mark.parametrize("fault", ["changed", "400", "401", "quota"])
async def test_what_cannot_pass_is_not_asked_again(
    task: Task, weights: Path, tmp_path: Path, fault: Fault
) -> None:
    fake = FakeVllm()

    def fail() -> None:
        fake.script = always(fault)
        fake.bodies.clear()

    listen = after_round(1, fail)
    async with fake.serve() as url:
        with pytest.raises(FedbptError):
            await tune(config(task, url, weights), task=task, run_dir=tmp_path / "run", on_event=listen)
    assert fake.faults[fault]
    assert set(fake.bodies.values()) == {1}


@pytest.mark.parametrize("fault", ["400", "401", "quota", "reset", "missing", "truncated"])
async def test_a_server_that_is_ill_from_the_start_is_an_error_before_anything_is_spent(
    task: Task, weights: Path, tmp_path: Path, fault: Fault
) -> None:
    fake = FakeVllm()
    fake.script = always(fault)
    events: list[Event] = []
    async with fake.serve() as url:
        with pytest.raises(FedbptError) as caught:
            await tune(
                config(task, url, weights), task=task, run_dir=tmp_path / "run", on_event=events.append
            )
    assert caught.value.hint
    assert "127.0.0.1" in caught.value.message
    assert events == []


# Keys -------------------------------------------------------------------------------------------


async def test_the_right_key_opens_and_is_in_no_file(
    task: Task, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    fake = FakeVllm(key=KEY)
    result = await run(fake, task, weights, tmp_path / "run", {"backend.api_key_env": VARIABLE})
    assert result.stopped == "rounds"
    assert not [path for path in (tmp_path / "run").iterdir() if KEY.encode() in path.read_bytes()]


async def test_a_wrong_key_is_named_by_its_variable_and_not_shown(
    task: Task, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with pytest.raises(FedbptError, match="401: Unauthorized") as caught:
        await run(FakeVllm(key="another"), task, weights, tmp_path / "run", {"backend.api_key_env": VARIABLE})
    assert "api_key_env" in str(caught.value)
    assert KEY not in str(caught.value)


def test_every_script_leaves_a_request_in_peace_in_the_end() -> None:
    """The scripts above would prove nothing if a request could fail every time."""
    script: Script = now_and_then(PASSING, 1.0)
    assert all(script(number, 1) and not script(number, 3) for number in range(1, 50))
