"""A bench: its grid, that it goes on where it was stopped, that it refuses to mix, and what it writes."""

from __future__ import annotations

import asyncio
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import orjson
import pytest

from fedbpt_api.bench import Cell, cells, load_suite, run_suite, summarise
from fedbpt_api.bench.grid import prepared
from fedbpt_api.bench.runner import finished
from fedbpt_api.bench.summary import Entry, read_entries
from fedbpt_api.data import write_examples
from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tune import Tuner
from toy import Toys, make_examples, make_task
from toy_runs import fedbpt, write_config

SUITE = """
[tasks.toy]
config = "toy.toml"
fewshot = "few"
pool = "pool.jsonl"
test = "test.jsonl"
rows = 20

[splits.ten]
each = 12
clients = 4
split = "dirichlet"
alpha = 0.5

[methods.short]
base = "rounds"
set = { "search.form" = "words", "search.iterations" = 1 }

[[grid]]
tasks = ["toy"]
methods = ["bias", "short", "fedavg-bbt"]
splits = ["one", "ten"]
budgets = [400, 700]
seeds = [1, 2]
"""


@pytest.fixture
def suite(tmp_path: Path, toys: Toys) -> Path:
    """A suite file with its data."""
    write_config(tmp_path, make_task())
    write_examples(tmp_path / "pool.jsonl", make_examples(120, seed=5))
    write_examples(tmp_path / "test.jsonl", make_examples(60, seed=6))
    for seed in (1, 2):
        (tmp_path / "few" / str(seed)).mkdir(parents=True)
        for part in ("train", "dev"):
            write_examples(
                tmp_path / "few" / str(seed) / f"{part}.jsonl", make_examples(16, seed=seed + len(part))
            )
    path = tmp_path / "suite.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


def test_a_grid_has_every_combination_once_and_unsearched_methods_one_budget(suite: Path) -> None:
    found = cells(load_suite(suite))
    assert len(found) == len(set(found)) == 2 * 2 * (1 + 2 + 2)
    assert {cell.budget for cell in found if cell.method == "bias"} == {0}


