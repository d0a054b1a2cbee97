"""The HTML report: sound, self-contained, complete and free of secrets."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.run.report import ReportInput, flatten, render_report, visible, write_report
from fedbpt_api.run.result import RunResult, TestReport

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects tags and texts, and fails where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@pytest.fixture(scope="module")
def page(result: RunResult, shown: ReportInput) -> Page:
    return Page(render_report(result, shown))


def test_it_loads_nothing_and_runs_nothing(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    loading = {"src", "href", "srcset", "action", "xlink:href"}
    assert not [attrs for _, attrs in page.tags if loading & attrs.keys()]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]


def test_its_style_loads_nothing(result: RunResult, shown: ReportInput) -> None:
    html = render_report(result, shown)
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|@font-face", style)
    assert "default-src 'none'" in html


def test_it_shows_the_evidence(page: Page, report: TestReport) -> None:
    for row in report.rows:
        assert f"{row.accuracy:.1%}" in page.text
        assert f"{100 * row.ci_low:.1f} to {100 * row.ci_high:.1f}%" in page.text
        assert f"{row.macro_f1:.3f}" in page.text
    assert report.worse == ("cars",)
    assert page.text.count("made worse") == 1
    assert [tag for tag, _ in page.tags].count("svg") == 2


def test_prompts_are_text_not_markup(page: Page, result: RunResult) -> None:
    assert result.prompt in page.text


def test_secrets_stay_out(page: Page) -> None:
    assert "sk-123" not in page.text
    assert "me:pw" not in page.text
    assert "(hidden)@host:8080/v1" in page.text


def test_the_same_run_gives_the_same_file(result: RunResult, shown: ReportInput, tmp_path: Path) -> None:
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    write_report(result, shown, first)
    write_report(result, shown, second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"<!doctype html>")


def test_a_run_cut_short_still_has_a_page(result: RunResult, shown: ReportInput) -> None:
    cut = replace(result, test=None, rounds=(), spent={}, stopped="cancelled", prompt="", start="")
    page = Page(render_report(cut, shown))
    assert "Not tested yet" in page.text
    assert "nothing is put before the text" in page.text
    assert "svg" not in {tag for tag, _ in page.tags}


def test_many_clients_share_one_colour(result: RunResult, shown: ReportInput) -> None:
    record = result.rounds[0]
    many = tuple(replace(record.clients[0], client=f"client{i}") for i in range(30))
    crowd = replace(result, rounds=(replace(record, clients=many),))
    page = Page(render_report(crowd, shown))
    assert "Merged prompt on each of 30 clients" in page.text


def test_flatten_gives_dotted_keys_and_hides_secrets() -> None:
    settings = {
        "seed": 0,
        "backend": {"kind": "x", "auth_token": "t", "api_key": None, "max_tokens": 5},
        "clients": [{"name": "a"}, {"name": "b"}],
        "labels": {"no": [" no", " never"]},
        "empty": {},
    }
    assert flatten(settings) == [
        ("seed", "0"),
        ("backend.kind", '"x"'),
        ("backend.auth_token", "(hidden)"),
        ("backend.api_key", "null"),
        ("backend.max_tokens", "5"),
        ("clients.0.name", '"a"'),
        ("clients.1.name", '"b"'),
        ("labels.no", '[" no", " never"]'),
        ("empty", "{}"),
    ]


@given(
    st.text(
        alphabet=st.characters(exclude_categories=("Cc", "Cs")) | st.sampled_from("\n\t <>&"), max_size=40
    )
)
def test_visible_text_copies_as_the_text(text: str) -> None:
    assert Page(str(visible(text))).text == text
