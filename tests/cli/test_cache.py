"""`fedbpt cache`: what is in the shared store, removing it, and off."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import orjson
import pytest

from fedbpt_api.scoring import store_file
from toy import Toys
from toy_runs import fedbpt


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store's folder, in a cache of this test's own."""
    monkeypatch.setenv("FEDBPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDBPT_NO_CACHE", raising=False)
    return tmp_path / "cache" / "scores"


def tune(config: Path, name: str, *more: str) -> str:
    result = fedbpt("tune", config, "--run-dir", name, "--set", "cache.scores=true", "--json", *more)
    assert result.exit_code == 0
    return result.stderr


def listed() -> list[dict[str, object]]:
    found: list[dict[str, object]] = orjson.loads(fedbpt("cache", "list", "--json").stdout)
    return found


def test_an_empty_store_says_how_it_is_filled_and_makes_nothing(place: Path) -> None:
    assert "cache.scores=true" in fedbpt("cache", "list").output
    assert listed() == []
    assert fedbpt("cache", "size").output == f"0 bytes in {place}\n"
    assert "removed 0 answers" in fedbpt("cache", "prune", "--older-than", "0").output
    assert "removed everything: 0 bytes" in fedbpt("cache", "prune", "--all").output
    assert not place.parent.exists()


def test_a_run_fills_it_and_it_is_listed_by_server(config: Path, toys: Toys, place: Path) -> None:
    tune(config, "first")
    tune(config, "second", "--set", "backend.name=other")
    text = fedbpt("cache", "list").output.splitlines()
    assert len(text) == 2 and all(
        "toy" in line and "answers" in line and "last used" in line for line in text
    )
    second, first = listed()
    assert (first["server"], second["server"]) == (1, 2)
    assert first["answers"] == len({*toys["toy"].answered}) + 2 * 6  # with the lists for the words
    assert first["model"] == "toy" and int(str(first["bytes"])) > 0
    size = orjson.loads(fedbpt("cache", "size", "--json").output)
    assert size == {"bytes": sum(path.stat().st_size for path in place.iterdir()), "path": str(place)}


def test_prune_removes_by_server_by_age_and_everything(config: Path, place: Path) -> None:
    tune(config, "first")
    tune(config, "second", "--set", "backend.name=other")
    before = orjson.loads(fedbpt("cache", "size", "--json").output)["bytes"]
    assert fedbpt("cache", "prune", "--server", "1").exit_code == 0
    assert [one["server"] for one in listed()] == [2]
    assert orjson.loads(fedbpt("cache", "size", "--json").output)["bytes"] < before
    with sqlite3.connect(place / store_file.FILE) as connection:
        connection.execute("UPDATE answers SET written = ? WHERE key < x'40'", (time.time() - 3.5 * 86400,))
        (old,) = connection.execute("SELECT count(*) FROM answers WHERE key < x'40'").fetchone()
        (total,) = connection.execute("SELECT count(*) FROM answers").fetchone()
    connection.close()
    assert 0 < old < total
    assert "removed 0 answers" in fedbpt("cache", "prune", "--older-than", "4").output
    assert f"removed {old} answers" in fedbpt("cache", "prune", "--older-than", "3", "--server", "2").output
    assert listed()[0]["answers"] == total - old
    assert fedbpt("cache", "prune", "--all").exit_code == 0
    assert listed() == []


@pytest.mark.parametrize(
    "words", [(), ("--all", "--server", "1"), ("--all", "--older-than", "3"), ("--server", "7")]
)
def test_prune_wants_to_be_told_what(words: tuple[str, ...]) -> None:
    result = fedbpt("cache", "prune", *words)
    assert result.exit_code == 2 and "  -> " in result.output


def test_prune_all_mends_a_damaged_store_and_leaves_other_programs_files(config: Path, place: Path) -> None:
    tune(config, "first")
    (place / store_file.FILE).write_bytes(b"x" * 9000)
    assert fedbpt("cache", "list").exit_code == 1
    warned = tune(config, "second")
    assert "cannot be used" in warned and "fedbpt cache prune --all" in warned
    assert fedbpt("cache", "prune", "--all").exit_code == 0
    assert "warning" not in tune(config, "third")
    assert len(listed()) == 1
    assert fedbpt("cache", "prune", "--all").exit_code == 0
    (place / store_file.FILE).unlink()
    with sqlite3.connect(place / store_file.FILE) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert fedbpt("cache", "prune", "--all").exit_code == 1
    assert (place / store_file.FILE).exists()


def test_off_is_off_whatever_the_configuration_says_until_it_is_on_again(config: Path, place: Path) -> None:
    assert "fedbpt cache on" in fedbpt("cache", "off").output
    assert "cache.scores" in tune(config, "first") and not place.exists()
    assert "it is off" in fedbpt("cache", "list").output
    assert fedbpt("cache", "on").exit_code == 0
    assert "cache.scores" not in tune(config, "second") and place.exists()


def test_off_for_a_process(config: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBPT_NO_CACHE", "1")
    assert "FEDBPT_NO_CACHE is set" in tune(config, "first") and not place.exists()
    assert "still off" in fedbpt("cache", "on").output
