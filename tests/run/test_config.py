"""What a user reads about a config file, and the task that a sound one gives."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedbpt_api.data import split_dirichlet, split_iid, write_examples
from fedbpt_api.errors import ConfigError
from fedbpt_api.run.config import Settings, build_settings, example_config, load_settings, load_task
from fedbpt_api.task import Example, Template, validate
from toy import make_task
from toy_runs import make_values

TOP = 'prompts = ["Say it.", ""]\ntemplate = "Review: {text}\\nSentiment:"\n'
REST = """
[labels]
bad = " bad"
good = [" good", " fine"]
[budget]
scored = 100
"""
CLIENTS = """
[[clients]]
name = "north"
train = "north/train.jsonl"
[[clients]]
name = "south"
train = "south.csv"
"""
DATA = '[data]\ntrain = "all.jsonl"\ndev = "all.jsonl"\nclients = 3\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data files."""
    write_examples(tmp_path / "north" / "train.jsonl", [Example("n1", "good"), Example("n2", "bad")])
    (tmp_path / "south.csv").write_text("text,label\ns1,bad\ns2,good\n")
    write_examples(tmp_path / "all.jsonl", [Example(f"t{i}", ("good", "bad")[i % 2]) for i in range(12)])
    return tmp_path


def config(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, overrides: Mapping[str, object] | None = None) -> list[str]:
    """What is wrong with a config, with the folder left out of the sentences."""
    with pytest.raises(ConfigError) as caught:
        load_settings(config(folder, text), overrides or {})
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def test_a_small_config_is_filled_with_defaults(folder: Path) -> None:
    settings = load_settings(config(folder, TOP + REST + CLIENTS))
    assert settings.labels == {"bad": (" bad",), "good": (" good", " fine")}
    assert [client.train for client in settings.clients] == [
        folder / "north" / "train.jsonl",
        folder / "south.csv",
    ]
    assert (settings.seed, settings.prompt_place, settings.backend.kind) == (0, "before", "llamacpp")
    assert (settings.search.popsize, settings.verbalizer.words, settings.federation.quorum) == (6, 128, 0.5)


def test_settings_survive_json_without_their_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TOP + REST + CLIENTS + 'backend = { kind = "x", model = "m.gguf", list = [1, 2] }\n'
    settings = load_settings(config(folder, text))
    stored = settings.model_dump_json()
    (folder / "south.csv").unlink()
    monkeypatch.chdir("/")
    assert Settings.model_validate_json(stored) == settings
    assert build_settings(json.loads(stored), files=False) == settings
    backend = settings.clients[1].backend
    assert backend is not None and backend.options == {"model": "m.gguf", "list": [1, 2]}


def test_settings_cannot_be_changed_or_contradict_themselves(folder: Path) -> None:
    settings = load_settings(config(folder, TOP + REST + DATA))
    with pytest.raises(ValidationError, match="frozen"):
        settings.__setattr__("seed", 1)
    with pytest.raises(ValidationError, match="got both"):
        Settings.model_validate({**settings.model_dump(), "clients": [{"name": "a", "train": "a.csv"}]})


def test_overrides_win_and_take_paths_from_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(folder, TOP + REST + CLIENTS)
    monkeypatch.chdir(folder / "north")
    overrides = {
        "budget.scored": "7",
        "budget.seconds": 2.5,
        "clients.1.train": "train.jsonl",
        "backend.threads": 2,
        "search.rounds": 3,
    }
    settings = load_settings(path, overrides)
    assert (settings.budget.scored, settings.budget.seconds, settings.search.rounds) == (7, 2.5, 3)
    assert settings.clients[1].train == folder / "north" / "train.jsonl"
    assert settings.backend.options == {"threads": 2}


def test_overrides_are_blamed_as_the_command_line(folder: Path) -> None:
    found = problems(
        folder, TOP + REST + CLIENTS, {"budget.scored": 0, "seed.x": 1, "clients.2.name": "x", "a": 1}
    )
    assert found[0] == (
        "command line: clients.2.name: clients has 2 entries; expected a number below that in place of '2'"
    )
    assert "command line: budget.scored: expected a number greater than 0, got 0; correct it" in found
    assert any(problem.startswith("command line: a: unknown key") for problem in found)


