"""Discriminants against their definition, written out text by text."""

from __future__ import annotations

import numpy as np
import pytest
from by_definition import covariance, discriminants, label_means
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer.discriminant import Classes, square
from fedbpt_api.verbalizer.regression import Ints

STRENGTHS = (0.9, 0.5, 0.1)


def drawn(seed: int, n: int = 30, labels: int = 3, words: int = 7) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(labels, size=n).astype(np.intp)
    rows = (
        rng.normal(size=(n, words)) @ rng.normal(size=(words, words))
        + rng.normal(size=(labels, words))[truth]
    )
    return rows, truth


def classes_of(rows: Floats, truth: Ints, labels: int = 3) -> Classes:
    means = np.nan_to_num(label_means(rows, truth, labels))
    counts = np.bincount(truth, minlength=labels)
    return Classes.of(counts, means, covariance(rows, truth, means))


@given(st.integers(0, 2**32), st.integers(8, 40), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_each_text_is_scored_as_if_it_had_not_been_there(seed: int, n: int, labels: int) -> None:
    rows, truth = drawn(seed, n, labels)
    truth[: labels - 1] = np.arange(labels - 1)  # a label may have one text, and one may have none
    classes = classes_of(rows, truth, labels)
    scores = classes.held_out(rows, truth, STRENGTHS)
    assert scores.shape == (3, n, labels)
    for strength, own in zip(STRENGTHS, scores, strict=True):
        directions, offsets, expected = discriminants(rows, truth, strength, labels)
        assert classes.offsets(strength) == pytest.approx(offsets, rel=1e-7, abs=1e-9)
        assert classes.directions(strength) == pytest.approx(directions, rel=1e-7, abs=1e-9)
        assert own == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_a_new_text_that_is_a_copy_scores_higher_than_one_left_out() -> None:
    """Without leaving out, the text that made a mean speaks for it."""
    rows, truth = drawn(1, n=12, words=9)
    classes = classes_of(rows, truth)
    own = np.arange(12), truth
    seen = (rows - classes.mean) @ classes.directions(0.5).T - classes.offsets(0.5)
    assert (seen[own] > classes.held_out(rows, truth, [0.5])[0][own]).all()


def test_scores_have_unit_variance_within_labels_on_average() -> None:
    rows, truth = drawn(2, n=200)
    classes = classes_of(rows, truth)
    scores = (rows - classes.mean) @ classes.directions(0.3).T
    off = scores - label_means(scores, truth, 3)[truth]
    assert np.mean(off**2) == pytest.approx(1.0, rel=1e-9)


def test_scores_of_some_texts_are_those_among_all() -> None:
    rows, truth = drawn(3)
    classes = classes_of(rows, truth)
    every = classes.held_out(rows, truth, STRENGTHS)
    assert classes.held_out(rows[5:9], truth[5:9], STRENGTHS) == pytest.approx(every[:, 5:9], abs=1e-12)
    assert classes.held_out(rows[:0], truth[:0], STRENGTHS).shape == (3, 0, 3)


def test_what_does_not_vary_is_flat() -> None:
    rows, truth = drawn(4)
    assert not classes_of(rows, truth).flat
    assert classes_of(rows[:1].repeat(30, axis=0), truth).flat
    assert classes_of(rows, np.zeros_like(truth)).flat


def test_labels_whose_means_are_one_have_scores_of_zero() -> None:
    classes = Classes.of(np.array([2, 2]), np.zeros((2, 3)), np.eye(3))
    assert not classes.directions(0.5).any()


def test_a_triangle_is_a_matrix_again() -> None:
    matrix = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]])
    assert (square(matrix[np.triu_indices(3)]) == matrix).all()
    assert square(np.zeros(0)).shape == (0, 0)
