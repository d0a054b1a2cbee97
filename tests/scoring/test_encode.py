"""Token ids of a filled template: pieces joined as they are, and which of them are the text's own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.scoring.encode import EncodedText, Encoder, longest
from fedbpt_api.task import Example, LabelWords, Template
from toy import TEMPLATE, ToyBackend

BACKEND = ToyBackend()
WORDS = LabelWords(("bad", "good"), ((" bad",), (" good",)))
TEMPLATES = [
    Template.parse("Text: {text}\nMood:"),
    Template.parse("Text: {text}\nMood:", "after"),
    Template.parse("{text}"),
    Template.parse("{text} is {prompt}"),
    Template.parse("Is {text_a} like {text_b}?"),
    Template.parse("Is {text_a}{prompt} like {text_b}?"),
    Template.parse("{text_a} {text_b}", "after"),
]

# Words of the toy's vocabulary, words it spells in bytes, and what trips tokenisers up.
chunks = st.sampled_from(["good", " bad", "home", "Ümlaut", "日本", "{prompt}", "\n", "  ", ".", "x9", "!"])
texts = st.lists(chunks, min_size=1, max_size=6).map("".join).filter(str.strip)
whole = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)


def tokenize(text: str) -> tuple[int, ...]:
    return asyncio.run(BACKEND.tokenize(text))


def detokenize(ids: Sequence[int]) -> str:
    return asyncio.run(BACKEND.detokenize(ids))


def encode(template: Template, *examples: Example) -> tuple[EncodedText, ...]:
    return asyncio.run(Encoder(BACKEND, template, WORDS).texts(examples))


def own(encoded: EncodedText) -> tuple[int, ...]:
    ids = encoded.before + encoded.after
    return tuple(ids[i] for i in encoded.text)


@given(st.sampled_from(TEMPLATES), texts | whole, texts | whole)
def test_the_input_is_its_pieces_tokenised_one_by_one_around_the_prompt(
    template: Template, a: str, b: str
) -> None:
    example = Example(a, text_b=b if template.is_pair else None)
    (encoded,) = encode(template, example)
    before, after = template.pieces(example)
    prompt = tokenize(" home\n")
    pieces = [*map(tokenize, before), prompt, *map(tokenize, after)]
    assert encoded.with_prompt(prompt).ids == sum(pieces, ())
    assert detokenize(encoded.with_prompt(prompt).ids) == template.fill(example, " home\n")


@given(st.sampled_from(TEMPLATES), st.lists(texts, min_size=2, max_size=4))
def test_the_example_is_encoded_alike_whatever_was_encoded_before_it(
    template: Template, several: list[str]
) -> None:
    examples = [Example(t, text_b="often" if template.is_pair else None) for t in several]
    assert encode(template, *examples) == tuple(encode(template, e)[0] for e in examples)


@given(texts | whole)
def test_the_text_s_positions_hold_the_text_and_nothing_else(text: str) -> None:
    for template in TEMPLATES[:2]:
        (encoded,) = encode(template, Example(text))
        assert detokenize(own(encoded)).rstrip(" ") == f" {text.rstrip(' ')}"


@pytest.mark.parametrize("template", [TEMPLATES[4], TEMPLATES[5]])
def test_both_texts_of_a_pair_are_the_text(template: Template) -> None:
    (encoded,) = encode(template, Example("good home", text_b="bad day"))
    assert detokenize(own(encoded)) == " good home bad day"


@pytest.mark.parametrize(
    ("source", "example", "literals"),
    [
        ("Text: {text}\nMood:", Example("Mood:"), "Text:\nMood:"),
        ("Text: {text}\nMood:", Example("Text:"), "Text:\nMood:"),
        ("{text_a} same {text_b}", Example("same", text_b="other"), " same"),
        ("{text_a}\n{text_b}", Example("good", text_b=" "), "\n"),
    ],
)
def test_a_literal_of_the_template_that_reads_like_the_text_is_not_the_text(
    source: str, example: Example, literals: str
) -> None:
    """Else equation 7 would perturb the template's own tokens."""
    (encoded,) = encode(Template.parse(source), example)
    rest = [token for i, token in enumerate(encoded.after) if i not in encoded.text]
    assert detokenize(rest) == literals


def test_shared_is_the_prompt_with_what_stands_before_it_or_else_the_example() -> None:
    prompt = tokenize(" home\n")
    (front,) = encode(Template.parse("Text: {text}\nMood:"), Example("good day"))
    (behind,) = encode(Template.parse("Text: {text}\nMood:", "after"), Example("good day"))
    (literal,) = encode(Template.parse("Is it{prompt} good? {text}"), Example("good day"))
    assert (front.example_first, behind.example_first, literal.example_first) == (False, True, False)
    assert front.with_prompt(prompt).shared == len(prompt)
    assert behind.with_prompt(prompt).shared == len(behind.before) == len(tokenize("Text: good day"))
    assert literal.with_prompt(prompt).shared == len(tokenize("Is it")) + len(prompt)


def test_labels_are_numbers_in_the_order_of_the_label_words() -> None:
    encoder = Encoder(BACKEND, TEMPLATE, WORDS)
    encoded = asyncio.run(encoder.labelled([Example("a", "good"), Example("b", "bad"), Example("c", "good")]))
    assert len(encoded) == 3
    assert encoded.labels.tolist() == [1, 0, 1]
    assert encoded.texts == encode(TEMPLATE, Example("a"), Example("b"), Example("c"))


# Equation 7 -------------------------------------------------------------------------------------


@given(st.sampled_from(TEMPLATES), texts, st.floats(0, 1), st.integers(0, 2**32))
def test_perturbation_touches_the_text_s_own_positions_alone(
    template: Template, text: str, rate: float, seed: int
) -> None:
    (encoded,) = encode(template, Example(text, text_b="often good" if template.is_pair else None))
    clouded = encoded.perturbed(rate, tuple(range(40)), np.random.default_rng(seed))
    old, new = encoded.before + encoded.after, clouded.before + clouded.after
    assert len(clouded.before) == len(encoded.before)
    assert (clouded.text, clouded.example_first) == (encoded.text, encoded.example_first)
    changed = {i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}
    assert changed <= set(encoded.text)
    assert all(0 <= new[i] < 40 for i in changed)
    again = encoded.perturbed(rate, tuple(range(40)), np.random.default_rng(seed))
    assert clouded == again


def test_the_rate_is_the_share_of_positions_that_are_replaced() -> None:
    (encoded,) = encode(TEMPLATE, Example("good " * 2000))
    rng = np.random.default_rng(0)
    for rate in (0.0, 0.25, 1.0):
        new = encoded.perturbed(rate, tuple(range(100)), rng)  # all words of the text have ids above 100
        replaced = np.mean([new.after[i] != encoded.after[i] for i in encoded.text])
        assert abs(replaced - rate) < 0.05
        assert (rate not in (0.0, 1.0)) or replaced == rate


def test_the_longest_input_is_measured_without_its_prompt() -> None:
    short, long = encode(TEMPLATE, Example("good"), Example("good home day"))
    assert longest([[short], [], [long, short]]) == len(long.before) + len(long.after)
    assert longest([]) == 0
