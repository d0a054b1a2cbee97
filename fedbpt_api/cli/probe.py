"""``fedbpt probe``: what a server can do, as a table, plain lines or JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fedbpt_backends.survey import Survey

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)
_MARKS = {True: ("yes", "green"), False: ("no", "dim"), None: ("?", "yellow")}


def probe(
    url: Annotated[str, typer.Argument(help="The server's address, such as http://127.0.0.1:8000.")],
    model: Annotated[str | None, typer.Option(help="Served model; the first one where not given.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the key.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help='Label word to look at, usually with a blank before it: " yes".'),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Find out which server answers at URL and what it really does, by a few dozen cheap requests.

    Says how a run would score with it, what to write into the configuration, and what to change in the
    server's command line to do better. Exit code 1 where there is no way of scoring.
    """
    from fedbpt_backends.probe import CHOICES
    from fedbpt_backends.survey import as_data, survey

    with _err.status("asking") as status:
        done = asyncio.run(
            survey(
                url,
                model,
                api_key_env=api_key_env,
                labels=label or CHOICES,
                timeout=timeout,
                progress=lambda topic: status.update(Text(f"asking: {topic}")),
            )
        )
    if as_json:
        typer.echo(orjson.dumps(as_data(done), option=orjson.OPT_INDENT_2).decode())
    elif _out.is_terminal:
        _show(done, _out)
    else:
        for line in _lines(done):
            typer.echo(line)
    if not done.advice.way:
        raise typer.Exit(1)


def _show(done: Survey, console: Console) -> None:
    """A table for a terminal."""
    console.print(Text(_title(done), style="bold"), Text(_about(done), style="dim"), sep="\n")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("Ability", "Found", "How it was found"):
        table.add_column(name, overflow="fold", no_wrap=name != "How it was found")
    for topic, findings in done.topics.items():
        table.add_row(Text(topic, style="bold"))
        for i, finding in enumerate(findings):
            word, style = _MARKS[finding.found]
            ability = Text(f"  {finding.name}", style="" if finding.found else style)
            how = Text.assemble(finding.value, "; " if finding.value and finding.how else "")
            how.append(finding.how, style="dim")
            table.add_row(ability, Text(word, style=style), how, end_section=i == len(findings) - 1)
    console.print(table)
    found = done.advice
    if found.way:
        console.print(Text.assemble("Scoring: ", (found.way, "bold green"), f" ({found.why})"))
        console.print(Text("\nIn the configuration:"))
        console.print(Padding(Text("\n".join(_config(done)), style="cyan"), (0, 0, 0, 2)))
    else:
        console.print(Text.assemble(("No way of scoring: ", "bold red"), found.why))
    if found.steps:
        console.print(Text("\nTo do better:"))
        for step in found.steps:
            console.print(Padding(Text(f"- {step}"), (0, 0, 0, 2)))
    console.print(Text(f"\n{done.requests} requests sent", style="dim"))


def _lines(done: Survey) -> Iterator[str]:
    """Plain lines for pipes and files."""
    yield _title(done)
    yield _about(done)
    width = max(len(name) for name in done.findings)
    for findings in done.topics.values():
        for f in findings:
            more = "; ".join(part for part in (f.value, f.how) if part)
            yield f"{_MARKS[f.found][0]:<3}  {f.name:<{width}}  {more}"
    found = done.advice
    yield f"scoring: {found.way} ({found.why})" if found.way else f"no way of scoring: {found.why}"
    yield from _config(done)
    for step in found.steps:
        yield f"to do better: {step}"
    yield f"{done.requests} requests sent"


def _title(done: Survey) -> str:
    seen = done.identity
    return f"{seen.server} {seen.version}".strip() + f" at {done.url}"


def _about(done: Survey) -> str:
    seen = done.identity
    others = f", one of {len(seen.models)} models" if len(seen.models) > 1 else ""
    context = f", {seen.context} tokens of context" if seen.context else ""
    return f"recognised by: {seen.how}; model {seen.model}{others}{context}"


def _config(done: Survey) -> Iterator[str]:
    if done.backend:
        yield "[backend]"
        yield from (f"{key} = {orjson.dumps(value).decode()}" for key, value in done.backend.items())
