"""What the HTML report and the terminal say alike: the verdict, wording of numbers, derived rows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from fedbpt_api.run.result import ALL_CLIENTS, Paired, RoundRecord, Row, RunResult, TestReport

UNKNOWN = "unknown"
MISSING = "\u2013"
SIGNIFICANT = 0.05
"""Largest p-value that counts as a difference; the 95 % interval must then exclude 0 as well."""

_METHODS = {
    "majority": "Majority label",
    "start": "Starting prompt",
    "start+bias": "Starting prompt + bias",
    "start+weighted": "Starting prompt + weighted",
    "start+weighted+dev": "The same, dev texts too",
    "tuned+bias": "Tuned prompt + bias",
    "tuned": "Tuned prompt",
}
_RIVALS = {
    "start+bias": "the starting prompt with a label bias",
    "start+weighted": "the starting prompt with a weighted verbalizer",
    "start+weighted+dev": "the same fitted on development texts too",
}
_STOPPED = {
    "budget": "The search ended when its budget was spent.",
    "settled": "The search ended before its budget: more prompts were expected to gain next to nothing.",
    "rounds": "The search did all that was asked of it before its budget was spent.",
    "cap": "The search ended at its cap on rounds, before its budget was spent.",
    "cancelled": "The search was cancelled; this is the best prompt up to then.",
}
_WHITESPACE = re.compile(r"\n|\t|^ +| +$| {2,}| +(?=\n)|(?<=\n) +|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the test says about the tuned prompt.

    Attributes:
        outcome: "better", "worse", "unclear" or "untested"; "unclear" where the comparisons differ.
        title: A few words.
        sentence: One sentence with the numbers.
    """

    outcome: str
    title: str
    sentence: str


@dataclass(frozen=True, slots=True)
class SpendRow:
    """What one client spent; `ALL_CLIENTS` for the sum. None where it was not recorded."""

    client: str
    scored: int | float | None
    duplicates: int | float | None
    stored: int | float | None
    prompt_tokens: int | float | None
    cached_tokens: int | float | None
    test_scored: int | float | None
    bytes_up: float | None
    bytes_down: float | None
    verbalizer_up: int | float | None
    verbalizer_down: int | float | None
    money: int | float | None = None


def method_name(method: str) -> str:
    """A method's name for people."""
    return _METHODS.get(method, method)


def client_name(client: str) -> str:
    """A client's name for people; `ALL_CLIENTS` becomes words."""
    return "All clients" if client == ALL_CLIENTS else client


def stopped_sentence(stopped: str) -> str:
    """Why the search ended, as a sentence."""
    return _STOPPED.get(stopped, f"The search ended: {stopped}.")


def percent(share: float) -> str:
    """0.6123 as 61.2%."""
    return MISSING if math.isnan(share) else f"{share:.1%}"


def number(value: float | None, digits: int = 0) -> str:
    """1234.5 with thousands separators; a dash for None and NaN."""
    return MISSING if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def amount(money: float | Decimal | None, currency: str) -> str:
    """Money as "0.0123 USD": four decimals, or more where it is less than that; "unknown" without a price."""
    if money is None or not currency:
        return UNKNOWN
    return f"{_decimals(float(money))} {currency}"


def money_of(money: Decimal, limit: Decimal | None, currency: str) -> str:
    """What was paid, of what may be: "0.0123 of 0.50 USD"; nothing where there is no price."""
    if not currency:
        return ""
    return amount(money, currency) if limit is None else f"{_decimals(float(money))} of {limit:f} {currency}"


def _decimals(money: float) -> str:
    return f"{money:,.4f}" if money == 0 or money >= 0.001 else f"{money:.2g}"


def points(difference: float) -> str:
    """A signed difference of two shares in percentage points, without the unit."""
    shown = f"{100 * difference:+.1f}"
    return "0.0" if float(shown) == 0 else shown.replace("-", "\u2212")


