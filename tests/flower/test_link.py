"""What a coordinator's process needs is looked at before anything is started; real ones: test_loopback."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.flower.certificates import certify
from fedbpt_api.flower.link import run_link, write_connection


async def test_a_certificate_and_a_key_that_are_none_are_refused_first(tmp_path: Path) -> None:
    certify(tmp_path / "one")
    certify(tmp_path / "other")
    own, others = tmp_path / "one" / "server.pem", tmp_path / "other" / "server.key"
    for certificate, key in ((own, others), (own, tmp_path / "none.key"), (tmp_path / "none.pem", others)):
        with pytest.raises(ConfigError, match="are no certificate and its key"):
            await run_link(tmp_path / "link", "127.0.0.1", 0, certificate, key, lambda line: None)
    assert not (tmp_path / "link").exists()


async def test_a_port_that_is_taken_is_found_first(tmp_path: Path) -> None:
    certify(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            FedbptError, match=f"nothing can listen on 127.0.0.1:{port}: Address already in use"
        ):
            await run_link(
                tmp_path / "link", "127.0.0.1", port, tmp_path / "server.pem", tmp_path / "server.key", print
            )
    assert not (tmp_path / "link").exists()


def test_a_key_made_here_is_for_its_user_alone(tmp_path: Path) -> None:
    certify(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert (tmp_path / "server.key").stat().st_mode & 0o077 == 0
    certify(tmp_path)  # what is there stays: others trust it
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_flower_s_commands_find_the_superlink(tmp_path: Path) -> None:

    write_connection(tmp_path / "flwr", "127.0.0.1:5", tmp_path / "ca.pem")
    found = tomllib.loads((tmp_path / "flwr" / "config.toml").read_text(encoding="utf-8"))["superlink"]
    default = found[found["default"]]
    assert default == {"address": "127.0.0.1:5", "root-certificates": str(tmp_path / "ca.pem")}
