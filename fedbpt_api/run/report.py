"""`report.html`: a run as one self-contained page that can be sent to a colleague.

It loads nothing from anywhere, runs no scripts and holds no text of any client. Its look lives in
``templates/report.html.j2`` and ``templates/report.css``; what it says comes from here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from fedbpt_api.run import present
from fedbpt_api.run.chart import Series, line_chart
from fedbpt_api.run.config_problems import SECRET
from fedbpt_api.run.estimate_view import compared
from fedbpt_api.run.foreseen import Estimate
from fedbpt_api.run.result import ALL_CLIENTS, ClientRecord, RoundRecord, Row, RunResult, TestReport

_COLOURS = 8
_SLOT = re.compile(r"(\{(?:prompt|text|text_a|text_b)\})")
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s\"]+@")
_HIDDEN = "(hidden)"
_CONFUSIONS = ("start+bias", "tuned")


@dataclass(frozen=True, slots=True)
class ReportInput:
    """What the report shows besides the result itself.

    Attributes:
        model: What was tuned for, as people call it.
        template: Source of the template, with its {slots}.
        label_words: Label to its words, each with its leading blank.
        verbalizer: Kind of the verbalizer that goes with the tuned prompt.
        settings: The resolved settings; nested mappings are flattened, secrets hidden.
        versions: Name to version of what took part.
        estimate: What was foreseen; None where nobody asked.
    """

    model: str
    template: str
    label_words: Mapping[str, Sequence[str]]
    verbalizer: str
    settings: Mapping[str, object]
    versions: Mapping[str, object]
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Legend:
    """An entry of the learning curves' legend."""

    name: str
    css: str


def write_report(result: RunResult, shown: ReportInput, path: Path) -> None:
    """Writes the report of a run.

    Args:
        result: The run.
        shown: What else to show.
        path: The file; replaced where it exists.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_text(render_report(result, shown), encoding="utf-8", newline="\n")


def render_report(result: RunResult, shown: ReportInput) -> str:
    """The report as an HTML document; the same input gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedbpt_api.run", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=present.percent,
        number=present.number,
        amount=present.amount,
        points=present.points,
        method=present.method_name,
        client=present.client_name,
        p=present.p_text,
        outcome=present.outcome,
        visible=visible,
    )
    charts, legend = _curves(result.rounds)
    return environment.get_template("report.html.j2").render(
        result=result,
        shown=shown,
        verdict=present.verdict(result.test),
        caution=present.caution(result.test),
        stopped=present.stopped_sentence(result.stopped),
        test=_test_view(result.test),
        everyone=ALL_CLIENTS,
        missing=present.MISSING,
        charts=charts,
        legend=legend,
        spend=present.spend_rows(result),
        foreseen=compared(shown.estimate, result) if shown.estimate is not None else (),
        rounds=list(zip(result.rounds, present.scored_so_far(result.rounds), strict=True)),
        searched=sum(record.round > 0 for record in result.rounds),
        remarks=[(r.round, c.client, c.note, c.answered) for r in result.rounds for c in _remarkable(r)],
        template=_template_pieces(shown.template),
        settings=flatten(shown.settings),
        versions=flatten(shown.versions),
    )


def visible(text: str) -> Markup:
    """The text as HTML in which whitespace is marked, and which still copies as the text itself."""
    parts = []
    for kind, piece in present.whitespace_pieces(text):
        if kind == "text":
            parts.append(Markup("{}").format(piece))
        elif kind == "control":
            parts.append(Markup('<span class="ws control">\\x{:02x}</span>').format(ord(piece)))
        else:
            parts.append(Markup('<span class="ws {}">{}</span>').format(kind, piece))
    return Markup("").join(parts)


