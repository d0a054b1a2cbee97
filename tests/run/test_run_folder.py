"""What a run leaves on disk, that the same seed leaves the same, and that runs do not meet."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest

from fedbpt_api.errors import RunFolderError
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.config import build_settings
from fedbpt_api.run.folder import read_result
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tune import Tuner
from toy import ToyBackend, Toys, make_task
from toy_runs import (
    FILES,
    make_settings,
    numbers,
    run_toy,
    texts_of,
    without_times,
)


async def test_the_run_folder_holds_everything_and_reads_back(toys: Toys, tmp_path: Path) -> None:
    task = make_task()
    checked = make_settings(task)
    folder = tmp_path / "a" / "run"
    result = await Tuner(checked, task, folder).run()
    assert {path.name for path in folder.iterdir()} == FILES
    assert result.folder == str(folder)
    assert read_result(folder).to_dict() == result.to_dict()
    stored = orjson.loads((folder / "settings.json").read_bytes())
    assert build_settings(stored, files=False) == checked
    lines = (folder / "rounds.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line) for line in lines] == [record.to_dict() for record in result.rounds]
    prompt = TunedPrompt.load(folder)
    assert prompt.text == result.prompt
    assert prompt.ids == await toys["toy"].tokenize(prompt.text)
    assert prompt.model == {"kind": "toy", "name": "toy", "fingerprint": "toy-0"}
    assert prompt.space["codebook"]
    assert orjson.loads((folder / "versions.json").read_bytes())["model"] == "toy"
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert result.prompt.split()[-1] in report


async def test_no_text_of_the_data_is_anywhere_in_the_run_folder(toys: Toys, tmp_path: Path) -> None:
    task = make_task()
    await run_toy(task, folder=tmp_path / "run")
    texts = texts_of(task.clients)
    assert len(texts) == 90
    for path in (tmp_path / "run").rglob("*"):
        content = path.read_bytes()
        assert not [text for text in texts if text.encode() in content], path.name
        for client in task.clients:
            labels = [("negative", "positive").index(str(row.label)) for row in client.train]
            assert ",".join(map(str, labels)).encode() not in b"".join(content.split()), path.name


async def test_the_same_seed_gives_the_same_files_but_for_times(toys: Toys, tmp_path: Path) -> None:
    task = make_task()
    contents = []
    for number in range(2):
        toys.opened.clear()
        changes: dict[str, object] = {"search.rounds": 3, "search.perturb": 0.1, "search.form": "auto"}
        await run_toy(task, changes, tmp_path / "run")
        kept = tmp_path / str(number)
        shutil.move(tmp_path / "run", kept)
        contents.append({path.name: without_times(path) for path in kept.iterdir()})
    assert set(contents[0]) == FILES
    for name in FILES:
        assert contents[0][name] == contents[1][name], name


async def test_the_order_of_answers_changes_no_number(toys: Toys) -> None:
    results = []
    for turns in ((), (7, 0, 2) * 60, (0, 0, 9, 1) * 60):
        toys.opened["toy"] = ToyBackend(turns=turns)
        results.append(await run_toy(make_task(), {"search.rounds": 3}))
    assert numbers(results[0]) == numbers(results[1]) == numbers(results[2])
    assert results[0].test == results[1].test == results[2].test


async def test_another_seed_gives_another_run(toys: Toys) -> None:
    first, second = [numbers(await run_toy(make_task(), {"seed": seed})) for seed in (0, 1)]
    assert first != second


async def test_a_run_folder_is_never_overwritten(toys: Toys, tmp_path: Path) -> None:
    task = make_task(1, train=4, dev=2, test=0)
    await run_toy(task, {"search.rounds": 1}, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunFolderError, match="holds a run already"):
        await run_toy(task, folder=tmp_path / "run")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


async def test_two_runs_side_by_side_give_what_each_gives_alone(toys: Toys, tmp_path: Path) -> None:
    async def one(name: str, seed: int) -> RunResult:
        return await run_toy(make_task(seed=seed), {"backend.name": name, "seed": seed}, tmp_path / name)

    # Their requests take turns, so that neither run gets far while the other waits.
    for name, turns in (("a", (1, 3, 0) * 60), ("b", (2, 0, 5) * 60), ("c", (1, 3, 0) * 60)):
        toys.opened[name] = ToyBackend(turns=turns)
    toys.opened["d"] = ToyBackend(turns=(2, 0, 5) * 60)
    state = np.random.get_state()
    both = await asyncio.gather(one("a", 1), one("b", 2))
    alone = [await one("c", 1), await one("d", 2)]
    for together, single in zip(both, alone, strict=True):
        assert numbers(together) == numbers(single)
        assert (together.prompt, together.spent, together.test) == (single.prompt, single.spent, single.test)
    after = np.random.get_state()
    assert isinstance(state, tuple) and isinstance(after, tuple)
    assert np.array_equal(state[1], after[1]) and state[2:] == after[2:]