def test_an_override_below_a_single_value_is_refused(folder: Path) -> None:
    assert problems(folder, "seed = 1\n" + TOP + REST + CLIENTS, {"seed.x": 1}) == [
        "command line: seed.x: seed is a single value and has no key 'x'; use seed alone"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sead = 1\n" + TOP + REST + CLIENTS, "sead: unknown key (did you mean 'seed'?)"),
        (TOP + REST + "token = 5\n" + CLIENTS, "budget.token: unknown key (did you mean 'tokens'?)"),
        (TOP + REST + "rounds = 5\n" + CLIENTS, "budget.rounds: unknown key (did you mean 'search.rounds'?)"),
        (
            TOP + REST + "seed = 5\n" + CLIENTS,
            "budget.seed: unknown key (did you mean 'seed' at the top of the file, before any section?)",
        ),
        (
            TOP + REST + CLIENTS + 'tset = "south.csv"\n',
            "clients.1.tset: unknown key (did you mean 'test'?); "
            "expected one of name, train, dev, test, budget, backend, price, so correct or remove it",
        ),
        (
            TOP + REST + CLIENTS + "budget = { scord = 5 }\n",
            "clients.1.budget.scord: unknown key (did you mean 'scored'?)",
        ),
        (
            TOP + REST + "seconds = 'ten'\n" + CLIENTS,
            "budget.seconds: expected a number, got 'ten'; correct it",
        ),
        (TOP + REST + "tokens = -5\n" + CLIENTS, "budget.tokens: expected a number greater than 0, got -5"),
        (TOP + REST + "seconds = inf\n" + CLIENTS, "budget.seconds: expected a finite number, got inf"),
        (TOP + REST + CLIENTS + "[search]\nsigma = []\n", "search.sigma: expected a number, got []"),
        (
            TOP + REST + CLIENTS + "[search]\nrounds = 1.5\n",
            "search.rounds: expected a whole number, got 1.5",
        ),
        (TOP + "federation = 3\n" + REST + CLIENTS, "federation: expected a section of keys, got 3"),
        (
            TOP + REST + CLIENTS + '[verbalizer]\nkind = "weightd"\n',
            "verbalizer.kind: expected 'weighted', 'bias' or 'words', got 'weightd'",
        ),
        (
            TOP + REST + CLIENTS + "[federation]\nquorum = 2\n",
            "federation.quorum: expected a number less than or equal to 1, got 2",
        ),
        (
            TOP + REST + CLIENTS + "[verbalizer]\nwords = 2\n",
            "verbalizer.words: expected at least the 3 label words, got 2; raise it",
        ),
        (
            "prompts = []\ntemplate = '{text}'\n" + REST + CLIENTS,
            "prompts: expected at least 1 entry, got []",
        ),
        (
            "template = '{text}'\n" + REST + CLIENTS,
            "prompts: this key is missing; add it, such as prompts = [",
        ),
        (
            "prompts = ['']\ntemplate = '{txt}'\n" + REST + CLIENTS,
            "template: unknown slot {txt} (did you mean 'text'?)",
        ),
        (
            "prompts = ['']\ntemplate = '{text_a}{text_b}'\n" + REST + CLIENTS,
            "columns.text_b: the template asks for a pair; name the column of its second text",
        ),
        (TOP + REST + CLIENTS + "[columns]\ntext_b = 'b'\n", "columns.text_b: the template has no {text_b}"),
        (
            TOP + REST.replace("scored = 100", "") + CLIENTS,
            "budget: expected scored, tokens, seconds or money, got none",
        ),
        (TOP + REST, "clients, data: expected one of them, got none; add a [[clients]] for each party"),
        (TOP + REST + CLIENTS + DATA, "clients, data: expected one of them, got both"),
        (
            TOP + REST + CLIENTS.replace('south"', 'north"'),
            "clients.1.name: 'north' is the name of clients.0 already; give it a name of its own",
        ),
        (
            TOP + REST + CLIENTS.replace('north"', '*"'),
            "clients.0.name: '*' means all clients together in reports",
        ),
        (TOP + REST.replace('" bad"', "[]") + CLIENTS, "labels.bad: expected at least one word, got none"),
        (TOP + REST.replace('" bad"', '" "') + CLIENTS, "labels.bad: a word is empty"),
        (TOP + REST.replace('" bad"', "5") + CLIENTS, "labels.bad: expected a list, got 5"),
        (
            TOP + REST.replace('" bad"', '" fine"') + CLIENTS,
            "labels: the word ' fine' stands for 'bad' and 'good'",
        ),
        (TOP + REST.replace('bad = " bad"\n', "") + CLIENTS, "labels: expected at least two labels, got 1"),
        (
            TOP + REST + CLIENTS.replace('"south.csv"', "5"),
            "clients.1.train: expected a path in quotes, got 5",
        ),
        (
            TOP + REST + CLIENTS.replace("south.csv", "suth.csv"),
            "clients.1.train: no file suth.csv (did you mean 'south.csv'?); correct the path or create it",
        ),
        (
            TOP + REST + DATA.replace('dev = "all', 'dev = "gone/all'),
            "data.dev: no file gone/all.jsonl, not even its folder is there",
        ),
        (
            TOP + REST + CLIENTS.replace("south.csv", "north"),
            "clients.1.train: expected a file, but north is a folder",
        ),
        (
            TOP + REST + CLIENTS.replace("south.csv", "run.toml"),
            "clients.1.train: expected one of .jsonl, .csv, .tsv, got the file run.toml; convert",
        ),
    ],
)
def test_one_mistake_gives_one_sentence(folder: Path, text: str, expected: str) -> None:
    [problem] = problems(folder, text)
    assert problem.startswith(f"run.toml: {expected}")


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    text = """
prompts = []
template = "Review:"
sead = 3
budget = {}
search = { popsize = "many" }
clients = [{ name = "a", trian = "x" }, { name = "a", train = "gone.csv" }]
[labels]
a = 4
b = [" x", ""]
c = " x"
"""
    found = problems(folder, text)
    assert all(problem.startswith("run.toml: ") for problem in found)
    keys = {problem.split(": ")[1] for problem in found}
    top = {"prompts", "template", "sead", "budget", "labels", "labels.a", "labels.b"}
    clients = {f"clients.{key}" for key in ("0.train", "0.trian", "1.name", "1.train")}
    assert keys == top | clients | {"search.popsize"}


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("seed = 1\nprompts = [\n", 3, "not valid TOML"),
        ("seed = 1\ntemplate = Review\n", 2, "not valid TOML: Invalid value"),
        ("seed = 1\n\nseed = 2\n", 3, "not valid TOML: Cannot overwrite a value"),
    ],
)
def test_a_syntax_error_names_the_line(folder: Path, text: str, line: int, expected: str) -> None:
    [problem] = problems(folder, text)
    assert problem.startswith(f"run.toml:{line}: {expected}")


