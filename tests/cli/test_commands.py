"""`fedbpt tune`, and what all commands share: help, exit codes, what goes where, what wins over the file."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from fedbpt_api.data import write_examples
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.result import RunResult
from fedbpt_api.scoring.backend import Prompt, Scores
from toy import ToyBackend, Toys, make_examples, make_task
from toy_runs import METHODS, fedbpt, write_config

FEDBPT = Path(sys.executable).with_name("fedbpt")


def stored(folder: Path) -> Any:
    return orjson.loads((folder / "settings.json").read_bytes())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), ["tune", "eval", "predict", "show", "init", "models", "cache", "--version"]),
        (("tune",), ["CONFIG", "--run-dir", "--scored", "--seed", "--rounds", "--set", "--json", "Ctrl-C"]),
        (("eval",), ["RUN", "--data", "--text", "--label", "--text-b", "--backend", "--set", "--json"]),
        (("predict",), ["RUN", "TEXTS", "--column", "--text-b", "--backend", "--set", "standard input"]),
        (("show",), ["RUN", "--json"]),
        (("init",), ["PATH", "--force"]),
        (("models",), ["install", "list"]),
        (("models", "install"), ["NAME"]),
        (("models", "list"), ["--json"]),
        (("cache",), ["list", "size", "prune", "off", "on", "cache.scores"]),
        (("cache", "list"), ["--json", "bytes", "last used"]),
        (("cache", "size"), ["--json"]),
        (("cache", "prune"), ["--older-than", "DAYS", "--server", "NUMBER", "--all"]),
        (("cache", "off"), ["FEDBPT_NO_CACHE=1", "whatever a configuration says"]),
        (("cache", "on"), ["cache.scores = true"]),
    ],
    ids=" ".join,
)
def test_help_names_every_argument_and_option(words: tuple[str, ...], told: Sequence[str]) -> None:
    result = fedbpt(*words, "--help")
    assert result.exit_code == 0
    assert not [word for word in told if word.casefold() not in result.output.casefold()]


def test_the_version_is_printed() -> None:
    result = fedbpt("--version")
    assert (result.exit_code, result.output) == (0, "fedbpt 0.1.0\n")


@pytest.mark.parametrize("words", [("tun",), ("tune",), ("tune", "x.toml", "--frob"), ("eval", "run")])
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    result = fedbpt(*words)
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_tune_shows_progress_and_the_result_and_keeps_the_run(finished: Path, config: Path) -> None:
    result = fedbpt("tune", config, "--run-dir", "again")
    assert result.exit_code == 0
    for line in ("model toy", "budget: 2,000 scored examples", "round 1:", "round 2:", "scored", "client1"):
        assert line in result.stdout
    for method in METHODS:
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
    words: tuple[object, ...] = ("--seed", 7, "--rounds", 1, "--scored", 900, "--set", "search.popsize=5")
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
        (("--set", "search.popsiz=5"), "search.popsiz: unknown key (did you mean 'popsize'?"),
        (("--set", "search.popsize=many"), "search.popsize: expected a whole number"),
        (("--set", "budget.scored=0"), "budget.scored: expected a number greater than 0"),
        (("--set", "popsize"), "--set popsize: expected KEY=VALUE"),
        (("--set", "=5"), "expected KEY=VALUE"),
        (("--set", "clients.0.train=nowhere.jsonl"), "nowhere.jsonl"),
        (
            ("--set", "labels.positive= good day", "--set", "labels.negative= good"),
            "' good day' begins with all",
        ),
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
    assert TunedPrompt.load(Path("run")).scores


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


@pytest.mark.model
def test_ctrl_c_on_the_real_model_is_exit_code_3_and_the_prompt_is_usable(tmp_path: Path) -> None:
    changes = {"backend.kind": "llamacpp", "backend.threads": 1, "budget.scored": 5000, "search.rounds": 500}
    path = write_config(tmp_path, make_task(2, train=4, dev=2, test=2), changes)
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
