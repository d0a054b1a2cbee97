"""Templates, label words and the check of a whole task."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import ConfigError
from fedbpt_api.task import ClientData, Example, LabelWords, Place, Task, Template, validate

WORDS = LabelWords(("bad", "good"), ((" bad",), (" good", " fine")))
TEXTS = st.text(alphabet=st.sampled_from(" ab\n{}"), max_size=8)


def task(
    *clients: ClientData, template: str = "Review: {text}\nSentiment:", words: LabelWords = WORDS
) -> Task:
    return Task(Template.parse(template), words, clients)


def client(name: str = "north", labels: str = "bg", **parts: tuple[Example, ...]) -> ClientData:
    names = {"b": "bad", "g": "good"}
    train = tuple(Example(f"{name} {i}", names[label]) for i, label in enumerate(labels))
    return ClientData(name, train, **{"dev": (Example(f"{name} dev", "good"),), **parts})


def problems(broken: Task) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(broken)
    return caught.value.problems


def test_pieces_carry_the_blank_to_the_next_word() -> None:
    template = Template.parse("Tweet: {text}\nSentiment:")
    assert template.pieces(Example("hello you")) == ((), ("Tweet:", " hello you", "\nSentiment:"))


def test_pieces_with_the_prompt_after_the_text() -> None:
    template = Template.parse("Tweet: {text}\nSentiment:", "after")
    assert template.source == "Tweet: {text}{prompt}\nSentiment:"
    assert template.pieces(Example("hello ")) == (("Tweet:", " hello "), ("\nSentiment:",))


def test_pieces_of_a_pair_with_the_prompt_after_the_last_text() -> None:
    template = Template.parse("A: {text_a} B: {text_b} C:", "after")
    pieces = template.pieces(Example("one", text_b="two"))
    assert pieces == (("A:", " one", " B:", " two"), (" C:",))


def test_a_prompt_slot_in_the_template_wins_over_the_place() -> None:
    assert Template.parse("{text} {prompt}.", "before").source == "{text} {prompt}."


def test_a_template_without_a_prompt_slot_puts_the_prompt_first() -> None:
    assert Template("T: {text}").pieces(Example("x")) == Template.parse("T: {text}").pieces(Example("x"))


def test_braces_in_a_text_are_not_slots() -> None:
    assert Template.parse("T: {text}").fill(Example("{prompt}{text}"), "P ") == "P T: {prompt}{text}"


@given(TEXTS, TEXTS, TEXTS, TEXTS, st.sampled_from(["before", "after"]), st.booleans())
def test_pieces_join_to_the_filled_template(
    head: str, middle: str, tail: str, text: str, place: Place, pair: bool
) -> None:
    # Literals without slots of their own; the texts may look like slots.
    head, middle, tail = (part.replace("{", "<").replace("}", ">") for part in (head, middle, tail))
    source = f"{head}{{text_a}}{middle}{{text_b}}{tail}" if pair else f"{head}{{text}}{middle}{tail}"
    filled = f"{head}{text}{middle}{text[::-1]}{tail}" if pair else f"{head}{text}{middle}{tail}"
    example = Example(text, text_b=text[::-1] if pair else None)
    before, after = Template.parse(source, place).pieces(example)
    assert "".join(before + after) == filled
    assert all(before + after)
    assert not any(piece.endswith(" ") for group in (before, after) for piece in group[:-1])
    assert Template.parse(source, place).fill(example, "|") == "".join(before) + "|" + "".join(after)
    assert (before == ()) or place == "after"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Review: {txt}", "unknown slot {txt} (did you mean 'text'?)"),
        ("Review:", "expected {text}, or both {text_a} and {text_b} for pairs, got none"),
        ("{text} {text}", "{text} stands there 2 times; expected it once"),
        ("{text_a}:", "got {text_a}"),
        ("{text} {text_b}", "got {text}, {text_b}"),
    ],
)
def test_a_wrong_template_is_explained(source: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Template.parse(source)
    assert expected in str(caught.value)


def test_a_pair_template_asks_for_the_second_text() -> None:
    with pytest.raises(ConfigError, match=r"asks for a pair of texts(.|\n)*columns\.text_b"):
        Template.parse("{text_a}{text_b}").pieces(Example("alone"))


def test_label_words_keep_the_order_and_take_single_words() -> None:
    words = LabelWords.from_mapping({"z": " zed", "a": [" ay", " ah"]})
    assert words == LabelWords(("z", "a"), ((" zed",), (" ay", " ah")))


def test_a_sound_task_has_no_warnings() -> None:
    assert validate(task(client("north"), client("south"))) == []


def test_all_problems_of_a_task_are_told_at_once() -> None:
    words = LabelWords(("bad", "good", "odd"), ((" bad", " x"), (" x", " "), ()))
    broken = task(
        ClientData("north", ()),
        client(
            "south",
            dev=(Example("a", "goood"), Example("b", None), Example(" ", "good"), Example("d", "goood")),
        ),
        client("south"),
        words=words,
    )
    assert problems(broken) == [
        'labels.good: a word is empty; write the word, such as " good", or remove it',
        'labels.odd: expected at least one word, got none; add one, such as " odd"',
        "labels: the word ' x' stands for 'bad' and 'good'; "
        "expected every word under one label, so take another word for one of them",
        "clients: 2 clients are called 'south'; give every client a name of its own",
        "client 'north': train is empty; expected at least one labelled text",
        "client 'south': dev[0] and 1 more: the label 'goood' has no words (did you mean 'good'?); "
        "expected one of 'bad', 'good' and 'odd', so correct it or give it words",
        "client 'south': dev[1]: no label; every text of a task needs one",
        "client 'south': dev[2]: the text is empty; write one or remove the example",
    ]


def test_a_task_needs_clients_and_two_labels() -> None:
    found = problems(Task(Template("{text}"), LabelWords(("good",), ((" good",),)), ()))
    assert found[0].startswith("labels: expected at least two labels, got 1")
    assert found[1].startswith("clients: expected at least one client, got none")


def test_words_that_do_not_match_the_labels_are_refused() -> None:
    [problem] = problems(task(client(), words=LabelWords(("bad", "good"), ((" bad",),))))
    assert problem.startswith("labels: 2 labels but words for 1")


def test_pairs_and_single_texts_must_match_the_template() -> None:
    [single] = problems(task(client(dev=()), template="{text_a}{text_b}"))
    assert single.startswith("client 'north': train[0] and 1 more: text_b is missing")
    [pair] = problems(task(client(dev=(Example("a", "good", "b"),))))
    assert pair.startswith("client 'north': dev[0]: the example is a pair")


def test_a_test_text_needs_its_label_before_anything_is_paid_for() -> None:
    with pytest.raises(ConfigError, match=r"client 'north': test\[0\]: no label"):
        validate(task(client(test=(Example("new"),))))


@pytest.mark.parametrize(
    ("unusual", "expected"),
    [
        (task(client(labels="ggg")), "client 'north': all 3 training texts are 'good'; any prompt"),
        (task(client(dev=())), "no development texts: 'north'"),
        (task(client(test=(Example("north 0", "bad"),))), "test: 1 texts are also training or development"),
        (task(client(), template="{text}\nSentiment: "), "template: it ends in a blank and ' bad', ' good'"),
        (
            task(client(), words=LabelWords(("bad", "good"), (("bad",), (" good",)))),
            "labels: 'bad' would follow ':' without a blank; most models want one in front, such as ' bad'",
        ),
    ],
    ids=["one class", "no dev", "leak", "two blanks", "no blank"],
)
def test_what_is_rarely_meant_is_a_warning(unusual: Task, expected: str) -> None:
    [warning] = validate(unusual)
    assert warning.startswith(expected)