@pytest.mark.parametrize(
    ("change", "split", "file", "needed"),
    [(("rows = 20", "rows = 200"), "one", "test", 100), (("each = 12", "each = 80"), "ten", "pool", 160)],
)
def test_too_few_texts_of_a_label_are_told_before_anything_is_run(
    suite: Path, change: tuple[str, str], split: str, file: str, needed: int
) -> None:
    suite.write_text(SUITE.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{file}\.jsonl: \d+ texts have the label .*, {needed} are asked"):
        prepared(load_suite(suite), Cell("toy", split, "short", 400, 1))


def test_texts_are_drawn_by_the_seed_alone_and_training_and_development_share_none(suite: Path) -> None:
    loaded = load_suite(suite)
    one = prepared(loaded, Cell("toy", "ten", "short", 400, 1))[1]
    same = prepared(loaded, Cell("toy", "ten", "fedavg-bbt", 700, 1))[1]
    other = prepared(loaded, Cell("toy", "ten", "short", 400, 2))[1]
    assert one == same and one != other
    assert len(one.clients) == 4
    for part in ("train", "dev"):
        rows = [row for client in one.clients for row in getattr(client, part)]
        assert Counter(row.label for row in rows) == {"negative": 12, "positive": 12}
    tests = [row for client in one.clients for row in client.test]
    assert Counter(row.label for row in tests) == {"negative": 10, "positive": 10}
    assert tests == [row for client in other.clients for row in client.test]


def test_a_recipe_is_not_bent_by_the_configs_search(suite: Path) -> None:
    settings, _ = prepared(load_suite(suite), Cell("toy", "one", "fedavg-bbt", 400, 1))
    assert (settings.search.popsize, settings.search.positions, settings.verbalizer.kind) == (5, 50, "words")
    settings, _ = prepared(load_suite(suite), Cell("toy", "one", "short", 400, 1))
    assert (settings.search.popsize, settings.search.iterations) == (4, 1)


def test_what_one_method_sets_holds_for_no_other(suite: Path) -> None:
    own = '[methods.biased]\nbase = "rounds"\nset = { "verbalizer.kind" = "bias" }\n\n[[grid]]'
    suite.write_text(SUITE.replace("[[grid]]", own, 1), encoding="utf-8")
    kinds = []
    for method in ("biased", "short"):
        settings, _ = prepared(load_suite(suite), Cell("toy", "one", method, 400, 1))
        kinds.append(settings.verbalizer.kind)
    assert kinds == ["bias", "weighted"]


def test_a_method_may_ask_another_server(suite: Path) -> None:
    """So models or servers stand side by side in one table."""
    servers = """
[set]
"backend.base_url" = "http://one"

[methods.elsewhere]
base = "bias"
set = { "backend.base_url" = "http://two" }

[[grid]]
tasks = ["toy"]
methods = ["elsewhere"]
budgets = [400]
seeds = [1]
"""
    suite.write_text(SUITE + servers, encoding="utf-8")
    loaded = load_suite(suite)
    asked = {
        method: prepared(loaded, Cell("toy", "one", method, 0, 1))[0].backend.options["base_url"]
        for method in ("bias", "elsewhere")
    }
    assert asked == {"bias": "http://one", "elsewhere": "http://two"}


async def test_a_bench_goes_on_where_it_was_stopped_and_pays_for_nothing_twice(
    suite: Path, tmp_path: Path, toys: Toys
) -> None:
    loaded, out = load_suite(suite), tmp_path / "out"
    begun: list[Cell] = []

    def stop_third(cell: Cell, tuner: Tuner) -> None:
        begun.append(cell)
        if len(begun) == 3:
            tuner.stop()

    wanted = lambda cell: cell.split == "one"  # noqa: E731
    entries, failed = await run_suite(loaded, out, only=wanted, on_start=stop_third)
    assert len(entries) == 2 and not failed
    entries, failed = await run_suite(loaded, out, only=wanted)
    assert len(entries) == 10 and not failed
    asked = toys["toy"].scored if "toy" in toys.opened else 0
    ended: list[Cell] = []
    again, _ = await run_suite(loaded, out, only=wanted, on_end=lambda cell, result: ended.append(cell))
    assert repr(again) == repr(entries) and not ended  # a curve may hold NaN
    assert (toys["toy"].scored if "toy" in toys.opened else 0) == asked
    assert all(0 < e.accuracy <= 1 and e.n_test == 20 for e in entries)
    assert all(e.scored <= e.budget for e in entries if e.budget)


async def test_the_tables_have_every_run(suite: Path, tmp_path: Path) -> None:
    loaded, out = load_suite(suite), tmp_path / "out"
    await run_suite(loaded, out, only=lambda cell: cell.seed == 1 or cell.method == "bias")
    entries = finished(loaded, out)
    text = summarise(entries, out, {"command": "test"})
    assert "### toy, one (20 test texts)" in text and "### toy, ten" in text
    assert "| fedavg-bbt, with bias | 400 |" in text
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(entries) == len(orjson.loads((out / "results.json").read_bytes())["runs"])
    bias = [100 * e.accuracy for e in entries if (e.method, e.split) == ("bias", "one")]
    assert f"| bias | \u2013 | {sum(bias) / 2:.1f} |" in text
    for plot in ("toy-one-accuracy.svg", "toy-ten-loss.svg"):
        ElementTree.parse(out / plot)  # well-formed
    private = {row.text for row in make_examples(120, seed=5)}
    assert not any(row in (out / "results.json").read_text() for row in private if len(row) > 20)


async def test_a_plot_has_every_method_at_its_largest_budget(suite: Path, tmp_path: Path) -> None:
    """A method that was not run as long as another is in the plot all the same."""

    def wanted(cell: Cell) -> bool:
        return (cell.method, cell.budget) in {("short", 400), ("fedavg-bbt", 700)} and cell.split == "one"

    entries, _ = await run_suite(load_suite(suite), tmp_path / "out", only=wanted)
    summarise(entries, tmp_path / "out", {})
    drawn = ElementTree.parse(tmp_path / "out" / "toy-one-loss.svg").getroot()
    texts = {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"short", "fedavg-bbt"} <= texts


def test_runs_made_elsewhere_are_not_made_again(suite: Path, tmp_path: Path) -> None:
    loaded, there, here = load_suite(suite), tmp_path / "there", tmp_path / "here"
    asyncio.run(run_suite(loaded, there, only=lambda cell: cell.method == "short" and cell.seed == 1))
    summarise(finished(loaded, there), there, {})
    results = there / "results.json"
    assert repr(read_entries(results)) == repr(finished(loaded, there))  # a curve may hold NaN
    done = fedbpt("bench", suite, "--out", here, "--only", "toy/one/short/*", "--also", results)
    assert done.exit_code == 0, done.output
    made = {path.parent.relative_to(here / "runs").as_posix() for path in here.rglob("result.json")}
    assert made == {"toy/one/short/400/2", "toy/one/short/700/2"}
    entries = {entry.cell: entry for entry in read_entries(here / "results.json")}
    assert len(entries) == 4 + 2
    assert all(repr(entries[entry.cell]) == repr(entry) for entry in finished(loaded, there))


@pytest.mark.parametrize("text", ["", "[]", '{"runs": [{"task": "toy"}]}', '{"runs": 3}'])
def test_what_is_no_results_file_is_refused(suite: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    for path in (tmp_path / "results.json", tmp_path / "none.json"):
        told = fedbpt("bench", suite, "--out", tmp_path / "out", "--also", path)
        assert told.exit_code == 2 and path.name in told.output
    assert not (tmp_path / "out").exists()


async def test_runs_of_two_versions_of_a_suite_are_not_mixed(suite: Path, tmp_path: Path) -> None:
    await run_suite(load_suite(suite), tmp_path / "out", only=lambda cell: cell.method == "short")
    suite.write_text(SUITE.replace('"search.iterations" = 1', '"search.iterations" = 2'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run with other settings: search\.iterations was 1, is 2"):
        await run_suite(load_suite(suite), tmp_path / "out")


async def test_a_bench_goes_on_from_elsewhere(
    suite: Path, tmp_path: Path, toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started in another folder, and after suite and runs were moved."""

    def told(entries: Sequence[Entry]) -> list[tuple[Cell, object]]:
        return [(entry.cell, entry.accuracy) for entry in entries]

    def wanted(cell: Cell) -> bool:
        return cell.method == "bias" and cell.split == "one"

    before = told((await run_suite(load_suite(suite), tmp_path / "out", only=wanted))[0])
    monkeypatch.chdir("/")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in [p for p in tmp_path.iterdir() if p != moved]:
        path.rename(moved / path.name)
    scored = toys["toy"].scored
    after, failed = await run_suite(load_suite(moved / "suite.toml"), moved / "out", only=wanted)
    assert told(after) == before and not failed
    assert toys["toy"].scored == scored


async def test_a_run_that_fails_is_told_and_the_others_go_on(suite: Path, tmp_path: Path, toys: Toys) -> None:
    told: list[RunResult | FedbptError] = []
    broken = {"on": True}

    def trouble(cell: Cell, tuner: Tuner) -> None:
        if broken["on"]:
            toys["toy"].fail_from = 1
        broken["on"] = False

    toys["toy"].fail_from = None
    entries, failed = await run_suite(
        load_suite(suite),
        tmp_path / "out",
        only=lambda cell: cell.method == "bias" and cell.split == "one",
        on_start=trouble,
        on_end=lambda cell, result: told.append(result),
    )
    assert len(entries) + len(failed) == 2 and len(failed) >= 1
    assert isinstance(told[0], FedbptError)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (('["bias"', '["bais"'), "grid.0.methods: 'bais' is not known"),
        (('base = "rounds"', 'base = "round"'), "methods.short.base: 'round' is no recipe"),
        (("rows = 20", "row = 20"), "tasks.toy.row: unknown key"),
        (("seeds = [1, 2]", "seeds = [-1]"), "grid.0.seeds.0"),
    ],
)
def test_a_wrong_suite_is_told(suite: Path, change: tuple[str, str], problem: str) -> None:
    suite.write_text(SUITE.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_suite(suite)
    assert problem in str(caught.value)


def test_the_command_plans_runs_and_puts_together(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = fedbpt("bench", suite, "--plan")
    assert planned.exit_code == 0 and "in all: 20 runs, 8,800 scored examples" in planned.output
    empty = fedbpt("bench", suite, "--out", out, "--table")
    assert empty.exit_code == 1 and "nothing" in empty.output
    done = fedbpt("bench", suite, "--out", out, "--only", "toy/one/bias/*")
    assert done.exit_code == 0, done.output
    assert "| bias |" in done.output and (out / "table.md").exists()
    wrong = fedbpt("bench", tmp_path / "none.toml")
    assert wrong.exit_code == 2 and "cannot be read" in wrong.output


@pytest.mark.parametrize(
    ("accuracies", "fall"),
    [
        ([0.5, 0.7, 0.7], 0.0),
        ([0.5, 0.9, 0.6], 0.3),
        ([0.9, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.7, 0.8], 0.2),
    ],
)
def test_a_fall_is_how_far_the_end_lies_below_the_best(accuracies: list[float], fall: float) -> None:
    curve = tuple((100 * (k + 1), 0.5, accuracy) for k, accuracy in enumerate(accuracies))
    entry = Entry("a", "one", "m", "bbt", 8, 1, 0.5, None, 9, 9, 9, 0, 0, "budget", curve)
    assert entry.fall == pytest.approx(fall)
