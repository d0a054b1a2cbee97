"""A run's result for the terminal: rich tables that stay readable as plain text."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fedbpt_api.run import present
from fedbpt_api.run.result import ALL_CLIENTS, RunResult, TestReport

PLAIN_WIDTH = 100
_STYLES = {"better": "green", "worse": "red", "unclear": "yellow", "untested": "yellow"}


def result_view(result: RunResult) -> RenderableType:
    """Verdict, accuracies, paired tests, spend and the prompt, for `rich.console.Console.print`."""
    verdict = present.verdict(result.test)
    style = _STYLES[verdict.outcome]
    summary = Text.assemble((verdict.title, f"bold {style}"), "\n", verdict.sentence)
    summary.append(f"\n{present.stopped_sentence(result.stopped)}", style="dim")
    if result.test is not None and result.test.worse:
        names = ", ".join(result.test.worse)
        summary.append(
            f"\nLess accurate than the starting prompt with a label bias for: {names}.", style="red"
        )
    if caution := present.caution(result.test):
        summary.append(f"\n{caution}", style="yellow")
    if result.privacy:
        summary.append(f"\n{result.privacy}")
    parts: list[RenderableType] = [Panel(summary, border_style=style)]
    if result.test is not None:
        parts.append(_accuracy_table(result.test))
        if result.test.paired:
            parts.append(_paired_table(result.test))
    spend = _spend_table(result)
    if spend.row_count:
        parts.append(spend)
    parts.append(_prompt_panel(result))
    if result.folder is not None:
        parts.append(Text(f"Everything is in {result.folder}", overflow="fold"))
    return Group(*parts)


def plain_text(result: RunResult, width: int = PLAIN_WIDTH) -> str:
    """`result_view` without colours, for files, pipes and logs.

    Args:
        result: The run.
        width: Characters a line.
    """
    return as_plain(result_view(result), width)


def as_plain(view: RenderableType, width: int = PLAIN_WIDTH) -> str:
    """Anything that rich can print, as lines of text."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(view)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def _accuracy_table(test: TestReport) -> Table:
    table = _table(
        "Accuracy on the test texts",
        ("Client", "Method"),
        ("Texts", "Accuracy", "95% interval", "Macro-F1"),
    )
    clients = present.clients(test)
    shown = (ALL_CLIENTS, *clients) if len(clients) > 1 else (ALL_CLIENTS,)
    methods = present.methods(test)
    for client in shown:
        for i, method in enumerate(methods):
            row = present.pick(test.rows, method, client)
            style = "bold" if method == "tuned" else ""
            cells = (
                f"{row.n:,}" if i == 0 else "",
                present.percent(row.accuracy),
                present.interval(row.ci_low, row.ci_high),
                present.number(row.macro_f1, 3),
            )
            name = Text(present.client_name(client) if i == 0 else "", style="bold")
            table.add_row(
                name,
                Text(present.method_name(method), style=style),
                *(Text(cell, style=style) for cell in cells),
                end_section=i == len(methods) - 1,
            )
    return table


def _paired_table(test: TestReport) -> Table:
    table = _table(
        "Tuned prompt against the others, text by text",
        ("Against",),
        ("Points", "95% interval", "Only tuned right", "Only the other", "McNemar"),
    )
    for pair in test.paired:
        table.add_row(
            Text(present.method_name(pair.against)),
            Text(present.points(pair.difference), style=_STYLES[present.outcome(pair)]),
            f"{present.points(pair.ci_low)} to {present.points(pair.ci_high)}",
            f"{pair.wins:,}",
            f"{pair.losses:,}",
            present.p_text(pair.p_value),
        )
    return table


def _spend_table(result: RunResult) -> Table:
    """What each client spent; of the shared store and of money only where there is something to say."""
    rows = present.spend_rows(result)
    stored = any(row.stored for row in rows)
    money = any(row.money is not None for row in rows)
    names = ("Scored", "Duplicates", *["Stored"] * stored, "Test", "Tokens", "Cached", "Round", "Verbalizer")
    table = _table(
        "What was spent (bytes up/down: of a search round, and of all verbalizer fits together)",
        ("Client",),
        (*names, *["Money"] * money),
    )
    for row in rows:
        style = "bold" if row.client == ALL_CLIENTS else ""
        free = (row.duplicates, *[row.stored] * stored)
        counts = (row.scored, *free, row.test_scored, row.prompt_tokens, row.cached_tokens)
        table.add_row(
            Text(present.client_name(row.client)),
            *(present.number(count) for count in counts),
            f"{present.number(row.bytes_up)}/{present.number(row.bytes_down)}",
            f"{present.number(row.verbalizer_up)}/{present.number(row.verbalizer_down)}",
            *[present.amount(row.money, result.currency)] * money,
            style=style,
        )
    return table


def _prompt_panel(result: RunResult) -> Panel:
    text = present.show_whitespace(result.prompt).rstrip("\n") or "(empty: nothing is put before the text)"
    title = "The tuned prompt" + (" (the starting prompt)" if result.prompt == result.start else "")
    return Panel(Text(text, overflow="fold"), title=Text(title, style="bold"), title_align="left")
