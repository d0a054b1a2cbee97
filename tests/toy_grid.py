"""A grid in this process: nodes are hosts that can be frozen, killed and started again, on demand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from fedbpt_api.federation.host import Host
from fedbpt_api.flower.bundle import pack, unpack
from fedbpt_api.flower.init import write_app
from fedbpt_api.run.config import load_settings
from fedbpt_api.run.node import load_node, open_task
from fedbpt_api.task import Task
from toy_runs import write_config

_SILENT = 3  # looks that find nothing, before time jumps


@dataclass
class ToyNode:
    """A SuperNode and its party.

    Attributes:
        host: The party.
        frozen: Whether messages stay where they are.
        gone: Whether it is not connected.
        loses: Whether messages that are sent now will never be answered.
        seen: Bundles that reached it.
    """

    host: Host
    frozen: bool = False
    gone: bool = False
    loses: bool = False
    seen: list[bytes] = field(default_factory=list)


@dataclass
class ToyGrid:
    """`flower.post.Grid` over nodes; made inside the event loop that the hosts work in.

    Deadlines pass when there is nothing but silence to wait for, however slow the machine: after some looks
    that find no answer the loop's time jumps.

    Attributes:
        members: Nodes by number.
        before: Called with a node's number and a bundle, before that is sent.
        jump: Seconds by which time jumps; 0 lets it be.
    """

    members: dict[int, ToyNode]
    before: Callable[[int, bytes], None] = lambda node, data: None
    jump: float = 0.0
    sent: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    answered: dict[str, bytes | None] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._silent = 0
        self._jumped = 0.0
        time = self._loop.time
        self._loop.time = lambda: time() + self._jumped  # type: ignore[method-assign]

    def nodes(self) -> Sequence[int]:
        return [number for number, node in self.members.items() if not node.gone]

    def push(self, bundles: Mapping[int, bytes]) -> Mapping[str, int]:
        names: dict[str, int] = {}
        for node, data in bundles.items():
            self.before(node, data)
            if not self.members[node].gone:
                name = f"m{next(self._numbers)}"
                names[name], self.sent[name] = node, (node, b"" if self.members[node].loses else data)
        return names

    def pull(self, messages: Iterable[str]) -> Mapping[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for name in messages:
            number, data = self.sent[name]
            node = self.members[number]
            if node.gone:
                found[name] = None
            elif data and not node.frozen:
                work = asyncio.run_coroutine_threadsafe(self._answer(node, data), self._loop)
                found[name] = work.result()
        self._silent = 0 if found else self._silent + 1
        if self._silent == _SILENT:
            self._silent = 0
            self._jumped += self.jump
        return found

    async def _answer(self, node: ToyNode, data: bytes) -> bytes:
        node.seen.append(data)
        return pack([await node.host.answer(envelope) for envelope in unpack(data)])


@dataclass
class Federation:
    """Files of a federation as `fedbpt flower demo` writes them, and its parties.

    Attributes:
        folder: Where.
        hosts: All that were started, those that were killed too.
    """

    folder: Path
    hosts: list[Host] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def write(self, task: Task, changes: Mapping[str, object] | None = None) -> Path:
        """An app, and a node's settings for each client; the app's task file."""
        config = write_config(self.folder, task, changes)
        settings = load_settings(config)
        write_app(self.folder / "app", settings, self.run)
        for client in settings.clients:
            values = client.model_dump(mode="json", exclude_none=True)
            values |= {"backend": settings.backend.model_dump(mode="json"), "folder": "kept"}
            (self.folder / client.name / "node.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
        return self.folder / "app" / "app" / "task.toml"

    def host(self, name: str) -> Host:
        """The party of that name, as a new process has it."""
        node = load_node(self.folder / name / "node.toml")
        self.hosts.append(Host(node.name, lambda told: open_task(node, told)))
        return self.hosts[-1]

    def grid(self, task: Task, jump: float = 0.0) -> ToyGrid:
        """A grid of all of a task's clients."""
        hosts = [self.host(client.name) for client in task.clients]
        return ToyGrid({100 + number: ToyNode(host) for number, host in enumerate(hosts)}, jump=jump)
