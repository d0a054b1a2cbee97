"""Live progress of a run: a table that redraws in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedbpt_api.run.assess import START
from fedbpt_api.run.draws import MADE_UP
from fedbpt_api.run.ensemble import ORIGIN
from fedbpt_api.run.events import Assessed, Event, Noted, RoundDone, Started, Status, Testing, Warned
from fedbpt_api.run.present import show_whitespace
from fedbpt_api.run.result import RoundRecord


class Progress:
    """Shows events and, in a terminal, a status that is polled four times a second."""

    def __init__(self, console: Console, status: Callable[[], Status]) -> None:
        self._console = console
        self._status = status
        self._last: RoundRecord | None = None
        self._limit: int | None = None
        self._live = (
            Live(console=console, get_renderable=self._view, refresh_per_second=4, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        """Print what is worth a line of its own."""
        match event:
            case Started():
                self._limit = event.scored_limit
                texts = ", ".join(f"{name} {n}+{m}" for name, (n, m) in event.texts.items())
                self._print(f"model {event.model}; training+development texts: {texts}")
                if event.scored_limit:
                    self._print(f"budget: {event.scored_limit:,} scored examples")
            case Warned():
                self._print(f"warning: {event.message}")
            case Noted():
                self._print(event.message)
            case Assessed() if event.origin in (START, ORIGIN) or (event.origin == MADE_UP and event.chosen):
                found = f"dev loss {_number(event.dev_loss)}, accuracy {_number(event.dev_accuracy)}"
                if math.isinf(event.loss):
                    found = f"ruled out by a training loss of {_number(event.train_loss)}"
                mark = " <- best so far" if event.chosen else ""
                self._print(f"  {event.origin}: {found}{mark}  {_short(event.prompt)}")
            case RoundDone():
                self._last = event.record
                if event.record.round:
                    self._round(event.record)
            case Testing():
                self._print(f"search over; testing on {event.texts:,} untouched texts")
            case _:
                pass

    def _round(self, record: RoundRecord) -> None:
        status = self._status()
        left = "" if status.left is None else f", {status.left:,} left"
        eta = "" if status.seconds_left is None else f", about {_clock(status.seconds_left)} left"
        if status.notice:
            self._print(f"note: {status.notice}")
        paid = f", money {status.money}" if status.money else ""
        self._print(
            f"round {record.round}: best dev loss {_number(record.best_dev_loss)}, accuracy "
            f"{_number(record.best_dev_accuracy)} | {status.scored:,} scored{left}{paid}, "
            f"{status.rate:.1f}/s{eta} | {record.distinct:.0%} distinct"
        )
        for client in record.clients:
            note = f"  ({client.note})" if client.note else ""
            dev = f"  dev loss {_number(client.dev_loss)}  dev accuracy {_number(client.dev_accuracy)}"
            if math.isnan(client.dev_loss):  # the merged prompt did not beat the centre on training texts
                dev = ""
            self._print(
                f"    {client.client:<14} loss {_number(client.loss)}{dev}  scored {client.scored}{note}"
            )

    def _print(self, line: str) -> None:
        self._console.print(Text(line, overflow="fold"), soft_wrap=True)

    def _view(self) -> RenderableType:
        status = self._status()
        table = Table.grid(padding=(0, 2))
        if status.phase == "test":
            done, total = status.tested
            table.add_row("test", ProgressBar(max(total, 1), done, width=40), f"{done:,} of {total:,} pairs")
            return table
        total = self._limit or 0
        bar: RenderableType = ProgressBar(max(total, 1), status.scored, width=40) if total else ""
        left = "" if status.left is None else f"{status.left:,} left"
        eta = "" if status.seconds_left is None else f"about {_clock(status.seconds_left)} left"
        table.add_row(
            f"{status.phase}, round {status.round + 1}", bar, left, f"{status.rate:.1f} examples/s", eta
        )
        if status.money:
            table.add_row("", f"money {status.money}")
        clients = Table.grid(padding=(0, 2))
        for name, scored in status.clients.items():
            record = next((c for c in self._last.clients if c.client == name), None) if self._last else None
            shown = f"dev accuracy {_number(record.dev_accuracy)}" if record else ""
            clients.add_row(f"  {name}", f"{scored:,} scored", shown)
        if status.notice:
            return Group(table, clients, Text(f"  {status.notice}", style="yellow", overflow="fold"))
        return Group(table, clients)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _short(prompt: str, width: int = 70) -> str:
    text = show_whitespace(prompt).replace("\n", " ") or "(no prompt)"
    return text if len(text) <= width else text[: width - 1] + "…"
