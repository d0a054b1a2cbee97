"""The ladder of ways: bounds hold, numbers that cannot be are refused, answers are read as documented."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import BackendError
from fedbpt_backends.ways import (
    MOST_NAMED,
    Choice,
    NamedTokens,
    Reading,
    TopK,
    Way,
    bounded,
    checked,
    merged,
    spoiled,
)

LOGITS = st.lists(st.floats(-60.0, 60.0), min_size=2, max_size=40)


def choice(top: dict[str, object]) -> dict[str, object]:
    return {"index": 0, "logprobs": {"top_logprobs": [top]}}


def logprobs(logits: list[float]) -> dict[str, float]:
    """A distribution over token ids, the most probable first."""
    values = np.array(logits)
    values -= np.logaddexp.reduce(values)
    return {f"token_id:{i}": float(values[i]) for i in np.argsort(-values)}


# Bounds -----------------------------------------------------------------------------------------


@given(LOGITS, st.integers(1, 40), st.booleans())
def test_a_missing_word_s_bound_is_never_below_its_value(logits: list[float], k: int, single: bool) -> None:
    """`single`: the server's numbers are float32, as they are."""
    whole = logprobs(logits)
    listed = dict(list(whole.items())[:k])
    if single:
        listed = {key: float(np.float32(value)) for key, value in listed.items()}
    found = bounded(listed, list(whole))
    for key, value, exact in zip(whole, found.logprobs, found.exact, strict=True):
        assert exact == (key in listed)
        if exact:
            assert value == listed[key]
        else:
            assert value >= whole[key] - 1e-6 * abs(whole[key]) - 1e-6
            assert value <= min(listed.values())
            assert math.isfinite(value) and value <= 0.0


@given(LOGITS, st.integers(1, 39))
def test_a_bound_is_no_larger_than_what_the_list_leaves(logits: list[float], k: int) -> None:
    whole = logprobs(logits)
    listed = dict(list(whole.items())[:k])
    (bound,) = bounded(listed, ["another"]).logprobs
    left = sum(math.exp(value) for key, value in whole.items() if key not in listed)
    assert math.exp(bound) <= left + 1e-6 + 1e-9


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(BackendError, match="empty list"):
        bounded({}, ["token_id:1"])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-30.0, -2.0)), max_size=6))
def test_texts_that_come_twice_share_their_probability(top: list[tuple[str, float]]) -> None:
    found = merged(top)
    assert set(found) == {text for text, _ in top}
    for text, value in found.items():
        assert math.exp(value) == pytest.approx(sum(math.exp(v) for t, v in top if t == text))


# Numbers that cannot be -------------------------------------------------------------------------


def readings(rows: list[list[float]]) -> list[Reading]:
    return [Reading(row, [True] * len(row)) for row in rows]


@given(st.lists(LOGITS.map(lambda logits: logits[:2]), min_size=1, max_size=5), st.floats(0.0, 30.0))
def test_numbers_of_any_distribution_pass_as_they_are(rows: list[list[float]], less: float) -> None:
    """Two words of a distribution, which hold all of its mass or only e^-less."""
    values = [[value - np.logaddexp.reduce(row) - less for value in row] for row in rows]
    values = [row if any(row) else [v - 1e-9 for v in row] for row in values]
    found, exact = checked(readings(values), 2, "the server")
    np.testing.assert_array_equal(found, values)
    assert exact.all() and exact.shape == found.shape == (len(rows), 2)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([-1.0, math.nan], "not finite"),
        ([-1.0, -math.inf], "not finite"),
        ([-1.0, math.inf], "not finite"),
        ([-1.0, 0.7], "above 0"),
        ([0.0, 0.0], "0 for every word"),
        ([-9999.0, -9999.0], "-9999 for every word"),
        ([-0.1, -0.2], "sum to more than 1"),
        ([-0.65, -0.7], "sum to more than 1"),
    ],
)
@given(before=st.integers(0, 3), after=st.integers(0, 3))
def test_one_impossible_row_among_good_ones_is_refused(
    row: list[float], words: str, before: int, after: int
) -> None:
    good = [-1.0, -2.0]
    with pytest.raises(BackendError, match=f"http://there returned .*{words}") as caught:
        checked(readings([good] * before + [row] + [good] * after), 2, "http://there")
    assert "fedbpt probe" in caught.value.hint


