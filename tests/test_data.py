"""Reading and writing files, splits over clients, near-duplicates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.data import (
    Columns,
    bare_text,
    drop_near_duplicates,
    read_examples,
    split_dirichlet,
    split_iid,
    write_examples,
)
from fedbpt_api.errors import ConfigError
from fedbpt_api.task import Example

LABELLED = st.lists(st.sampled_from("abc"), min_size=1, max_size=40).map(
    lambda labels: [Example(f"text {i}", label) for i, label in enumerate(labels)]
)
SEEDS = st.integers(0, 2**32)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problems(path: Path, columns: Columns | None = None, labels: tuple[str, ...] | None = None) -> list[str]:
    """What is wrong with a file, with its folder left out of the sentences."""
    with pytest.raises(ConfigError) as caught:
        read_examples(path, columns, labels=labels)
    return [problem.replace(f"{path.parent}/", "") for problem in caught.value.problems]


def test_json_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "a.jsonl",
        '{"text": "a\u2028b", "label": "x"}\r\n\n{"text": " c ", "label": 1}\n{"text": "d"}',
    )
    assert read_examples(path) == (Example("a\u2028b", "x"), Example(" c ", "1"), Example("d"))


def test_csv_with_a_byte_order_mark_quotes_and_lines_in_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "a.CSV", '\ufeffid,text,label\r\n1,"a, ""b""\nc",x\r\n2,d,\r\n')
    assert read_examples(path) == (Example('a, "b"\nc', "x"), Example("d"))


def test_tsv_takes_quotes_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'sentence\tlabel\n"half a quote\t0\n')
    assert read_examples(path, Columns(text="sentence")) == (Example('"half a quote', "0"),)


@given(
    st.lists(st.builds(Example, st.text(min_size=1).filter(str.strip), st.none() | st.just("x")), min_size=1)
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, examples: list[Example]
) -> None:
    path = tmp_path_factory.mktemp("round") / "new" / "a.jsonl"
    write_examples(path, examples)
    assert read_examples(path) == tuple(examples)


def test_pairs_are_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_examples(path, [Example("a", "x", "b")])
    assert read_examples(path, Columns(text_b="text_b")) == (Example("a", "x", "b"),)


def test_every_unusable_json_line_is_named(tmp_path: Path) -> None:
    lines = ['{"text": "ok", "label": "good"}', "{text}", "[1]", '{"txt": "a", "label": "good"}']
    lines += ['{"text": 3, "label": "good"}', '{"text": " ", "label": "good"}', '{"text": "a", "label": [1]}']
    lines += ['{"text": "a"}', '{"text": "a", "label": "goood"}', '{"text": "\\ud800", "label": "good"}']
    found = problems(write(tmp_path, "a.jsonl", "\n".join(lines)), labels=("good", "bad"))
    assert [problem.split(" ")[0] for problem in found] == [f"a.jsonl:{line}:" for line in range(2, 11)]
    expected = [
        "expected one JSON object a line, got {text}",
        "expected a JSON object with a text, got [1]",
        "no field 'text' (did you mean 'txt'?)",
        "text: expected a text, got 3; write it in quotes",
        "text: the text is empty",
        "label: expected a label's name or number, got [1]",
        "no label in 'label'; expected one of ['good', 'bad']",
        "label: the label 'goood' has no words (did you mean 'good'?); expected one of ['good', 'bad']",
        "text: the text has half a character",
    ]
    for problem, words in zip(found, expected, strict=True):
        assert words in problem


def test_a_table_names_lines_where_rows_begin(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n"two\nlines",good\nonly one field\n"two\nmore",odd\n')
    assert problems(path, labels=("good",)) == [
        "a.csv:4: expected 2 fields as in the header, got 1; correct the row",
        "a.csv:5: label: the label 'odd' has no words; expected one of ['good'], "
        "so correct it or give it words in the section [labels]",
    ]


def test_missing_columns_are_told_once_with_the_header(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "txt,lable\na,b\nc,d\n")
    text, label = problems(path, labels=("b",))
    assert text.startswith("a.csv:1: no column 'text' (did you mean 'txt'?); the header has ['txt', 'lable']")
    assert label.startswith("a.csv:1: no column 'label' (did you mean 'lable'?)")
    assert "[columns]" in text


def test_an_open_quote_is_explained(tmp_path: Path) -> None:
    [problem] = problems(write(tmp_path, "a.csv", 'text\n"never closed\n'))
    assert problem.startswith("a.csv:2: not a valid row (unexpected end of data)")


def test_a_file_with_the_wrong_field_does_not_flood_the_reader(tmp_path: Path) -> None:
    found = problems(write(tmp_path, "a.jsonl", '{"body": "a"}\n' * 1000))
    assert len(found) == 21
    assert found[-1] == "a.jsonl: and 980 more problems like these"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "a", "a.txt: expected a file that ends in .jsonl, .csv, .tsv, got '.txt'"),
        ("a.jsonl", "", "a.jsonl: the file has no examples"),
        ("a.csv", "text,label\n", "a.csv: the file has no examples"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "a.jsonl:2: expected UTF-8 text"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    assert problems(write(tmp_path, name, content)) == [expected]


def test_a_missing_file(tmp_path: Path) -> None:
    assert problems(tmp_path / "gone.csv") == ["gone.csv: cannot be read (No such file or directory)"]


@given(LABELLED, st.data(), SEEDS)
def test_iid_deals_every_text_once_and_evenly(
    examples: list[Example], data: st.DataObject, seed: int
) -> None:
    clients = data.draw(st.integers(1, len(examples)))
    parts = split_iid(examples, clients, seed)
    assert Counter(e for part in parts for e in part) == Counter(examples)
    sizes = [len(part) for part in parts]
    assert len(parts) == clients and max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert parts == split_iid(examples, clients, seed)


@given(LABELLED, st.data(), st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 100.0]), SEEDS)
def test_dirichlet_deals_every_text_once_and_leaves_nobody_out(
    examples: list[Example], data: st.DataObject, alpha: float, seed: int
) -> None:
    clients = data.draw(st.integers(1, len(examples)))
    parts = split_dirichlet(examples, clients, alpha, seed)
    assert Counter(e for part in parts for e in part) == Counter(examples)
    assert len(parts) == clients and all(parts)
    assert parts == split_dirichlet(examples, clients, alpha, seed)


def test_alpha_decides_how_uneven_the_labels_are() -> None:
    examples = [Example(f"{label}{i}", label) for label in "abcd" for i in range(500)]

    def largest_share(alpha: float) -> float:
        """Mean over labels of the share that the client with most of it holds."""
        counts = [Counter(e.label for e in part) for part in split_dirichlet(examples, 4, alpha, 1)]
        return sum(max(count[label] for count in counts) for label in "abcd") / len(examples)

    assert largest_share(0.01) > 0.8
    assert largest_share(1000.0) < 0.3


def test_two_files_split_with_one_seed_give_a_client_one_mix() -> None:
    def mixes(size: int) -> list[tuple[int, ...]]:
        examples = [Example(f"{label}{i}", label) for label in "abc" for i in range(size)]
        parts = split_dirichlet(examples, 3, 0.5, 7)
        return [
            tuple(Counter(e.label for e in part)[label] * 1000 // size for label in "abc") for part in parts
        ]

    for large, small in zip(mixes(1000), mixes(500), strict=True):
        assert all(abs(a - b) <= 4 for a, b in zip(large, small, strict=True))


def test_seeds_give_different_splits() -> None:
    examples = [Example(str(i), "a") for i in range(100)]
    assert split_iid(examples, 4, 0) != split_iid(examples, 4, 1)
    assert split_dirichlet(examples, 4, 1.0, 0) != split_dirichlet(examples, 4, 1.0, 1)


@pytest.mark.parametrize(
    ("clients", "expected"), [(0, "expected at least 1, got 0"), (3, "2 texts cannot be split")]
)
def test_impossible_splits(clients: int, expected: str) -> None:
    two = [Example("a", "x"), Example("b", "x")]
    with pytest.raises(ConfigError, match=expected):
        split_iid(two, clients, 0)
    with pytest.raises(ConfigError, match=expected):
        split_dirichlet(two, clients, 1.0, 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_a_positive_number(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha: expected a number above 0"):
        split_dirichlet([Example("a", "x")], 1, alpha, 0)


@pytest.mark.parametrize(
    "again",
    [
        "The flight to Boston was late again, thank you!",
        "@united the flight to boston was LATE again... thank you",
        "RT @someone: The flight to Boston was late again, thank you! http://t.co/abc123",
        "The flight 4711 to Boston was late again, thank you! www.example.com/x pic.twitter.com/y",
        "The flight to Boston was late again, thank youu!",
    ],
)
def test_near_duplicates_are_dropped_and_the_first_kept(again: str) -> None:
    first = Example("The flight to Boston was late again, thank you!", "negative")
    other = Example("A lovely crew on the way to Denver this morning", "positive")
    assert drop_near_duplicates([first, Example(again, "neutral"), other]) == (first, other)


def test_texts_that_only_begin_alike_are_kept() -> None:
    examples = (Example("I like the new phone very much"), Example("I like the new phone but not its price"))
    assert drop_near_duplicates(examples) == examples


def test_texts_without_letters_are_compared_as_they_stand() -> None:
    examples = [Example(":)"), Example(":("), Example(":)"), Example("@a 1"), Example("ab"), Example("ab!")]
    assert [e.text for e in drop_near_duplicates(examples)] == [":)", ":(", "@a 1", "ab"]


def test_the_second_text_of_a_pair_counts() -> None:
    examples = (
        Example("the same premise", "x", "one hypothesis"),
        Example("the same premise", "x", "and another"),
    )
    assert drop_near_duplicates(examples) == examples


@given(st.lists(st.text(alphabet="ab ", max_size=14), max_size=25))
def test_near_duplicates_agree_with_comparing_all_pairs(texts: list[str]) -> None:
    def grams(text: str) -> set[str]:
        bare = bare_text(text) or text.strip()
        return {bare[i : i + 5] for i in range(len(bare) - 4)} if len(bare) >= 5 else {bare}

    kept: list[Example] = []
    for text in texts:
        own = grams(text)
        if all(5 * len(own & grams(k.text)) < 4 * len(own | grams(k.text)) for k in kept):
            kept.append(Example(text))
    assert drop_near_duplicates([Example(text) for text in texts]) == tuple(kept)


def test_bare_text_keeps_letters_of_all_scripts() -> None:
    assert bare_text("@x Schöne  Grüße, नमस्ते 99 https://a.b/c?d RT @y: END") == "schöne grüße नमस्ते end"
