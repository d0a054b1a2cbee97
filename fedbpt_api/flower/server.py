"""The coordinator's app: one line in what `fedbpt flower init` writes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedbpt_api.errors import FedbptError
from fedbpt_api.flower.coordinator import coordinate
from fedbpt_api.flower.record import read, written

_LIFE: Final = 24 * 3600.0  # seconds that Flower keeps a message; deadlines are the run's own
_LOG = logging.getLogger("flwr")


def server_app(task: Path) -> ServerApp:
    """The coordinator's app.

    Args:
        task: The run's public settings, a TOML file that travels with the app.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        folder = Path(str(context.run_config["folder"])).expanduser()
        try:
            asyncio.run(coordinate(FlowerGrid(grid), task, folder))
        except FedbptError as error:
            _LOG.error("%s", error)
            raise SystemExit(1) from None

    return app


class FlowerGrid:
    """Flower's grid as `flower.post` wants it."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> Sequence[int]:
        return list(self._grid.get_node_ids())

    def push(self, bundles: Mapping[int, bytes]) -> Mapping[str, int]:
        messages = [
            Message(written(data), dst_node_id=node, message_type="query", ttl=_LIFE)
            for node, data in bundles.items()
        ]
        sent = self._grid.push_messages(messages)
        return {name: node for name, node in zip(sent, bundles, strict=False) if name}

    def pull(self, messages: Iterable[str]) -> Mapping[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for reply in self._grid.pull_messages(list(messages)):
            found[reply.metadata.reply_to_message_id] = None if reply.has_error() else read(reply)
        return found
