"""Anybody's package can add a backend: one is installed here, found by its name and asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedbpt_api.errors import ConfigError
from fedbpt_api.scoring import registry
from fedbpt_api.scoring.backend import Prompt

PACKAGE = Path(__file__).parent / "third_party"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as pip leaves it. The build needs no index: hatchling is at hand."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target), str(PACKAGE)]
    subprocess.run(command, check=True, capture_output=True)
    return target


async def test_an_installed_package_s_backend_is_found_by_name_and_answers(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "echo" not in registry.available()
    monkeypatch.syspath_prepend(site)

    assert registry.available()["echo"] == "fedbpt_echo:open_backend"
    assert "llamacpp" in registry.available()
    backend = await registry.open_backend("echo", strength=0.75)
    try:
        a, b, c = await backend.tokenize("abc")
        scores = await backend.score([Prompt((c, a)), Prompt((a, b))], (a, b))
    finally:
        await backend.aclose()

    np.testing.assert_allclose(np.exp(scores.logprobs), [[0.75, 0.25], [0.25, 0.75]])
    assert (scores.usage.scored, scores.usage.prompt_tokens) == (2, 4)


async def test_a_backend_that_is_not_installed_is_refused_with_what_is(site: Path) -> None:
    with pytest.raises(ConfigError, match=r"'echo'.*llamacpp"):
        await registry.open_backend("echo")


async def test_an_option_that_a_third_party_s_backend_lacks_is_named(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    with pytest.raises(ConfigError, match=r"backend\.strenght.*did you mean 'strength'"):
        await registry.open_backend("echo", strenght=0.5)
