"""The store of answers: a dictionary of (question, prompt, text), in a few bytes an answer."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.scoring.backend import Soft
from fedbpt_api.scoring.encode import AnyPrompt, EncodedText
from fedbpt_api.scoring.journal import as_rows
from fedbpt_api.scoring.known import Known, Question, asked_key


def row(*key: int) -> list[float]:
    """An answer that tells which question it is to."""
    return [float(part) for part in key]


@given(st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 30), min_size=1)), max_size=12))
def test_it_answers_as_a_dictionary_would(calls: list[tuple[int, set[int]]]) -> None:
    known, plain = Known(), dict[tuple[int, int], list[float]]()
    texts = {i: EncodedText((), (i,)) for i in range(31)}
    for prompt, wanted in calls:
        block = known.block(asked_key(("words", (1, 2)), (prompt,)))
        numbers = {known.number(texts[i]): i for i in sorted(wanted, reverse=True)}
        lacking = block.lacks(list(numbers))
        assert [numbers[n] for n in lacking] == [i for i in numbers.values() if (prompt, i) not in plain]
        if lacking:
            fresh = [row(prompt, numbers[n]) for n in lacking]
            block.add(lacking, np.array(fresh, dtype=np.float32))
            plain |= {(prompt, numbers[n]): found for n, found in zip(lacking, fresh, strict=True)}
        found = block.of(list(numbers)).tolist()
        assert found == [plain[prompt, i] for i in numbers.values()]


def test_questions_prompts_and_vectors_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    prompts: list[AnyPrompt] = [
        (),
        (1,),
        (1, 2),
        (12,),
        Soft(rng.normal(size=(2, 4))),
        Soft(rng.normal(size=(2, 4))),
    ]
    questions: list[Question] = [
        ("words", (1, 2)),
        ("words", (1,)),
        ("words, repeat 1", (1, 2)),
        ("top", 5),
        ("top", 12),
    ]
    keys = {asked_key(question, prompt) for question in questions for prompt in prompts}
    assert len(keys) == len(prompts) * len(questions)


@given(st.lists(st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-50, 0)), min_size=1, max_size=5))
def test_lists_of_words_come_back_as_they_were(lists: list[dict[int, float]]) -> None:
    block = Known().block(asked_key(("top", 9), ()))
    for number, found in enumerate(lists):
        block.add([number], as_rows([found]))
    back = block.of(range(len(lists))).tolist()
    assert [list(found.items()) for found in back] == [list(found.items()) for found in lists]


def test_a_list_of_words_takes_a_fraction_of_a_dictionary() -> None:
    block = Known().block(asked_key(("top", 2000), ()))
    tracemalloc.start()
    for number in range(20):
        block.add([number], as_rows([{token: -token / 7 for token in range(2000)}]))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 20 * 2000 * 20  # 12 bytes a word


def test_an_answer_takes_little_more_than_its_numbers() -> None:
    """Two words are 8 bytes; a hundred thousand answers must not take ten times that."""
    known, texts = Known(), [EncodedText((), (i,)) for i in range(32)]
    numbers = [known.number(text) for text in texts]
    tracemalloc.start()
    for prompt in range(100_000 // 32):
        known.block(asked_key(("words", (1, 2)), (prompt,))).add(numbers, np.zeros((32, 2), dtype=np.float32))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / 100_000 < 40
