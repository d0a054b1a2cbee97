"""The commands that use a finished run, and `fedbpt init`, which comes before one."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from fedbpt_api.data import write_examples
from fedbpt_api.errors import ConfigError
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.classify import Classifier
from fedbpt_api.run.config import load_settings, load_task
from fedbpt_api.task import Example, Task
from toy import ToyBackend, Toys, make_examples, make_task
from toy_runs import METHODS, fedbpt, texts_of, write_config


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


def test_a_run_folder_s_own_server_is_asked_unless_another_is_named(
    tmp_path: Path, toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, make_task(), {"backend.name": "own", "search.rounds": 1})
    assert fedbpt("tune", config, "--run-dir", "run").exit_code == 0
    write_examples(Path("new.jsonl"), make_examples(5, 62))
    asked = []
    for words in (
        ("run",),
        ("run", "--set", "name=other"),
        ("run", "--backend", "toy"),
        ("run/prompt.json",),
    ):
        before = {name: toys[name].scored for name in ("own", "other", "toy")}
        assert fedbpt("eval", *words, "--data", "new.jsonl").exit_code == 0
        asked.append({name for name, scored in before.items() if toys[name].scored > scored})
    assert asked == [{"own"}, {"other"}, {"toy"}, {"toy"}]


def test_a_server_that_is_named_is_not_asked_beside_the_run_s_own(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on a file and `--set base_url`, or the other way: a backend would take one of the two."""
    opened: list[dict[str, object]] = []

    async def note(prompt: TunedPrompt, kind: str | None = None, **options: object) -> Classifier:
        opened.append(options)
        raise ConfigError("seen")

    monkeypatch.setattr(Classifier, "open", note)
    write_examples(Path("new.jsonl"), make_examples(5, 62))
    settings = finished / "settings.json"
    values = orjson.loads(settings.read_bytes())
    for own, given, wanted in (
        ({"model": "a", "context": 9}, "base_url=b", {"base_url": "b", "context": 9}),
        ({"base_url": "a"}, "model=b", {"model": "b"}),
        ({"base_url": "a", "model": "m"}, "base_url=b", {"base_url": "b", "model": "m"}),
        ({"model": "a"}, "context=7", {"model": "a", "context": 7}),
    ):
        settings.write_bytes(orjson.dumps(values | {"backend": {"kind": "toy", **own}}))
        assert fedbpt("eval", finished, "--data", "new.jsonl", "--set", given).exit_code == 2
        assert opened.pop() == wanted


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
    assert orjson.loads(fedbpt("show", finished, "--json").stdout) == data | {"folder": str(finished)}
    shown = fedbpt("show", finished)
    assert shown.exit_code == 0
    assert not [method for method in METHODS if method not in shown.stdout]


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
