"""An estimate for people: a table for a terminal, the same as plain lines, and set beside what was spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedbpt_api.run import present
from fedbpt_api.run.foreseen import Estimate, Figures
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tables import PLAIN_WIDTH, as_plain

_ROUNDS = 3  # rounds that are shown one by one


@dataclass(frozen=True, slots=True)
class Compared:
    """A quantity as it was foreseen and as it came.

    Attributes:
        name: What it is.
        estimated: The likely figure.
        low: The lower end of its range.
        high: The upper end.
        spent: What it came to.
        error: How far the likely figure was off, as a share of what it came to.
    """

    name: str
    estimated: str
    low: str
    high: str
    spent: str
    error: str


def estimate_view(made: Estimate) -> RenderableType:
    """Totals with their range, clients, rounds and the test, for `rich.console.Console.print`."""
    parts: list[RenderableType] = [_totals(made), _by_client(made), _by_round(made)]
    parts += [Text(line) for line in _remarks(made)]
    return Group(*parts)


def plain_estimate(made: Estimate, width: int = PLAIN_WIDTH) -> str:
    """`estimate_view` without colours, for files, pipes and logs."""
    return as_plain(estimate_view(made), width)


def compared(made: Estimate, result: RunResult) -> tuple[Compared, ...]:
    """The search's estimate beside what the search took; what was not recorded is left out."""
    rows = present.spend_rows(result)
    if not rows:
        return ()
    spent, rounds, low, high = rows[-1], result.rounds, made.low, made.high
    found = []
    for name, key, came in (
        ("Scored examples", "scored", spent.scored),
        ("Duplicates, free", "duplicates", spent.duplicates),
        ("Prompt tokens", "prompt_tokens", spent.prompt_tokens),
        ("Cached tokens", "cached_tokens", spent.cached_tokens),
        ("Seconds", "seconds", sum(record.seconds for record in rounds)),
        ("Money", "money", present.searched_money(result)),
    ):
        likely = getattr(made.total, key)
        unknown = likely is None or came is None
        if unknown and key != "money":
            continue
        ends = [getattr(end, key) for end in (low, made.total, high)]

        def shown(value: float | None, key: str = key) -> str:
            return present.amount(value, made.currency) if key == "money" else present.number(value)

        off = present.MISSING if unknown or not came else f"{100 * (likely / came - 1):+.1f}%"
        least, most = (None, None) if None in ends else (min(ends), max(ends))
        found.append(Compared(name, shown(likely), shown(least), shown(most), shown(came), off))
    return tuple(found)


def _table(title: str, left: str, right: Sequence[str]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(left, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _totals(made: Estimate) -> Table:
    table = _table("The search, all clients", "", ("Likely", "From", "To", "At most"))
    most = made.most[-1] if made.most else None
    for name, key in (
        ("Scored examples", "scored"),
        ("Pairs that come again, free", "duplicates"),
        ("Prompt tokens", "prompt_tokens"),
        ("of them from a cache", "cached_tokens"),
        ("Requests", "requests"),
        ("Bytes up", "bytes_up"),
        ("Bytes down", "bytes_down"),
    ):
        ends = [getattr(figures, key) for figures in (made.low, made.total, made.high)]
        bounded = key in ("scored", "prompt_tokens", "requests") and most is not None
        bound = present.number(getattr(most, key)) if bounded else present.MISSING
        table.add_row(name, *(present.number(n) for n in (ends[1], min(ends), max(ends))), bound)
    paid = [figures.money for figures in (made.total, made.low, made.high)]
    bound = present.amount(most.money if most else None, made.currency)
    table.add_row("Money", *(present.amount(money, made.currency) for money in paid), bound)
    table.add_row("Time", *(_time(f.seconds) for f in (made.total, made.low, made.high)), present.MISSING)
    return table


def _by_client(made: Estimate) -> Table:
    table = _table(
        "By client", "Client", ("Scored", "Again", "Tokens", "Cached", "Requests", "Up", "Down", "Money")
    )
    for row in (*made.clients, made.total):
        table.add_row(*_cells(present.client_name(row.client), row, made.currency))
    for row in made.test[-1:]:
        table.add_row(*_cells("The test, apart", row, made.currency))
    return table


def _by_round(made: Estimate) -> Table:
    table = _table(
        "By round", "Round", ("Scored", "Again", "Tokens", "Cached", "Requests", "Up", "Down", "Money")
    )
    for number, rows in enumerate(made.rounds[: _ROUNDS + 1]):
        name = "before the search" if number == 0 else str(number)
        table.add_row(*_cells(name, rows[-1], made.currency))
    return table


def _cells(name: str, row: Figures, currency: str) -> list[str]:
    counts = (
        row.scored, row.duplicates, row.prompt_tokens, row.cached_tokens, row.requests, row.bytes_up,
        row.bytes_down,
    )  # fmt: skip
    return [name, *(present.number(count) for count in counts), present.amount(row.money, currency)]


def _remarks(made: Estimate) -> list[str]:
    searched = max(len(made.rounds) - 1, 0)
    found = [
        f"About {searched} search rounds." if searched else "The budget ends before the first search round."
    ]
    if made.test and made.test[-1].seconds is not None:
        found.append(f"The test takes about {_time(made.test[-1].seconds)} more.")
    if made.probes:
        found.append(
            f"{made.probes} requests ({made.probe_tokens:,} tokens) were spent to measure the speed."
        )
    else:
        found.append(
            "Nothing was spent. Time is unknown: fedbpt estimate asks a few times to measure the speed."
        )
    if not made.currency:
        found.append("Money is unknown: give the price of a million tokens in [price].")
    found.append(
        "From and to: with the shortest and the longest starting prompt as the centre of the search."
    )
    return found


def _time(seconds: float | None) -> str:
    if seconds is None:
        return present.UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d} min"
