"""Labelled texts in and out of files, split over clients, and cleared of near-duplicates.

Files are JSON lines (`.jsonl`), CSV with a header (`.csv`) or tab-separated with a header and without quoting
(`.tsv`). Every random draw is keyed by the seed and by what it is for, so a split depends on nothing else.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedbpt_api.errors import ConfigError
from fedbpt_api.task import Example, did_you_mean

SUFFIXES = (".jsonl", ".csv", ".tsv")
SHOWN_PROBLEMS = 20  # a file with the wrong columns would otherwise print one line for each row
GRAM = 5
LINK_OR_NAME = re.compile(r"https?:\S*|\b(?:www\.|t\.co/|pic\.twitter\.com/)\S+|(?:\brt\s+)?@\w+")

Split = tuple[tuple[Example, ...], ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which field (JSON) or column (CSV, TSV) holds what; `text_b` only for pairs of texts."""

    text: str = "text"
    label: str = "label"
    text_b: str | None = None


def read_examples(
    path: Path, columns: Columns | None = None, *, labels: Collection[str] | None = None
) -> tuple[Example, ...]:
    """Read the examples of one file, in its order.

    Args:
        path: A `.jsonl`, `.csv` or `.tsv` file in UTF-8.
        columns: Where text and label are found; `text`, `label` and no second text unless given.
        labels: If given, every row must have one of these labels; otherwise a row may have any label or none.

    Raises:
        ConfigError: With every unusable row as `file:line`, or if the file cannot be read.
    """
    columns = columns or Columns()
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, got {path.suffix!r}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror})", "check the path and its rights"
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: expected UTF-8 text", "save the file as UTF-8") from error
    rows = (
        _json_rows(text)
        if path.suffix.lower() == ".jsonl"
        else _table_rows(text, path.suffix.lower(), columns, labels is not None)
    )
    examples: list[Example] = []
    problems: list[str] = []
    for line, row in rows:
        found = [row] if isinstance(row, str) else list(_row_problems(row, columns, labels))
        problems.extend(f"{path}:{line}: {problem}" for problem in found)
        if not found and not isinstance(row, str):
            examples.append(_example(row, columns))
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        rest = [f"{path}: and {more} more problems like these"] if more > 0 else []
        raise ConfigError([*problems[:SHOWN_PROBLEMS], *rest])
    if not examples:
        raise ConfigError(f"{path}: the file has no examples", "give it at least one row")
    return tuple(examples)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as JSON lines that `read_examples` reads back; creates the folder.

    Pairs are read back with `Columns(text_b="text_b")`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for example in examples:
        row = {"text": example.text, "text_b": example.text_b, "label": example.label}
        lines.append(json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def split_iid(examples: Sequence[Example], clients: int, seed: int) -> Split:
    """Deal shuffled examples to clients; sizes differ by one at most.

    Raises:
        ConfigError: If there are fewer examples than clients.
    """
    _check_split(examples, clients)
    order = _generator(seed, "iid").permutation(len(examples))
    return _take(examples, [[int(i) for i in order[client::clients]] for client in range(clients)])


def split_dirichlet(examples: Sequence[Example], clients: int, alpha: float, seed: int) -> Split:
    """Share out each label by proportions drawn from a Dirichlet distribution.

    For every label the shares of the K clients are one draw from Dirichlet(alpha, ..., alpha): small alphas
    give clients with few labels each, large ones tend to an even split. The draw depends on the seed and the
    label alone, so training and development files split with one seed give a client the same mix in both. A
    client left without a text gets one from the largest client, of the label that client has most of.

    Raises:
        ConfigError: If alpha is not a positive number or there are fewer examples than clients.
    """
    _check_split(examples, clients)
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ConfigError(
            f"alpha: expected a number above 0, got {alpha}", "1.0 is usual; less is more uneven"
        )
    by_label: dict[str | None, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        by_label[example.label].append(index)
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label, indices in by_label.items():
        shares = _generator(seed, f"shares of {label!r}").dirichlet(np.full(clients, alpha))
        order = [indices[i] for i in _generator(seed, f"order of {label!r}").permutation(len(indices))]
        ends = np.rint(np.cumsum(shares) * len(order)).astype(int).tolist()
        ends[-1] = len(order)
        for part, start, end in zip(parts, [0, *ends], ends, strict=False):
            part.extend(order[start:end])
    for part in parts:
        if not part:
            donor = max(parts, key=len)
            most = Counter(examples[i].label for i in donor).most_common(1)[0][0]
            given = next(i for i in reversed(donor) if examples[i].label == most)
            donor.remove(given)
            part.append(given)
    return _take(examples, parts)


def drop_near_duplicates(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Keep the first of every group of texts that say nearly the same.

    Texts are compared without links, @names, case, punctuation and digits. Two are near-duplicates when they
    share at least 80 % of all character 5-grams that either has. An example is dropped if it is a
    near-duplicate of one that was kept before it; labels play no part.
    """
    grams = [_grams(example) for example in examples]
    frequency = Counter(gram for found in grams for gram in found)
    rank = {
        gram: place for place, gram in enumerate(sorted(frequency, key=lambda gram: (frequency[gram], gram)))
    }
    kept: list[frozenset[int]] = []
    index: dict[int, list[int]] = defaultdict(list)
    result = []
    for example, found in zip(examples, grams, strict=True):
        ranks = sorted(rank[gram] for gram in found)
        # Two sets that share 80 % share one of their rarest grams: all but 80 % of the set, plus one.
        rare = ranks[: len(ranks) - math.ceil(4 * len(ranks) / 5) + 1]
        candidates = {place for one in rare for place in index[one]}
        own = frozenset(ranks)
        if any(_near(own, kept[place]) for place in candidates):
            continue
        for one in rare:
            index[one].append(len(kept))
        kept.append(own)
        result.append(example)
    return tuple(result)


def bare_text(text: str) -> str:
    """The letters of a text in lower case, without links, @names and anything else; blanks collapsed."""
    bare = LINK_OR_NAME.sub(" ", text.lower())
    return " ".join("".join(c if unicodedata.category(c)[0] in "LM" else " " for c in bare).split())


def _near(a: frozenset[int], b: frozenset[int]) -> bool:
    """Whether the Jaccard similarity is at least 4/5, in whole numbers."""
    if 5 * min(len(a), len(b)) < 4 * max(len(a), len(b)):
        return False
    shared = len(a & b)
    return 5 * shared >= 4 * (len(a) + len(b) - shared)


def _grams(example: Example) -> frozenset[str]:
    """Character 5-grams of what is compared; a text without any letter is compared as it stands."""
    whole = example.text if example.text_b is None else f"{example.text}\n{example.text_b}"
    bare = bare_text(whole) or whole.strip()
    return frozenset(bare[i : i + GRAM] for i in range(max(1, len(bare) - GRAM + 1)))


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """A generator for one purpose of one seed, independent of all others."""
    digest = hashlib.sha256(f"{seed}\n{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _check_split(examples: Sequence[Example], clients: int) -> None:
    if clients < 1:
        raise ConfigError(f"clients: expected at least 1, got {clients}")
    if len(examples) < clients:
        raise ConfigError(
            f"{len(examples)} texts cannot be split over {clients} clients, every client needs at least one",
            "use fewer clients or more texts",
        )


def _take(examples: Sequence[Example], parts: Iterable[Iterable[int]]) -> Split:
    """The examples of each part in the order of the data."""
    return tuple(tuple(examples[i] for i in sorted(part)) for part in parts)


def _json_rows(text: str) -> Iterator[tuple[int, Mapping[str, object] | str]]:
    """Line number and object of each line, or what is wrong with the line."""
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            yield (
                line,
                f"expected one JSON object a line, got {_short(content)} ({error.msg}); correct the line",
            )
            continue
        if isinstance(row, dict):
            yield line, row
        else:
            yield line, f"expected a JSON object with a text, got {_short(content)}; correct the line"


def _table_rows(
    text: str, suffix: str, columns: Columns, labelled: bool
) -> Iterator[tuple[int, Mapping[str, object] | str]]:
    """Line number and fields of each row, or what is wrong with the row. An empty label is no label."""
    source = io.StringIO(text, newline="")
    tabs = suffix == ".tsv"
    reader = (
        csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE)
        if tabs
        else csv.reader(source, strict=True)
    )
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            here, line = line, reader.line_num + 1
            if not header:
                header = fields
                missing = [name for name in _needed(columns, labelled) if name not in header]
                for name in missing:
                    problem = (
                        f"no column {name!r}{did_you_mean(name, header)}; the header has {_short(header)}"
                    )
                    yield here, f"{problem}, so correct it or name the column in the section [columns]"
                if missing:
                    return
            elif fields and len(fields) != len(header):
                yield (
                    here,
                    f"expected {len(header)} fields as in the header, got {len(fields)}; correct the row",
                )
            elif fields:
                row: dict[str, object] = dict(zip(header, fields, strict=True))
                yield here, {k: v for k, v in row.items() if not (k == columns.label and v == "")}
    except csv.Error as error:
        yield reader.line_num, f"not a valid row ({error}); correct the quotes or use JSON lines"


def _needed(columns: Columns, labelled: bool) -> list[str]:
    """The columns that a table must have."""
    wanted = (columns.text, columns.text_b, columns.label if labelled else None)
    return [name for name in wanted if name is not None]


def _row_problems(
    row: Mapping[str, object], columns: Columns, labels: Collection[str] | None
) -> Iterator[str]:
    """What makes one row unusable."""
    for column in _needed(columns, labelled=False):
        value = row.get(column)
        if column not in row:
            yield (
                f"no field {column!r}{did_you_mean(column, row)}; expected the text there, "
                "so correct it or name the field in the section [columns]"
            )
        elif not isinstance(value, str):
            yield f"{column}: expected a text, got {_short(value)}; write it in quotes"
        elif not value.strip():
            yield f"{column}: the text is empty; write one or remove the row"
        elif any("\ud800" <= c <= "\udfff" for c in value):
            yield f"{column}: the text has half a character (a lone surrogate); remove it"
    label = row.get(columns.label)
    if label is not None and (isinstance(label, bool) or not isinstance(label, str | int)):
        yield f"{columns.label}: expected a label's name or number, got {_short(label)}; correct it"
    elif labels is not None and label is None:
        near = "" if columns.label in row else did_you_mean(columns.label, row)
        yield f"no label in {columns.label!r}{near}; expected one of {_short(list(labels))}, so give it one"
    elif labels is not None and str(label) not in labels:
        yield (
            f"{columns.label}: the label {str(label)!r} has no words{did_you_mean(str(label), labels)}; "
            f"expected one of {_short(list(labels))}, so correct it or give it words in the section [labels]"
        )


def _example(row: Mapping[str, object], columns: Columns) -> Example:
    label = row.get(columns.label)
    return Example(
        str(row[columns.text]),
        None if label is None else str(label),
        None if columns.text_b is None else str(row[columns.text_b]),
    )


def _short(value: object) -> str:
    """A value as a user may read it in one line."""
    shown = value if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