def flatten(settings: Mapping[str, object], under: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value as JSON); values that look like secrets are hidden."""
    rows = []
    for key, value in settings.items():
        name = f"{under}{key}"
        if SECRET.search(str(key)) and value is not None:
            rows.append((name, _HIDDEN))
        elif isinstance(value, Mapping) and value:
            rows.extend(flatten(value, f"{name}."))
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            for i, item in enumerate(value):
                rows.extend(flatten(item, f"{name}.{i}."))
        else:
            text = value if isinstance(value, str) and not under else json.dumps(value, ensure_ascii=False)
            rows.append((name, _USER_IN_URL.sub(f"{_HIDDEN}@", text)))
    return rows


def _template_pieces(source: str) -> list[tuple[bool, str]]:
    """The template cut at its slots: (is it a slot, its text); the prompt's place is made explicit."""
    whole = source if "{prompt}" in source else "{prompt}" + source
    return [(bool(_SLOT.fullmatch(piece)), piece) for piece in _SLOT.split(whole) if piece]


def _remarkable(record: RoundRecord) -> list[ClientRecord]:
    return [client for client in record.clients if client.note or not client.answered]


def _curves(rounds: Sequence[RoundRecord]) -> tuple[list[tuple[str, Markup]], list[Legend]]:
    """The learning curves (title, SVG) and the legend that they share."""
    at = [float(scored) for scored in present.scored_so_far(rounds)]
    names = list(dict.fromkeys(client.client for record in rounds for client in record.clients))
    names = names if len(names) > 1 else []
    css = {name: f"c{i}" if len(names) <= _COLOURS else "many" for i, name in enumerate(names)}
    losses, accuracies = [], []
    for name in names:
        records = [{c.client: c for c in record.clients}.get(name) for record in rounds]
        pairs = [(x, record) for x, record in zip(at, records, strict=True) if record is not None]
        losses.append(Series(name, css[name], tuple((x, c.dev_loss) for x, c in pairs)))
        accuracies.append(Series(name, css[name], tuple((x, c.dev_accuracy) for x, c in pairs)))
    best = "Best so far, all clients"
    losses.append(Series(best, "best", tuple(zip(at, (r.best_dev_loss for r in rounds), strict=True))))
    accuracies.append(
        Series(best, "best", tuple(zip(at, (r.best_dev_accuracy for r in rounds), strict=True)))
    )
    x_label = "Scored examples, all clients"
    charts = [
        ("Development loss", line_chart(losses, "Development loss", x_label, lambda y: f"{y:.3g}")),
        (
            "Development accuracy",
            line_chart(accuracies, "Development accuracy", x_label, lambda y: f"{100 * y:.3g}%"),
        ),
    ]
    legend = [Legend(best, "best")]
    if len(names) > _COLOURS:
        legend.append(Legend(f"Merged prompt on each of {len(names)} clients", "many"))
    else:
        legend.extend(Legend(name, css[name]) for name in names)
    return [chart for chart in charts if chart[1]], legend


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix to be drawn: (count, share of its row) per cell."""

    method: str
    lines: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]


@dataclass(frozen=True, slots=True)
class TestView:
    """A test report in the shape of the page's tables."""

    report: TestReport
    methods: tuple[str, ...]
    clients: tuple[str, ...]
    overall: tuple[Row, ...]
    table: tuple[tuple[str, int, tuple[Row, ...]], ...]
    confusions: tuple[tuple[str, tuple[Confusion, ...]], ...]
    tuned: Row | None


def _test_view(report: TestReport | None) -> TestView | None:
    if report is None:
        return None
    methods, clients = present.methods(report), present.clients(report)

    def rows(client: str) -> tuple[Row, ...]:
        return tuple(present.pick(report.rows, method, client) for method in methods)

    def confusions(client: str) -> tuple[Confusion, ...]:
        return tuple(_confusion(row, report.labels) for row in rows(client) if row.method in _CONFUSIONS)

    everyone = (ALL_CLIENTS, *clients) if len(clients) > 1 else (ALL_CLIENTS,)
    overall = rows(ALL_CLIENTS)
    return TestView(
        report=report,
        methods=methods,
        clients=clients,
        overall=overall,
        table=tuple((name, rows(name)[0].n, rows(name)) for name in clients),
        confusions=tuple((name, confusions(name)) for name in everyone),
        tuned=next((row for row in overall if row.method == "tuned"), None),
    )


def _confusion(row: Row, labels: Sequence[str]) -> Confusion:
    lines = []
    for label, counts in zip(labels, row.confusion, strict=True):
        total = sum(counts) or 1
        lines.append((label, tuple((count, count / total) for count in counts)))
    return Confusion(row.method, tuple(lines))
