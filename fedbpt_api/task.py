"""The task: labelled texts of several clients, a template around each, and words that stand for labels.

Everything here is in memory and immutable. Reading files and splitting one file over clients is the business
of `fedbpt_api.data`; the configuration file that names them is read by `fedbpt_api.run.config`.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedbpt_api.errors import ConfigError

Place = Literal["before", "after"]
Part = Literal["train", "dev", "test"]
Marked = tuple[str, bool]

PROMPT = "prompt"
TEXT_SLOTS = ("text", "text_a", "text_b")
SLOT = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, slots=True)
class Example:
    """One text (or a pair of texts) and its label, where it has one."""

    text: str
    label: str | None = None
    text_b: str | None = None


@dataclass(frozen=True, slots=True)
class ClientData:
    """The private texts of one party. Test texts are read once, after the search."""

    name: str
    train: tuple[Example, ...]
    dev: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()

    def parts(self) -> Iterator[tuple[Part, tuple[Example, ...]]]:
        """The three sets of texts with their names."""
        yield "train", self.train
        yield "dev", self.dev
        yield "test", self.test


@dataclass(frozen=True, slots=True)
class LabelWords:
    """The words whose probabilities stand for the labels.

    Attributes:
        labels: The C labels, in the order of all figures by label.
        words: For each label its words as the model writes them, leading blank included (" positive").
    """

    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]

    @classmethod
    def from_mapping(cls, words: Mapping[str, str | Sequence[str]]) -> LabelWords:
        """Label words from {label: word or words}; the order of the labels is kept."""
        groups = ((group,) if isinstance(group, str) else tuple(group) for group in words.values())
        return cls(tuple(words), tuple(groups))

    def problems(self) -> list[str]:
        """What makes these label words unusable, one sentence each; empty when they are sound."""
        found = []
        if len(self.labels) < 2:
            found.append(
                f"labels: expected at least two labels, got {len(self.labels)}; name every label of the data"
            )
        for label in sorted({label for label in self.labels if self.labels.count(label) > 1}):
            found.append(f"labels: {label!r} is named twice; name each label once")
        if len(self.words) != len(self.labels):
            return [
                *found,
                f"labels: {len(self.labels)} labels but words for {len(self.words)}; "
                "give every label a group of words",
            ]
        owners: dict[str, list[str]] = defaultdict(list)
        for label, group in zip(self.labels, self.words, strict=True):
            if not group:
                found.append(
                    f'labels.{label}: expected at least one word, got none; add one, such as " {label}"'
                )
            if any(not word.strip() for word in group):
                found.append(
                    f'labels.{label}: a word is empty; write the word, such as " {label}", or remove it'
                )
            for word in dict.fromkeys(group):
                owners[word].append(label)
        for word, names in owners.items():
            if len(names) > 1:
                found.append(
                    f"labels: the word {word!r} stands for {_join(names)}; "
                    "expected every word under one label, so take another word for one of them"
                )
        return found


@dataclass(frozen=True, slots=True)
class Template:
    """What stands around a text, with the places of the text and of the prompt.

    Attributes:
        source: Text with `{text}`, or with `{text_a}` and `{text_b}` for pairs, and optionally `{prompt}`.
            Without `{prompt}` the prompt stands first. Other braces are ordinary characters.
    """

    source: str

    @classmethod
    def parse(cls, source: str, place: Place = "before") -> Template:
        """Check `source` and put `{prompt}` where `place` says, unless it is there already.

        Args:
            source: The template as the user wrote it.
            place: "before" puts the prompt first, "after" right after the last text.

        Raises:
            ConfigError: With every unknown, missing or repeated slot.
        """
        problems = template_problems(source)
        if problems:
            raise ConfigError(problems)
        slots = list(SLOT.finditer(source))
        if any(slot[1] == PROMPT for slot in slots):
            return cls(source)
        at = 0 if place == "before" else slots[-1].end()
        return cls(f"{source[:at]}{{{PROMPT}}}{source[at:]}")

    @property
    def is_pair(self) -> bool:
        """Whether an example needs two texts."""
        return any(slot[1] == "text_b" for slot in SLOT.finditer(self.source))

    def pieces(self, example: Example) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The pieces before and after the prompt's place, each to be tokenised on its own.

        Blanks at the end of a piece move to the beginning of the next, because models tokenise words with
        their leading blank: "Tweet: " and "hello" become "Tweet:" and " hello". No blank crosses the prompt's
        place or gets lost: joined, the pieces are the filled template. Empty pieces are dropped.

        Raises:
            ConfigError: If the template asks for a pair and the example has one text.
        """
        before, after = self.marked_pieces(example)
        return tuple(piece for piece, _ in before), tuple(piece for piece, _ in after)

    def marked_pieces(self, example: Example) -> tuple[tuple[Marked, ...], tuple[Marked, ...]]:
        """As `pieces`, each piece with whether it is a text of the example (else the template's own)."""
        before, after = self._split(example)
        return _shift_blanks(before), _shift_blanks(after)

    def fill(self, example: Example, prompt: str) -> str:
        """The whole input as text, with `prompt` in its place."""
        before, after = self._split(example)
        return "".join([*(piece for piece, _ in before), prompt, *(piece for piece, _ in after)])

    def _split(self, example: Example) -> tuple[list[Marked], list[Marked]]:
        """Literals and texts in order, before and after the prompt's place."""
        if self.is_pair and example.text_b is None:
            raise ConfigError(
                f"the template {self.source!r} asks for a pair of texts, but an example has one",
                "name the column of the second text with columns.text_b, or use {text} in the template",
            )
        fillings = {"text": example.text, "text_a": example.text, "text_b": example.text_b or ""}
        groups: list[list[Marked]] = [[]]
        # A split by a pattern with one group alternates between literals and the names of slots.
        for index, part in enumerate(SLOT.split(self.source)):
            if index % 2 == 0:
                groups[-1].append((part, False))
            elif part == PROMPT:
                groups.append([])
            else:
                groups[-1].append((fillings[part], True))
        if len(groups) == 1:
            return [], groups[0]
        before, after = groups
        return before, after


