"""The commands as a user types them: help, exit codes, what is printed where, and what wins over the file."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import Result
from toy_runs import texts_of, write_config
from typer.testing import CliRunner

from fedbpt_api.cli import app
from fedbpt_api.data import write_examples
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.config import load_settings, load_task
from fedbpt_api.run.result import RunResult
from fedbpt_api.scoring.backend import Prompt, Scores
from fedbpt_api.task import Example, Task
from toy import ToyBackend, Toys, make_examples, make_task

FEDBPT = Path(sys.executable).with_name("fedbpt")


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder, with lines of any length and no colours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def task() -> Task:
    return make_task(2, train=6, dev=4, test=5)


@pytest.fixture
def config(toys: Toys, tmp_path: Path, task: Task) -> Path:
    return write_config(tmp_path, task)


@pytest.fixture
def finished(config: Path, tmp_path: Path) -> Path:
    """The folder of a finished run."""
    assert fedbpt("tune", config, "--run-dir", "done").exit_code == 0
    return tmp_path / "done"


def fedbpt(*words: object, stdin: str | None = None) -> Result:
    """What the command does; no exception may reach the user."""
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def stored(folder: Path) -> Any:
    return orjson.loads((folder / "settings.json").read_bytes())


# Help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), ["tune", "eval", "predict", "show", "init", "models", "--version"]),
        (("tune",), ["CONFIG", "--run-dir", "--scored", "--seed", "--rounds", "--set", "--json", "Ctrl-C"]),
        (("eval",), ["RUN", "--data", "--text", "--label", "--text-b", "--backend", "--set", "--json"]),
        (("predict",), ["RUN", "[TEXTS]", "--column", "--text-b", "--backend", "--set", "standard input"]),
        (("show",), ["RUN", "--json"]),
        (("init",), ["[PATH]", "--force"]),
        (("models",), ["install", "list"]),
        (("models", "install"), ["[NAME]"]),
        (("models", "list"), ["--json"]),
    ],
    ids=" ".join,
)
def test_help_names_every_argument_and_option(words: tuple[str, ...], told: Sequence[str]) -> None:
    result = fedbpt(*words, "--help")
    assert result.exit_code == 0
    for word in told:
        assert word in result.output


def test_the_version_is_printed() -> None:
    result = fedbpt("--version")
    assert (result.exit_code, result.output) == (0, "fedbpt 0.1.0\n")


@pytest.mark.parametrize("words", [("tun",), ("tune",), ("tune", "x.toml", "--frob"), ("eval", "run")])
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    result = fedbpt(*words)
    assert result.exit_code == 2
    assert "Usage" in result.output


# tune ----------------------------------------------------------------------------------------


def test_tune_shows_progress_and_the_result_and_keeps_the_run(finished: Path, config: Path) -> None:
    result = fedbpt("tune", config, "--run-dir", "again")
    assert result.exit_code == 0
    for line in ("model toy", "budget: 2,000 scored examples", "round 1:", "round 2:", "scored", "client1"):
        assert line in result.stdout
    for method in ("start", "start+bias", "start+weighted", "tuned", "majority"):
        assert method in result.stdout
    assert "\x1b" not in result.stdout
    for name in ("settings.json", "rounds.jsonl", "prompt.json", "result.json", "report.html"):
        assert (Path("again") / name).is_file()


def test_without_a_folder_the_run_is_named_after_the_config_and_the_time(config: Path) -> None:
    assert fedbpt("tune", config).exit_code == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("toy-2")
    assert (folder / "result.json").is_file()


def test_json_is_on_standard_output_alone_and_progress_on_the_other(config: Path) -> None:
    result = fedbpt("tune", config, "--run-dir", "run", "--json")
    data = orjson.loads(result.stdout)
    assert RunResult.from_dict(data).stopped == "rounds"
    assert data == orjson.loads(Path("run/result.json").read_bytes())
    assert "round 1:" in result.stderr


def test_the_command_line_wins_over_the_file(config: Path) -> None:
    words = ("--seed", 7, "--rounds", 1, "--scored", 900, "--set", "search.popsize=5")
    words += ("--set", "federation.aggregator=fedavg", "--set", 'prompts=["Good or bad?\\n"]')
    result = fedbpt("tune", config, "--run-dir", "run", *words)
    assert result.exit_code == 0
    settings = stored(Path("run"))
    assert settings["seed"] == 7
    assert settings["search"]["rounds"] == 1
    assert settings["budget"]["scored"] == 900
    assert settings["search"]["popsize"] == 5
    assert settings["federation"]["aggregator"] == "fedavg"
    assert settings["prompts"] == ["Good or bad?\n"]
    assert settings["search"]["positions"] == 2  # from the file
    assert len(Path("run/rounds.jsonl").read_bytes().splitlines()) == 2


def test_a_budget_that_is_spent_as_planned_is_exit_code_0(config: Path) -> None:
    result = fedbpt("tune", config, "--run-dir", "run", "--scored", 130, "--rounds", 50)
    assert result.exit_code == 0
    assert orjson.loads(Path("run/result.json").read_bytes())["stopped"] == "budget"


def test_a_budget_too_small_for_anything_is_a_sentence_and_no_traceback(config: Path) -> None:
    result = fedbpt("tune", config, "--run-dir", "run", "--scored", 3)
    assert result.exit_code in (1, 2)
    assert "budget" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set", "search.popsiz=5"), "search.popsiz: unknown key (did you mean 'search.popsize'?"),
        (("--set", "search.popsize=many"), "search.popsize: expected a whole number"),
        (("--set", "budget.scored=0"), "budget.scored: expected a number greater than 0"),
        (("--set", "popsize"), "--set popsize: expected KEY=VALUE"),
        (("--set", "=5"), "expected KEY=VALUE"),
        (("--set", "clients.0.train=nowhere.jsonl"), "nowhere.jsonl"),
        (("--set", "labels.positive= gruesome"), "' gruesome' is 9 tokens"),
        (("--set", "labels.positive= negative"), "' negative'"),
        (("--set", "backend.kind=toi"), "did you mean 'toy'?"),
        (("--set", "backend.nam=x"), "did you mean 'name'?"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
def test_a_wrong_setting_is_told_before_anything_is_scored(
    toys: Toys, config: Path, words: tuple[str, ...], told: str
) -> None:
    result = fedbpt("tune", config, "--run-dir", "run", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert told in result.stderr
    assert "->" in result.stderr or "correct" in result.stderr
    assert toys["toy"].requests == 0
    assert not Path("run/rounds.jsonl").exists() or not Path("run/rounds.jsonl").read_bytes()


def test_every_problem_of_a_config_is_told_at_once(toys: Toys, config: Path) -> None:
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace('"popsize":4', "popsize = 1").replace("popsize = 4", "popsize = 1"))
    result = fedbpt("tune", config, "--run-dir", "run", "--set", "sed=3", "--set", "budget.scord=1")
    assert result.exit_code == 2
    for problem in ("search.popsize", "sed: unknown key (did you mean 'seed'", "budget.scord"):
        assert problem in result.stderr
    assert not Path("run").exists()


@pytest.mark.parametrize("content", [None, "seed = = 3\n", "\x00"])
def test_a_config_that_is_none_is_exit_code_2(content: str | None) -> None:
    if content is not None:
        Path("bad.toml").write_text(content, encoding="utf-8")
    result = fedbpt("tune", "bad.toml")
    assert result.exit_code == 2
    assert "bad.toml" in result.stderr


def test_a_bad_row_is_named_with_its_line(config: Path) -> None:
    with Path("client1/train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "so so", "label": "postive"}\n')
    result = fedbpt("tune", config, "--run-dir", "run")
    assert result.exit_code == 2
    assert "client1/train.jsonl:7" in result.stderr and "did you mean 'positive'?" in result.stderr


def test_an_existing_run_is_refused_and_left_alone(toys: Toys, finished: Path, config: Path) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir()}
    asked = toys["toy"].requests
    result = fedbpt("tune", config, "--run-dir", finished)
    assert result.exit_code == 1
    assert "holds a run already" in result.stderr and "--run-dir" in result.stderr
    assert before == {path: path.read_bytes() for path in finished.iterdir()}
    assert toys["toy"].requests == asked


def test_a_backend_that_fails_is_exit_code_1_with_its_words(toys: Toys, config: Path) -> None:
    toys["toy"].fail_from = 14
    result = fedbpt("tune", config, "--run-dir", "run")
    assert result.exit_code == 1
    assert "the toy fails" in result.stderr
    assert TunedPrompt.load(Path("run")).ids


class Interrupting(ToyBackend):
    """Sends this process a signal while a request is under way."""

    at: int = 0
    number: signal.Signals = signal.SIGINT

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        if self.requests == self.at:
            signal.raise_signal(self.number)
        return await super().score(prompts, words)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_is_exit_code_3_with_everything_kept(
    toys: Toys, config: Path, number: signal.Signals
) -> None:
    toy = Interrupting()
    toy.at, toy.number = 22, number
    toys.opened["toy"] = toy
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    result = fedbpt("tune", config, "--run-dir", "run", "--rounds", 100, "--scored", 100_000)
    assert result.exit_code == 3
    assert "stopped early" in result.stderr and "prompt.json" in result.stderr
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    data = orjson.loads(Path("run/result.json").read_bytes())
    assert data["stopped"] == "cancelled" and data["test"] is None
    counted = sum(counts["scored"] for counts in data["spent"].values())
    assert toy.scored + 12 == counted  # 12 were asked for the word list
    toys.opened["toy"] = ToyBackend()
    write_examples(Path("new.jsonl"), make_examples(9, 70))
    assert fedbpt("eval", "run", "--data", "new.jsonl").exit_code == 0


def test_two_signals_stop_at_once_and_keep_the_best_prompt(toys: Toys, config: Path) -> None:
    class Twice(Interrupting):
        async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
            if self.requests == 22:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return await super().score(prompts, words)

    toys.opened["toy"] = Twice()
    result = fedbpt("tune", config, "--run-dir", "run", "--rounds", 100, "--scored", 100_000)
    assert result.exit_code == 3
    assert "stopped" in result.stderr
    assert TunedPrompt.load(Path("run")).model["kind"] == "toy"
    assert toys["toy"].closed == 1


# eval, predict, show -------------------------------------------------------------------------


def test_eval_prints_accuracy_interval_f1_and_the_confusion_matrix(finished: Path) -> None:
    write_examples(Path("new.jsonl"), make_examples(30, 60))
    result = fedbpt("eval", finished, "--data", "new.jsonl")
    assert result.exit_code == 0
    assert "30 texts: accuracy" in result.stdout
    assert "95% interval" in result.stdout and "macro-F1" in result.stdout
    row = orjson.loads(fedbpt("eval", finished / "prompt.json", "--data", "new.jsonl", "--json").stdout)
    assert row["n"] == row["scored"] == 30
    assert f"accuracy {row['accuracy']:.3f}" in result.stdout
    for line in row["confusion"]:
        assert any([str(n) in shown for n in line] for shown in result.stdout.splitlines())


def test_eval_reads_columns_and_tables(finished: Path) -> None:
    lines = ["review,mood", *(f"{e.text},{e.label}" for e in make_examples(12, 61))]
    Path("new.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = fedbpt("eval", finished, "--data", "new.csv", "--text", "review", "--label", "mood", "--json")
    assert orjson.loads(result.stdout)["n"] == 12
    wrong = fedbpt("eval", finished, "--data", "new.csv")
    assert wrong.exit_code == 2
    assert "new.csv" in wrong.stderr and "text" in wrong.stderr


def test_eval_of_unknown_labels_or_missing_files_is_exit_code_2_and_of_no_run_1(finished: Path) -> None:
    write_examples(Path("odd.jsonl"), [Example("good day", "joyful")])
    assert "joyful" in (odd := fedbpt("eval", finished, "--data", "odd.jsonl")).stderr
    missing = fedbpt("eval", finished, "--data", "none.jsonl")
    nothing = fedbpt("eval", "nowhere", "--data", "odd.jsonl")
    assert [result.exit_code for result in (odd, missing, nothing)] == [2, 2, 1]
    assert "nowhere" in nothing.stderr


def test_another_backend_can_be_asked_and_is_told(toys: Toys, finished: Path) -> None:
    toys.opened["other"] = ToyBackend(seed=3)
    write_examples(Path("new.jsonl"), make_examples(5, 62))
    words = ("--backend", "toy", "--set", "name=other", "--json")
    result = fedbpt("eval", finished, "--data", "new.jsonl", *words)
    assert result.exit_code == 0
    assert orjson.loads(result.stdout)["n"] == 5
    assert "warning: tuned on toy (toy-0)" in result.stderr
    assert toys["other"].scored == 5
    assert fedbpt("eval", finished, "--data", "new.jsonl", "--backend", "toi").exit_code == 2


def test_predict_gives_a_json_line_for_each_text_from_any_source(finished: Path) -> None:
    rows = make_examples(40, 63)
    write_examples(Path("new.jsonl"), [Example(row.text) for row in rows])
    Path("new.txt").write_text("\n\n".join(row.text for row in rows) + "\n", encoding="utf-8")
    Path("new.tsv").write_text("body\n" + "".join(f"{row.text}\n" for row in rows), encoding="utf-8")
    outputs = [
        fedbpt("predict", finished, stdin="\n".join(row.text for row in rows)),
        fedbpt("predict", finished, "new.jsonl"),
        fedbpt("predict", finished / "prompt.json", "new.txt"),
        fedbpt("predict", finished, "new.tsv", "--column", "body"),
    ]
    assert [result.exit_code for result in outputs] == [0] * 4
    assert len({result.stdout for result in outputs}) == 1
    lines = [orjson.loads(line) for line in outputs[0].stdout.splitlines()]
    assert len(lines) == 40
    for line in lines:
        assert sorted(line) == ["label", "probabilities"]
        assert sum(line["probabilities"].values()) == pytest.approx(1)
    right = sum(line["label"] == row.label for line, row in zip(lines, rows, strict=True))
    assert right > 30


def test_predict_of_nothing_gives_nothing_and_bad_sources_are_told(finished: Path) -> None:
    assert (
        fedbpt("predict", finished, stdin="").stdout,
        fedbpt("predict", finished, stdin="\n \n").stdout,
    ) == (
        "",
        "",
    )
    Path("latin.txt").write_bytes("gar\u00e7on".encode("latin-1"))
    for source in ("latin.txt", "none.txt", "none.jsonl"):
        result = fedbpt("predict", finished, source)
        assert result.exit_code == 2
        assert source in result.stderr


def test_show_tells_the_result_again(finished: Path, config: Path) -> None:
    data = orjson.loads((finished / "result.json").read_bytes())
    assert orjson.loads(fedbpt("show", finished, "--json").stdout) == data
    shown = fedbpt("show", finished)
    assert shown.exit_code == 0
    assert "start+weighted" in shown.stdout and "tuned" in shown.stdout


def test_show_of_a_prompt_file_tells_the_prompt(finished: Path) -> None:
    prompt = TunedPrompt.load(finished)
    shown = fedbpt("show", finished / "prompt.json")
    assert f"prompt ({len(prompt.ids)} tokens of toy)" in shown.stdout
    assert "held_out_loss" in shown.stdout
    data = orjson.loads(fedbpt("show", finished / "prompt.json", "--json").stdout)
    assert TunedPrompt.from_dict(data) == prompt


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 9}', '{"format": 1}'])
def test_a_damaged_prompt_file_is_exit_code_1(content: str) -> None:
    Path("prompt.json").write_text(content, encoding="utf-8")
    for words in (("show", "prompt.json"), ("predict", "prompt.json")):
        result = fedbpt(*words, stdin="good day")
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")


def test_no_command_prints_a_text_of_the_data(finished: Path, config: Path, task: Task) -> None:
    outputs = [
        fedbpt("tune", config, "--run-dir", "b"),
        fedbpt("show", finished),
        fedbpt("show", "b", "--json"),
    ]
    texts = texts_of(task.clients)
    assert not [text for result in outputs for text in texts if text in result.output]


# init ----------------------------------------------------------------------------------------


def test_init_writes_a_config_that_loads_once_its_files_exist(tmp_path: Path) -> None:
    result = fedbpt("init")
    assert result.exit_code == 0
    assert "fedbpt.toml" in result.stdout
    missing = fedbpt("tune", "fedbpt.toml")
    assert missing.exit_code == 2
    assert missing.stderr.count("no file") == 6
    for client in ("north", "south"):
        for part in ("train", "dev", "test"):
            write_examples(tmp_path / client / f"{part}.jsonl", make_examples(6, 3))
    settings = load_settings(tmp_path / "fedbpt.toml")
    assert [client.name for client in load_task(settings).clients] == ["north", "south"]


def test_init_does_not_replace_a_file_unless_told(tmp_path: Path) -> None:
    Path("mine.toml").write_text("mine", encoding="utf-8")
    refused = fedbpt("init", "mine.toml")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert Path("mine.toml").read_text(encoding="utf-8") == "mine"
    assert fedbpt("init", "mine.toml", "--force").exit_code == 0
    assert Path("mine.toml").read_text(encoding="utf-8") != "mine"
    assert fedbpt("init", "no/folder/mine.toml").exit_code == 2


# On the real model ---------------------------------------------------------------------------


@pytest.mark.model
def test_ctrl_c_on_the_real_model_is_exit_code_3_and_the_prompt_is_usable(tmp_path: Path, task: Task) -> None:
    changes = {"backend": {"kind": "llamacpp"}, "budget.scored": 5000, "search.rounds": 500}
    changes |= {"search.form": "words", "verbalizer.words": 8}
    path = write_config(tmp_path, task, changes)
    command = [str(FEDBPT), "tune", str(path), "--run-dir", "run"]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        for line in child.stdout:
            lines.append(line)
            if line.startswith("round 1:"):
                child.send_signal(signal.SIGINT)
                break
        lines += child.stdout.readlines()
        errors = child.stderr.read()
        code = child.wait()
    assert code == 3, (lines, errors)
    assert "stopped early" in errors and "Traceback" not in errors
    result = RunResult.from_dict(orjson.loads(Path("run/result.json").read_bytes()))
    assert result.stopped == "cancelled"
    assert result.prompt == TunedPrompt.load(Path("run")).text
    write_examples(Path("new.jsonl"), make_examples(4, 70))
    done = subprocess.run(
        [str(FEDBPT), "eval", "run", "--data", "new.jsonl", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert orjson.loads(done.stdout)["n"] == 4
