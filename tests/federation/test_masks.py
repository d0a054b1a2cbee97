"""Masks: they vanish in the sum over all parties, and tell nothing before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.federation.masks import LARGEST, STEP, Masks, added, fingerprint, to_words
from fedbpt_api.federation.messages import MessageError


def parties(*names: str) -> dict[str, Masks]:
    """Parties that have agreed."""
    found = {name: Masks(name) for name in names}
    keys = {name: masks.public for name, masks in found.items()}
    for masks in found.values():
        masks.meet(keys)
    return found


NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5)


@given(st.lists(NUMBERS, min_size=3, max_size=5).filter(lambda rows: len({len(r) for r in rows}) == 1))
def test_masks_vanish_in_the_sum(rows: list[list[float]]) -> None:
    found = parties(*"abcde"[: len(rows)])
    answers = {
        name: masks.masked(b"q", np.array(row))
        for (name, masks), row in zip(found.items(), rows, strict=True)
    }
    total = added(answers, len(rows[0]))
    np.testing.assert_allclose(total, np.sum(rows, axis=0), atol=STEP * len(rows), rtol=0)


def test_an_answer_is_uniform_whatever_it_hides() -> None:
    masks = parties("a", "b", "c")["b"]
    answer = masks.masked(b"q", np.zeros(20_000))
    counts = np.bincount(np.frombuffer(answer, dtype=np.uint8), minlength=256)
    mean = len(answer) / 256
    squares = float(((counts - mean) ** 2 / mean).sum())
    assert 160 < squares < 370  # chi-squared with 255 degrees of freedom: below 160 or above 370 at 1e-6
    assert not np.isin(np.frombuffer(answer, dtype="<u8"), to_words(np.zeros(1))).any()


def test_each_question_has_masks_of_its_own() -> None:
    masks = parties("a", "b", "c")["a"]
    first, second = (np.frombuffer(masks.masked(q, np.ones(50)), dtype="<u8") for q in (b"q", b"r"))
    assert (first != second).all()
    assert masks.masked(b"q", np.ones(50)) == first.tobytes()  # asked again, it gives the same answer


def test_a_question_has_one_answer() -> None:
    masks = parties("a", "b", "c")["a"]
    masks.masked(b"q", np.ones(2))
    with pytest.raises(MessageError, match="difference"):
        masks.masked(b"q", np.array([1.0, 2.0]))


def test_meeting_again_forgets_no_answer() -> None:
    """The same keys make the same masks, and so do keys that come back."""
    found = parties("a", "b", "c")
    keys = {name: masks.public for name, masks in found.items()}
    before = found["a"].masked(b"q", np.ones(2))
    for others in (keys, keys | {"c": Masks("c").public}, keys):
        found["a"].meet(others)
        if others == keys:
            with pytest.raises(MessageError, match="difference"):
                found["a"].masked(b"q", np.array([1.0, 2.0]))
    assert found["a"].masked(b"q", np.ones(2)) == before


def test_new_keys_make_new_masks() -> None:
    """A party that was started again: the others mask what they told before anew."""
    found = parties("a", "b", "c")
    before = found["a"].masked(b"q", np.ones(3))
    found["c"] = Masks("c")
    keys = {name: masks.public for name, masks in found.items()}
    for masks in found.values():
        masks.meet(keys)
    answers = {name: masks.masked(b"q", np.ones(3)) for name, masks in found.items()}
    assert answers["a"] != before
    np.testing.assert_allclose(added(answers, 3), 3.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, LARGEST / 3, -LARGEST])
def test_what_is_too_large_is_refused(value: float) -> None:
    with pytest.raises(MessageError, match="too large"):
        parties("a", "b", "c")["a"].masked(b"q", np.array([value]))


def test_who_may_be_added_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = {name: Masks(name, tmp_path / name) for name in "abcd"}
    keys = {name: masks.public for name, masks in found.items()}
    three = {name: keys[name] for name in "abc"}
    with pytest.raises(MessageError, match="3 parties"):
        found["a"].meet({"a": keys["a"], "b": keys["b"]})
    with pytest.raises(MessageError, match="3 parties"):
        found["a"].meet({"a": keys["a"], "b": keys["b"], "c": keys["b"]})
    with pytest.raises(MessageError, match="another key"):
        found["d"].meet(three)
    with pytest.raises(MessageError, match="public key"):
        found["a"].meet(three | {"c": b"short"})
    found["a"].meet(three)
    with pytest.raises(MessageError, match="no others"):
        found["a"].meet(keys)  # the sum over four less that over three is d's
    again = Masks("a", tmp_path / "a")  # the party, started again
    with pytest.raises(MessageError, match="no others"):
        again.meet(keys | {"a": again.public})
    assert f"remove {tmp_path / 'a'}" in caplog.text
    again.meet(three | {"a": again.public})


def test_an_answer_of_another_length_is_refused() -> None:
    with pytest.raises(MessageError, match="b sent 7 bytes"):
        added({"a": bytes(8), "b": bytes(7)}, 1)


def test_fingerprints_tell_keys_apart() -> None:
    keys = {name: masks.public for name, masks in parties("a", "b", "c").items()}
    assert fingerprint(keys) == fingerprint(dict(reversed(keys.items())))
    assert fingerprint(keys) != fingerprint(keys | {"a": bytes(32)})
    assert fingerprint({"a": b"bc"}) != fingerprint({"ab": b"c"})
