"""One federation on Flower, struck as planned, until it ends or its time is over. Part of `chaos.py`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from chaos_net import Net, nothing_left, send, write_stub
from chaos_plan import Strike
from chaos_row import Row, judge, noisy_task, write_federation


@dataclass
class Striker:
    """Strikes a run, puts it right again, and starts again what has ended by itself, as a service would.

    Args:
        net: The run's processes.
        app: The coordinator's.
        tell: Called with lines for people.
        due: What is still to be done, and when.
        down: Who stays down for now.
    """

    net: Net
    app: Path
    tell: Callable[[str], None]
    due: list[tuple[float, Callable[[float], None]]] = field(default_factory=list)
    down: set[str] = field(default_factory=set)

    def plan(self, strikes: Sequence[Strike]) -> None:
        for strike in strikes:
            self.due.append((strike.at, partial(self._strike, strike)))

    def step(self, now: float) -> None:
        """Do what is due."""
        for one in [one for one in self.due if one[0] <= now]:
            self.due.remove(one)
            one[1](now)
        for name in self.net.configs:
            if name not in self.down and self.net.processes[name].poll() is not None:
                self.tell(f"{now:.0f} s: {name} has ended, and is started again")
                self.net.begin(name)
        if "" not in self.down and not self.net.coordinating:
            self.tell(f"{now:.0f} s: the coordinator has ended, and is started again")
            self.net.coordinate(self.app)

    def _strike(self, strike: Strike, now: float) -> None:
        net, name = self.net, strike.party
        self.tell(str(strike))
        match strike.kind:
            case "kill coordinator":
                send(net.server_apps(), signal.SIGKILL)
                self._later(now, strike, self._coordinator_again, down="")
            case "kill machine" | "kill party" | "kill supernode":
                own, beside = [net.processes[name].pid], net.supernode(name)
                whom = {"kill machine": own + beside, "kill party": own, "kill supernode": beside}
                send(whom[strike.kind], signal.SIGKILL)
                if strike.kind != "kill supernode":  # its party starts another
                    self._later(now, strike, partial(self._party_again, name), down=name)
            case "freeze":
                frozen = net.tree(name)
                send(frozen, signal.SIGSTOP)
                self._later(now, strike, partial(self._thaw, name, frozen))
            case "cut":
                net.proxies[name].cut()
                self._later(now, strike, net.proxies[name].mend)
            case "stall":
                net.proxies[name].stall()
                self._later(now, strike, net.proxies[name].mend)

    def _later(self, now: float, strike: Strike, act: Callable[[], None], down: str | None = None) -> None:
        if down is not None:
            self.down.add(down)
        self.due.append((now + strike.lasts, lambda _: act()))

    def _party_again(self, name: str) -> None:
        self.down.discard(name)
        self.net.begin(name)

    def _coordinator_again(self) -> None:
        self.down.discard("")
        self.net.end_run()
        self.net.coordinate(self.app)

    def _thaw(self, name: str, frozen: list[int]) -> None:
        send([pid for pid in frozen if pid in self.net.tree(name)], signal.SIGCONT)


def play(folder: Path, strikes: Sequence[Strike], limit: float, tell: Callable[[str], None]) -> Row:
    """One run, struck or not, until it ends or its time is over."""
    row = Row(folder.name, [str(strike) for strike in strikes], bound=limit)
    task = noisy_task()
    configs = write_federation(folder, task)
    net = Net(folder / "link", {"PYTHONPATH": write_stub(folder / "stub")})
    with nothing_left(net.mark), net:
        net.link()
        for name, config in configs.items():
            net.join(name, config)
        begun = time.monotonic()
        net.coordinate(folder / "app")
        striker = Striker(net, folder / "app", tell)
        striker.plan(strikes)
        while not (folder / "run" / "result.json").exists():
            if time.monotonic() - begun > limit:
                row.problems.append("it did not end in time")
                break
            striker.step(time.monotonic() - begun)
            time.sleep(0.1)
        row.seconds, row.starts = time.monotonic() - begun, net.runs
    judge(row, folder, task)
    return row
