"""Prompts that answer together: how they are read, and the loss of sets of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.verbalizer import Committee, Verbalizer
from fedbpt_api.verbalizer.committee import alone, joint_losses, label_logits, reading_from_dict, together

WORDS, GROUPS = (7, 8, 9), ((0,), (1,))
PLAIN = Verbalizer.from_bias(WORDS, GROUPS, 1.0, np.array([0.5, 0.0]))
WEIGHTED = Verbalizer(
    WORDS, GROUPS, 0.0, np.zeros(2), np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]), np.zeros(3), np.ones(3),
    "weighted", margin=0.5,
)  # fmt: skip
SAID = np.log([[0.2, 0.4, 0.4], [0.3, 0.3, 0.4]])


def test_each_prompt_is_read_by_its_own_verbalizer() -> None:
    other = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    exact = np.array([[True, True, True], [True, True, False]])
    found = label_logits(Committee((PLAIN, WEIGHTED)), [(SAID, np.ones_like(exact)), (other, exact)])
    # by hand: labels of (1, 2) / 3 and (1, 1) / 2 with the bias; the third word's logarithm, for and against;
    # in the second text it is a bound, half a nat below the smaller of the two in the list, normalised
    outside = np.log(0.1) - 0.5
    outside -= np.log(0.1 + 0.1 + np.exp(outside))
    one = [[np.log(1 / 3) + 0.5, np.log(2 / 3)], [np.log(1 / 2) + 0.5, np.log(1 / 2)]]
    two = [[np.log(0.25), -np.log(0.25)], [outside, -outside]]
    np.testing.assert_allclose(found, (np.array(one) + np.array(two)) / 2)


def test_one_verbalizer_reads_the_mean_of_several_as_earlier_versions_did() -> None:
    other, exact = SAID[::-1], np.ones_like(SAID, dtype=bool)
    found = label_logits(PLAIN, [(SAID, exact), (other, exact)])
    np.testing.assert_allclose(found, PLAIN.logits((SAID + other) / 2))


def test_a_committee_is_of_two_or_more_that_read_the_same() -> None:
    assert together([PLAIN]) is PLAIN and together([PLAIN, WEIGHTED]) == Committee((PLAIN, WEIGHTED))
    assert alone(PLAIN) is PLAIN
    others = (
        Verbalizer.from_words((7, 8, 10), GROUPS),
        Verbalizer.from_words(WORDS, ((0,), (2,))),
    )
    for wrong in ((PLAIN,), *((PLAIN, other) for other in others)):
        with pytest.raises(ValueError, match="members"):
            Committee(wrong)
    with pytest.raises(ValueError, match="a verbalizer each"):
        alone(Committee((PLAIN, WEIGHTED)))
    exact = np.ones_like(SAID, dtype=bool)
    with pytest.raises(ValueError, match="shorter"):
        label_logits(Committee((PLAIN, WEIGHTED)), [(SAID, exact)])


def test_a_committee_comes_back_from_plain_values() -> None:
    committee = Committee((PLAIN, WEIGHTED))
    assert reading_from_dict(committee.to_dict()) == committee
    assert reading_from_dict(PLAIN.to_dict()) == PLAIN
    assert (committee.words, committee.groups, committee.kind) == (WORDS, GROUPS, "weighted")
    assert Committee((PLAIN, Verbalizer.from_words(WORDS, GROUPS))).kind == "bias"


def test_it_is_the_cross_entropy_of_the_geometric_mean() -> None:
    said = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.5, 0.5]]])
    found = joint_losses(np.log(said), np.array([0, 0]), [[0], [1], [0, 1]])
    both = [3 / (3 + 1), 1 / (1 + 2)]  # sqrt(.9 * .5) against sqrt(.1 * .5); sqrt(.2 * .5), sqrt(.8 * .5)
    wanted = [-np.log(0.9) - np.log(0.2), -2 * np.log(0.5), -np.log(both).sum()]
    assert found == pytest.approx(wanted)


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 8), st.integers(2, 4))
def test_members_together_are_no_worse_than_on_the_average_alone(seed: int, p: int, n: int, c: int) -> None:
    """The cross-entropy is convex in the logits (Jensen)."""
    rng = np.random.default_rng(seed)
    rows, labels = 3 * rng.normal(size=(p, n, c)), rng.integers(c, size=n)
    together, *alone = joint_losses(rows, labels, [range(p), *([k] for k in range(p))])
    assert together <= np.mean(alone) + 1e-9


def test_a_common_shift_of_logits_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    rows, labels, sets = rng.normal(size=(3, 5, 3)), rng.integers(3, size=5), [[0], [1, 2]]
    shifts = rng.normal(size=(3, 5, 1))
    np.testing.assert_allclose(joint_losses(rows + shifts, labels, sets), joint_losses(rows, labels, sets))