def test_what_is_only_bounded_may_sum_to_more_and_sentinels_among_numbers_may_stay() -> None:
    bounds = [Reading([-0.1, -0.1, -0.1], [True, False, False])]
    assert checked(bounds, 3, "the server")[1].tolist() == [[True, False, False]]
    values, _ = checked(readings([[-0.5, -9999.0]]), 2, "the server")
    assert values[0, 0] == -0.5 and -9999.0 <= values[0, 1] <= -9000.0
    assert checked([], 3, "the server")[0].shape == (0, 3)


# Reading answers --------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(0, 999), st.floats(-50, 0), min_size=1), st.data())
def test_named_tokens_are_read_in_the_order_of_the_words(
    values: dict[int, float], data: st.DataObject
) -> None:
    words = data.draw(st.lists(st.sampled_from(sorted(values)), min_size=1, unique=True))
    way = NamedTokens()
    fields = way.fields(words)
    assert fields["logprob_token_ids"] == words and fields["return_tokens_as_token_ids"]
    found = way.read(choice({f"token_id:{i}": value for i, value in values.items()}), words)
    assert found == Reading([values[word] for word in words], [True] * len(words))
    missing = max(values) + 1
    with pytest.raises(BackendError, match=rf"token_id:{missing}.*ignores logprob_token_ids") as caught:
        way.read(choice({f"token_id:{i}": value for i, value in values.items()}), [*words, missing])
    assert "top-k" in caught.value.hint


def test_a_top_list_bounds_what_it_lacks_by_id_and_by_text() -> None:
    listed: dict[str, object] = {"token_id:5": -0.5, "token_id:6": -2.0}
    by_id = TopK(20).read(choice(listed), [6, 7])
    assert by_id.exact == [True, False] and by_id.logprobs == [-2.0, -2.0]
    texts = {6: " good", 7: " bad"}
    way = TopK(20, ids=False, texts=texts)
    assert "return_tokens_as_token_ids" not in way.fields([6, 7]) and way.fields([6])["logprobs"] == 20
    by_text = way.read(choice({" good": -2.0, " fine": -0.5}), [6, 7])
    assert by_text == by_id


@pytest.mark.parametrize(
    ("values", "k", "so"),
    [
        ([-2.2, -9999.0], 60, True),  # vLLM 0.32's, while another program named token ids
        ([-9999.0], 1, True),
        ([-0.1, -2.4], 60, False),  # a vocabulary of two
        ([-0.1], 1, False),
        ([-1.0, -1.5, -2.0, -2.5, -3.0, -9999.0], 60, False),  # a mask that leaves five
        ([-0.2, -1.8, -9999.0], 2, False),
    ],
)
def test_a_list_of_hardly_anything_but_sentinels_is_spoiled(values: list[float], k: int, so: bool) -> None:
    found = {f"token_id:{i}": value for i, value in enumerate(values)}
    assert spoiled(found, k) is so
    if so:
        with pytest.raises(BackendError, match="names token ids"):
            TopK(k).read(choice({**found}), [0])


def test_a_choice_names_the_words_texts_and_takes_no_masked_entry_for_a_number() -> None:
    way = Choice({6: " good", 7: " bad"}, 20)
    fields = way.fields([7, 6])
    assert fields["structured_outputs"] == {"choice": [" bad", " good"]}
    assert fields["logprobs"] == way.words == 20 and way.relative
    found = way.read(choice({"token_id:6": -0.01, "token_id:9": -4.7, "token_id:7": -9999.0}), [6, 7])
    assert found.exact == [True, False] and -20.0 < found.logprobs[1] <= -4.7
    with pytest.raises(BackendError, match="empty list"):
        way.read(choice({"token_id:6": -9999.0}), [6])


@pytest.mark.parametrize("way", [NamedTokens(), TopK(5), Choice({6: " good"})])
@pytest.mark.parametrize(
    "answer",
    [{}, {"logprobs": None}, {"logprobs": {"top_logprobs": []}}, {"logprobs": {"top_logprobs": [None]}},
     choice({"token_id:6": "much"}), choice({"token_id:6": None}), choice({"token_id:6": [1]})],
)  # fmt: skip
def test_answers_of_another_form_are_errors_that_the_backend_expects(
    way: Way, answer: dict[str, object]
) -> None:
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError, IndexError)):
        way.read(answer, [6])


def test_names_and_numbers_of_words() -> None:
    assert NamedTokens().words == MOST_NAMED == 128 and not NamedTokens().relative
    assert TopK(7).name == "top-7" and not TopK(7).relative
