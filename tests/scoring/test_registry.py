"""Backends by name: found, opened with their options, and refused with the nearest name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.scoring import registry
from fedbpt_api.scoring.backend import Backend
from toy import ToyBackend, Toys

SEEN: list[dict[str, object]] = []


async def open_anything(**options: object) -> Backend:
    """Entry point of a backend that takes whatever it is given."""
    SEEN.append(options)
    return ToyBackend()


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    found = EntryPoints([EntryPoint(name, value, registry.GROUP) for name, value in points.items()])
    monkeypatch.setattr(registry, "entry_points", lambda *, group: found.select(group=group))


async def test_a_backend_is_opened_by_its_name_with_its_options(toys: Toys) -> None:
    assert {"toy", "llamacpp"} <= set(registry.available())
    assert await registry.open_backend("toy", name="b") is toys["b"]
    assert await registry.open_backend("toy") is toys["toy"]


async def test_an_unknown_name_is_refused_with_the_nearest_and_all(toys: Toys) -> None:
    with pytest.raises(ConfigError) as caught:
        await registry.open_backend("llamacp")
    assert "'llamacp'" in caught.value.message
    assert "llamacpp, openai, sglang, toy, vllm" in caught.value.message
    assert "did you mean 'llamacpp'?" in caught.value.hint


async def test_every_unknown_option_is_named_before_anything_is_opened(toys: Toys) -> None:
    with pytest.raises(ConfigError) as caught:
        await registry.open_backend("toy", nam="b", port=80)
    nearest, all_ = caught.value.problems
    assert nearest.startswith("backend.nam:")
    assert "did you mean 'name'?" in nearest
    assert all_.startswith("backend.port:")
    assert "it has: name" in all_
    assert not toys.opened


async def test_a_backend_that_takes_any_option_gets_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, any=f"{__name__}:open_anything")
    monkeypatch.setattr(EntryPoint, "load", lambda self: open_anything)
    SEEN.clear()
    await registry.open_backend("any", url="http://x", depth=3)
    assert SEEN == [{"url": "http://x", "depth": 3}]


async def test_no_backend_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert registry.available() == {}
    with pytest.raises(ConfigError, match="installed: none"):
        await registry.open_backend("llamacpp")


@pytest.mark.parametrize("value", ["no_such_module_anywhere:open_backend", "toy:no_such_function"])
async def test_a_backend_whose_code_is_missing_is_an_error_of_the_backend(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    install(monkeypatch, broken=value)
    with pytest.raises(BackendError, match="'broken'"):
        await registry.open_backend("broken")