def p_text(p_value: float) -> str:
    """A p-value as "p = 0.031" or "p < 0.001"."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def interval(low: float, high: float) -> str:
    """A 95 % interval of an accuracy: "58.1 to 64.3%"."""
    return f"{100 * low:.1f} to {100 * high:.1f}%"


def outcome(paired: Paired) -> str:
    """ "better", "worse" or "unclear", from the interval and the p-value together."""
    if paired.p_value < SIGNIFICANT and paired.ci_low > 0:
        return "better"
    if paired.p_value < SIGNIFICANT and paired.ci_high < 0:
        return "worse"
    return "unclear"


def verdict(test: TestReport | None) -> Verdict:
    """Whether the tuned prompt is better than what it is tested against, with the numbers."""
    if test is None or not test.paired:
        return Verdict(
            "untested",
            "Not tested yet",
            "There is no final test of this run, hence no evidence yet that the tuned prompt is better.",
        )
    outcomes = {pair.against: outcome(pair) for pair in test.paired}
    found = set(outcomes.values())
    n = pick(test.rows, "tuned", ALL_CLIENTS).n
    sentence = f"On {n:,} test texts the tuned prompt is {_join([_clause(pair) for pair in test.paired])}."
    if found == {"better"}:
        return Verdict("better", "The tuned prompt is better", sentence)
    if found == {"worse"}:
        return Verdict("worse", "The tuned prompt is worse", sentence)
    if found == {"unclear"}:
        return Verdict("unclear", "No significant difference", sentence)
    title = "; ".join(
        f"{word} {_join([_in_title(name) for name, o in outcomes.items() if o == kind])}"
        for kind, word in (
            ("better", "better than"),
            ("unclear", "no significant difference from"),
            ("worse", "worse than"),
        )
        if kind in found
    )
    return Verdict("worse" if "worse" in found else "unclear", title[0].upper() + title[1:], sentence)


def _in_title(method: str) -> str:
    name = method_name(method).lower()
    return name if name.startswith("the ") else f"the {name}"


def caution(test: TestReport | None) -> str:
    """A sentence where always answering the majority label does as well as the tuned prompt, else ""."""
    if test is None or not {"majority", "tuned"} <= set(methods(test)):
        return ""
    majority, tuned = (pick(test.rows, method, ALL_CLIENTS).accuracy for method in ("majority", "tuned"))
    if majority < tuned:
        return ""
    figures = f"{percent(majority)} against {percent(tuned)}"
    return f"Always answering the majority label is right at least as often as the tuned prompt: {figures}."


def _clause(pair: Paired) -> str:
    rival = _RIVALS.get(pair.against, pair.against)
    low, high = points(pair.ci_low), points(pair.ci_high)
    evidence = f"{points(pair.difference)} points, 95% interval {low} to {high}, {p_text(pair.p_value)}"
    relation = {"better": "better than", "worse": "worse than", "unclear": "not significantly different from"}
    return f"{relation[outcome(pair)]} {rival} ({evidence})"


def _join(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def pick(rows: Sequence[Row], method: str, client: str) -> Row:
    """The row of one method and client.

    Raises:
        KeyError: There is none.
    """
    for row in rows:
        if row.method == method and row.client == client:
            return row
    raise KeyError((method, client))


def methods(test: TestReport) -> tuple[str, ...]:
    """The methods of a test in their order."""
    return tuple(dict.fromkeys(row.method for row in test.rows))


def clients(test: TestReport) -> tuple[str, ...]:
    """The clients of a test in their order, without `ALL_CLIENTS`."""
    return tuple(dict.fromkeys(row.client for row in test.rows if row.client != ALL_CLIENTS))


def scored_so_far(rounds: Sequence[RoundRecord]) -> tuple[int, ...]:
    """Examples scored up to the end of each round."""
    total, totals = 0, []
    for record in rounds:
        total += record.scored
        totals.append(total)
    return tuple(totals)


def spend_rows(result: RunResult) -> tuple[SpendRow, ...]:
    """One row a client and, where there are several, their sum last.

    Bytes of the search are means of its rounds; those of the verbalizers' fits and the word list are totals.
    """
    names = dict.fromkeys([*result.spent, *(c.client for r in result.rounds for c in r.clients)])
    searched = [record for record in result.rounds if record.round > 0]
    rows = []
    for name in names:
        records = [c for r in searched for c in r.clients if c.client == name]
        up, down = [c.bytes_up for c in records], [c.bytes_down for c in records]
        rows.append(_spend_row(name, [result.spent.get(name, {})], up, down))
    if len(rows) > 1:
        up, down = [r.bytes_up for r in searched], [r.bytes_down for r in searched]
        rows.append(_spend_row(ALL_CLIENTS, list(result.spent.values()), up, down))
    return tuple(rows)


def _spend_row(
    client: str, spent: Sequence[Mapping[str, int | float]], up: Sequence[int], down: Sequence[int]
) -> SpendRow:
    def total(key: str) -> int | float | None:
        known = [counts[key] for counts in spent if key in counts]
        return sum(known) if known else None

    def mean(sent: Sequence[int]) -> float | None:
        known = [count for count in sent if count > 0]
        return sum(known) / len(known) if known else None

    return SpendRow(
        client=client,
        scored=total("scored"),
        duplicates=total("duplicates"),
        stored=total("stored"),
        prompt_tokens=total("prompt_tokens"),
        cached_tokens=total("cached_tokens"),
        test_scored=total("test_scored"),
        bytes_up=mean(up),
        bytes_down=mean(down),
        verbalizer_up=total("verbalizer_bytes_up"),
        verbalizer_down=total("verbalizer_bytes_down"),
        money=_paid(spent),
    )


def _paid(spent: Sequence[Mapping[str, int | float]]) -> float | None:
    """Money for search and test; None unless all prices are known."""
    if not spent or any("money" not in counts for counts in spent):
        return None
    return sum(counts["money"] + counts.get("test_money", 0.0) for counts in spent)


def searched_money(result: RunResult) -> float | None:
    """Money for the search, all clients; None unless all prices are known."""
    paid = [counts.get("money") for counts in result.spent.values()]
    known = [money for money in paid if money is not None]
    return sum(known) if known and len(known) == len(paid) else None


def whitespace_pieces(text: str) -> list[tuple[str, str]]:
    """Splits a text into ("text", ...) and the whitespace that a reader would miss.

    The kinds: "newline", "tab", "space" (one blank at the end or beginning of a line or in a run of
    blanks), "control" (any other control character) and "text". The pieces concatenate to the text.
    """
    pieces: list[tuple[str, str]] = []
    place = 0
    for match in _WHITESPACE.finditer(text):
        if match.start() > place:
            pieces.append(("text", text[place : match.start()]))
        found = match.group()
        kind = {"\n": "newline", "\t": "tab", " ": "space"}.get(found[0], "control")
        pieces.extend((kind, character) for character in found)
        place = match.end()
    if place < len(text):
        pieces.append(("text", text[place:]))
    return pieces


def show_whitespace(text: str) -> str:
    """The text with line breaks, tabs, outer blanks and control characters made visible."""
    marks = {"newline": "\u21b5\n", "tab": "\u21e5", "space": "\u00b7"}
    return "".join(
        piece if kind == "text" else marks.get(kind, f"\\x{ord(piece[0]):02x}")
        for kind, piece in whitespace_pieces(text)
    )
