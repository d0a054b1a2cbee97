"""``fedbpt probe`` as people and programs see it."""

from __future__ import annotations

import socket

import orjson
import pytest
from rich.console import Console

from fedbpt_api.cli import probe as command
from fedbpt_backends import pacing
from liar import Liar, always, same_value
from toy_runs import fedbpt


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_backoff", lambda state: 0.0)


def test_plain_lines_name_every_ability_the_way_and_the_configuration() -> None:
    server = Liar()
    with server.in_a_thread() as url:
        result = fedbpt("probe", url + "/v1", "--label", " good")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"vLLM 0.32.0 at {url}"
    assert any(line.startswith("yes  named-token logprobs") and "up to 128" in line for line in lines)
    assert any(line.startswith("no   soft prompts") for line in lines)
    assert any(line.startswith("yes  label ' good'") for line in lines)
    assert "[backend]" in lines
    assert 'kind = "vllm"' in lines
    assert any(line.startswith("to do better: --enable-prompt-embeds") for line in lines)
    assert lines[-1] == f"{len(server.heads)} requests sent"


def test_json_holds_all_of_it() -> None:
    with Liar().in_a_thread() as url:
        result = fedbpt("probe", url, "--json")
    data = orjson.loads(result.stdout)
    assert data["server"]["name"] == "vLLM"
    assert data["scoring"]["way"] == "logprob_token_ids"
    assert data["scoring"]["backend"] == {"kind": "vllm", "base_url": url, "model": "tiny"}
    assert {f["found"] for f in data["findings"]} == {True, False}
    assert data["cost"]["requests"] > 20


def test_a_terminal_of_100_columns_shows_a_table_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=100, force_terminal=True, highlight=False, color_system=None)
    monkeypatch.setattr(command, "_out", console)
    with Liar().in_a_thread() as url, console.capture() as captured:
        fedbpt("probe", url)
    shown = captured.get()
    assert max(map(len, shown.splitlines())) <= 100
    for words in ("named-token logprobs", "Label words", "In the configuration:", "requests sent"):
        assert words in shown


def test_a_server_without_log_probabilities_is_exit_code_1_with_the_reason() -> None:
    with Liar(same_value(0.0)).in_a_thread() as url:
        result = fedbpt("probe", url)
    assert result.exit_code == 1
    assert "no way of scoring" in result.stdout
    assert "only zeros or -9999" in result.stdout


def test_a_server_that_cannot_be_reached_or_wants_a_key_is_exit_code_1() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        result = fedbpt("probe", f"http://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert "is the server running" in result.stderr
    with Liar(always(401, {"error": "Unauthorized"})).in_a_thread() as url:
        result = fedbpt("probe", url)
    assert result.exit_code == 1
    assert "--api-key-env" in result.stderr


def test_wrong_usage_is_exit_code_2() -> None:
    assert fedbpt("probe").exit_code == 2
    assert fedbpt("probe", "nowhere").exit_code == 2
    assert fedbpt("probe", "http://127.0.0.1:1", "--api-key-env", "NO_SUCH_VARIABLE").exit_code == 2
