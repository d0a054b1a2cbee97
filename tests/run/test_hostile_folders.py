"""Run folders from nobody knows where: clear errors, no code, no crash, no secrets in honest ones."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.fake_vllm import FakeVllm
from fedbpt_api.errors import FedbptError
from fedbpt_api.run.events import Event
from fedbpt_api.run.replay import replay
from fedbpt_api.run.resume import resumed
from fedbpt_api.scoring import registry
from toy import Toys, make_task
from toy_runs import run_toy

TASK = make_task()
READ = ("settings.json", "inputs.json", "model.facts", "scores-0.journal", "result.json", "rounds.jsonl")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every file can be spoilt."""
    folder = tmp_path_factory.mktemp("honest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", Toys().entry_points)
        asyncio.run(run_toy(TASK, {"search.rounds": 1, "budget.scored": 1000}, folder / "run"))
    return folder / "run"


content = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b'"x"',
            b"1e999",
            b"[" * 5000,
            b"\xff\xfe",
            b'{"texts": 3}',
            b"cos\nsystem\n",
        ]
    ),
    st.just(b'{"format":"fedbpt-journal","version":1,"check":"0"}\n' + b"\xff" * 40),
    st.just(b'{"format":"fedbpt-facts","version":1}\n' + b"\x03\0\0\0\x01\x02\x03\x04abc"),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(READ), data=content)
def test_a_spoilt_file_is_one_clear_error(
    toys: Toys, honest: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(honest, folder)
    (folder / name).write_bytes(data)

    async def work() -> None:
        try:
            found = await replay(folder, TASK)
            assert found.differences or name == "rounds.jsonl"
        except FedbptError as error:
            assert error.message
        try:
            tuner = resumed(folder, TASK)
        except FedbptError as error:
            assert error.message
        else:
            try:
                await tuner.run()
            except FedbptError as error:
                assert error.message

    asyncio.run(work())


async def test_a_key_is_in_nothing_that_a_run_writes(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-planted-0123456789abcdef"
    monkeypatch.setenv("THE_KEY", secret)
    server = FakeVllm(key=secret)
    async with server.serve() as url:
        changes: dict[str, object] = {
            "backend.kind": "vllm", "backend.base_url": url, "backend.api_key_env": "THE_KEY",
            "search.rounds": 1, "budget.scored": 1000,
        }  # fmt: skip
        events: list[Event] = []
        await run_toy(TASK, changes, tmp_path / "run", events)
        server._key = "another"
        with pytest.raises(FedbptError) as refused:
            await run_toy(TASK, changes, tmp_path / "second")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    assert secret not in repr(events) + str(refused.value) + repr(refused.value.__cause__)