def test_a_missing_config_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file(.|\n)*fedbpt init"):
        load_settings(tmp_path / "gone.toml")


def test_a_task_from_the_clients_own_files(folder: Path) -> None:
    text = 'prompt_place = "after"\n' + TOP + REST + CLIENTS + 'test = "north/train.jsonl"\n'
    task = load_task(load_settings(config(folder, text)))
    assert task.template == Template("Review: {text}{prompt}\nSentiment:")
    assert task.label_words.words == ((" bad",), (" good", " fine"))
    north, south = task.clients
    assert (north.name, north.train, north.dev, north.test) == (
        "north",
        (Example("n1", "good"), Example("n2", "bad")),
        (),
        (),
    )
    assert (south.train[0], south.test) == (Example("s1", "bad"), north.train)
    assert [warning.split(":")[0] for warning in validate(task)] == ["no development texts", "test"]


@pytest.mark.parametrize("split", ["iid", "dirichlet"])
def test_a_task_from_one_file_that_is_split(folder: Path, split: str) -> None:
    settings = load_settings(
        config(folder, TOP + REST + DATA + f"split = '{split}'\nalpha = 0.5\n"), {"seed": 3}
    )
    task = load_task(settings)
    everything = [Example(f"t{i}", ("good", "bad")[i % 2]) for i in range(12)]
    parts = split_iid(everything, 3, 3) if split == "iid" else split_dirichlet(everything, 3, 0.5, 3)
    assert [client.name for client in task.clients] == ["client1", "client2", "client3"]
    assert tuple(client.train for client in task.clients) == parts
    assert tuple(client.dev for client in task.clients) == parts
    assert all(client.test == () for client in task.clients)