@dataclass(frozen=True, slots=True)
class Task:
    """All that is to be learnt: the clients' texts, the template and the label words."""

    template: Template
    label_words: LabelWords
    clients: tuple[ClientData, ...]


def template_problems(source: str) -> list[str]:
    """What is wrong with a template, one sentence each; empty when it is sound."""
    names = [slot[1] for slot in SLOT.finditer(source)]
    known = (*TEXT_SLOTS, PROMPT)
    found = []
    for name in dict.fromkeys(names):
        if name not in known:
            found.append(
                f"template: unknown slot {{{name}}}{did_you_mean(name, known)}; expected {_slots(known)}"
            )
        elif names.count(name) > 1:
            found.append(f"template: {{{name}}} stands there {names.count(name)} times; expected it once")
    texts = {name for name in names if name in TEXT_SLOTS}
    if (texts or not found) and texts not in ({"text"}, {"text_a", "text_b"}):
        there = _slots(sorted(texts)) if texts else "none"
        found.append(f"template: expected {{text}}, or both {{text_a}} and {{text_b}} for pairs, got {there}")
    return found


def validate(task: Task, *, apart: bool = False) -> list[str]:
    """Check a whole task before anything is scored.

    Args:
        task: It.
        apart: Whether its texts are elsewhere, behind a network.

    Returns:
        Warnings: things that work but are rarely meant, one sentence each.

    Raises:
        ConfigError: With every problem: label words, clients and examples that cannot be used.
    """
    problems = [*template_problems(task.template.source), *task.label_words.problems()]
    names = [client.name for client in task.clients]
    if not names and not apart:
        problems.append("clients: expected at least one client, got none; add one with training texts")
    for name in sorted({name for name in names if names.count(name) > 1}):
        count = names.count(name)
        problems.append(f"clients: {count} clients are called {name!r}; give every client a name of its own")
    for client in task.clients:
        if not client.train:
            problems.append(f"client {client.name!r}: train is empty; expected at least one labelled text")
        for part, examples in client.parts():
            problems.extend(_example_problems(task, f"client {client.name!r}: {part}", part, examples))
    if problems:
        raise ConfigError(problems, "put this right and start again; nothing has been scored yet")
    return [*_word_warnings(task), *_data_warnings(task)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remark that names the known word nearest to `word`, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _example_problems(task: Task, where: str, part: Part, examples: Sequence[Example]) -> Iterator[str]:
    """Problems of one set of texts; the same problem of several examples is told once, with their number."""
    labels = task.label_words.labels
    pair = task.template.is_pair
    rows: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        if not example.text.strip():
            rows["the text is empty; write one or remove the example"].append(row)
        if pair and example.text_b is None:
            rows["text_b is missing, but the template asks for a pair; give it or use {text}"].append(row)
        if not pair and example.text_b is not None:
            rows["the example is a pair, but the template has one text; use {text_a} and {text_b}"].append(
                row
            )
        if example.label is None:
            rows["no label; every text of a task needs one"].append(row)
        elif example.label not in labels:
            rows[
                f"the label {example.label!r} has no words{did_you_mean(example.label, labels)}; "
                f"expected one of {_join(labels)}, so correct it or give it words"
            ].append(row)
    for problem, found in rows.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield f"{where}[{found[0]}]{more}: {problem}"


def _word_warnings(task: Task) -> Iterator[str]:
    """Template ends and label words that do not fit each other."""
    ending = task.template.source.removesuffix(f"{{{PROMPT}}}")[-1:]
    words = [word for group in task.label_words.words for word in group]
    blank = [word for word in words if word.startswith(" ")]
    if ending == " " and blank:
        yield (
            f"template: it ends in a blank and {_join(blank)} begin with one, which the model sees as two; "
            "remove the blank at the end of the template"
        )
    bare = [word for word in words if word[:1].isalnum()]
    if bare and (ending.isalnum() or ending in {":", ".", "?", "!", ","}):
        yield (
            f"labels: {_join(bare)} would follow {ending!r} without a blank; "
            f"most models want one in front, such as {' ' + bare[0]!r}"
        )


def _data_warnings(task: Task) -> Iterator[str]:
    """Clients and texts that make the result weaker than it looks."""
    for client in task.clients:
        labels = {example.label for example in client.train}
        if len(labels) == 1:
            yield (
                f"client {client.name!r}: all {len(client.train)} training texts are {labels.pop()!r}; "
                "any prompt that always says so looks perfect there (search.perturb is meant for this case)"
            )
    without = [client.name for client in task.clients if not client.dev]
    if without:
        yield f"no development texts: {_join(without)}; the result cannot be chosen by what holds for them"
    seen = {
        (e.text, e.text_b) for c in task.clients for part, rows in c.parts() if part != "test" for e in rows
    }
    leaked = sum((e.text, e.text_b) in seen for client in task.clients for e in client.test)
    if leaked:
        yield (
            f"test: {leaked} texts are also training or development texts, "
            "so test figures look better than they are; remove them"
        )


def _shift_blanks(pieces: Iterable[Marked]) -> tuple[Marked, ...]:
    """Move blanks at the end of a piece to the beginning of the next and drop empty pieces."""
    full = [(piece, is_text) for piece, is_text in pieces if piece]
    shifted: list[Marked] = []
    carried = ""
    for piece, is_text in full[:-1]:
        whole = carried + piece
        bare = whole.rstrip(" ")
        carried = whole[len(bare) :]
        shifted.append((bare, is_text))
    shifted.extend((carried + piece, is_text) for piece, is_text in full[-1:])
    return tuple((piece, is_text) for piece, is_text in shifted if piece)


def _join(names: Iterable[str]) -> str:
    """Quoted names in one line: 'a', 'b' and 'c'."""
    quoted = [repr(name) for name in names]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]]))


def _slots(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
