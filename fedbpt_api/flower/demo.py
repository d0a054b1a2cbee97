"""A configuration's federation as separate processes on this machine, over TLS, with keys of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tomli_w

from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.flower.init import write_app
from fedbpt_api.flower.loopback import Loopback
from fedbpt_api.run.enclosed import outside_problems
from fedbpt_api.run.folder import read_result
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.schema import ClientSettings, Settings


def run_demo(settings: Settings, folder: Path, tell: Callable[[str], None]) -> RunResult:
    """Tune with each client of the settings as an organisation of its own: party, SuperNode, key.

    Args:
        settings: Of a run in one process.
        folder: Where everything goes; new.
        tell: Called with lines for people.

    Raises:
        ConfigError: There are no clients of their own, the folder is in use, or what is asked for cannot be
            asked from outside.
        FedbptError: A process failed.
    """
    if not settings.clients:
        raise ConfigError("data: each organisation has its own files here", "name [[clients]] instead")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", "name a new folder")
    names = tuple(client.name for client in settings.clients)
    if problems := outside_problems(settings.model_copy(update={"parties": names})):
        raise ConfigError(problems)
    run = folder / "run"
    write_app(folder / "app", settings, run)
    with Loopback(folder / "link") as net:
        tell(f"starting a SuperLink with TLS and {len(settings.clients)} SuperNodes with keys")
        net.link()
        for client in settings.clients:
            key = net.register(client.name)
            config = folder / client.name / "node.toml"
            config.parent.mkdir(parents=True)
            config.write_text(tomli_w.dumps(_node(client, settings)), encoding="utf-8")
            net.party(client.name, config, key)
        tell(f"logs: {net.folder / 'logs'}")
        net.run(folder / "app", tell)
    if not (run / "result.json").exists():
        raise FedbptError("the run has failed", f"see {folder / 'link' / 'logs'}")
    return read_result(run)


def _node(client: ClientSettings, settings: Settings) -> dict[str, object]:
    """A party's own settings."""
    own = client.model_dump(mode="json", exclude_none=True)
    shared = settings.model_dump(mode="json", include={"columns", "backend", "price"}, exclude_none=True)
    columns = {key: value for key, value in shared["columns"].items() if value is not None}
    return {**shared, "columns": columns, **own, "folder": "kept"}