def test_unusable_rows_of_all_files_are_told_at_once(folder: Path) -> None:
    (folder / "south.csv").write_text("text,label\ns1,baad\n,good\n")
    write_examples(folder / "north" / "train.jsonl", [Example("n1")])
    settings = load_settings(config(folder, TOP + REST + CLIENTS))
    with pytest.raises(ConfigError) as caught:
        load_task(settings)
    places = [problem.removeprefix(f"{folder}/").split(" ")[0] for problem in caught.value.problems]
    assert places == ["north/train.jsonl:1:", "south.csv:2:", "south.csv:3:"]
    assert "the label 'baad' has no words (did you mean 'bad'?)" in str(caught.value)


def test_more_clients_than_texts_names_the_file(folder: Path) -> None:
    settings = load_settings(config(folder, TOP + REST + DATA), {"data.clients": 13})
    with pytest.raises(
        ConfigError, match=r"all\.jsonl: 12 texts cannot be split over 13 clients.*; use fewer"
    ):
        load_task(settings)


def test_the_example_config_loads_unchanged(tmp_path: Path) -> None:
    for name in ("north", "south"):
        for part in ("train", "dev", "test"):
            rows = [Example(f"{name} {part} {label}", label) for label in ("negative", "positive")]
            write_examples(tmp_path / name / f"{part}.jsonl", rows)
    task = load_task(load_settings(config(tmp_path, example_config())))
    assert [client.name for client in task.clients] == ["north", "south"]
    assert validate(task) == []


def test_the_remarks_of_the_example_config_are_valid_settings(tmp_path: Path) -> None:
    """Every key that stands in a remark is known, and its value is the default or valid."""
    write_examples(tmp_path / "all.jsonl", [Example("a", "x")])
    lines = example_config().splitlines()
    start = lines.index("# [search]")
    optional = tomllib.loads(
        "\n".join(line.removeprefix("# ") for line in lines[start:] if " = " in line or "[" in line)
    )
    values = {**tomllib.loads(TOP + REST + DATA), **optional}
    settings = build_settings(values, base=tmp_path)
    defaults = build_settings(tomllib.loads(TOP + REST + DATA), base=tmp_path)
    assert set(optional) == {"search", "federation", "privacy", "verbalizer", "cache"}
    for section in ("privacy", "verbalizer", "cache"):
        assert getattr(settings, section) == getattr(defaults, section)
    for section in ("search", "federation", "privacy", "cache"):
        assert set(optional[section]) == set(type(getattr(settings, section)).model_fields)


def test_a_secret_in_the_file_itself_is_refused_and_not_repeated() -> None:
    values = make_values(
        make_task(), {"backend": {"kind": "toy", "headers": {"Authorization": "Bearer sk-1"}}}
    )
    with pytest.raises(ConfigError, match=r"backend\.headers\.Authorization") as caught:
        build_settings(values, files=False)
    assert "sk-1" not in str(caught.value) and "${NAME}" in str(caught.value)
    values["backend"] = {"kind": "toy", "headers": {"Authorization": "Bearer ${KEY}"}}
    build_settings(values, files=False)
