"""Losses: numbers worked out by hand, and what must hold for any scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.losses import Labels, cross_entropy, errors, hinge, named

LOGITS = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [-1.0, 4.0, -2.0]])
LABELS = np.array([0, 2, 1], dtype=np.intp)


@st.composite
def scored(draw: st.DrawFn) -> tuple[Floats, Labels]:
    n, c = draw(st.integers(1, 5)), draw(st.integers(2, 4))
    values = st.floats(-1e3, 1e3)
    logits = draw(st.lists(st.lists(values, min_size=c, max_size=c), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, c - 1), min_size=n, max_size=n))
    return np.array(logits), np.array(labels, dtype=np.intp)


def test_cross_entropy_by_hand() -> None:
    # log(e + e^2 + e^3) - 1, log 3, and log(e^-1 + e^4 + e^-2) - 4
    expected = [2.4076059644443806, 1.0986122886681098, 0.009174484591734533]
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), expected, rtol=1e-12)


def test_hinge_by_hand() -> None:
    # margin 2: (2-1+2) + (3-1+2); 2 + 2; everything is further away than the margin
    np.testing.assert_array_equal(hinge(LOGITS, LABELS), [7.0, 4.0, 0.0])
    np.testing.assert_array_equal(hinge(LOGITS, LABELS, margin=0.5), [4.0, 1.0, 0.0])
    np.testing.assert_array_equal(hinge(LOGITS, LABELS, margin=6.0), [15.0, 12.0, 1.0])


def test_errors_by_hand() -> None:
    np.testing.assert_array_equal(errors(LOGITS, LABELS), [1.0, 1.0, 0.0])
    np.testing.assert_array_equal(errors(LOGITS, np.array([2, 0, 0])), [0.0, 0.0, 1.0])


@given(scored())
def test_cross_entropy_is_minus_the_log_probability_of_the_label(data: tuple[Floats, Labels]) -> None:
    logits, labels = data
    expected = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-9, atol=1e-9)


@given(scored(), st.floats(0.1, 5))
def test_hinge_is_zero_just_where_the_label_leads_by_the_margin(
    data: tuple[Floats, Labels], margin: float
) -> None:
    logits, labels = data
    losses = hinge(logits, labels, margin)
    for row, label, loss in zip(logits, labels, losses, strict=True):
        others = np.delete(row, label)
        assert (loss == 0.0) == bool((others - row[label] + margin <= 0.0).all())
        assert loss >= max(0.0, others.max() - row[label] + margin) - 1e-9


@given(scored(), st.floats(-50, 50))
def test_losses_do_not_see_what_is_added_to_all_labels(data: tuple[Floats, Labels], shift: float) -> None:
    logits, labels = data
    for loss in (cross_entropy, hinge):
        np.testing.assert_allclose(loss(logits + shift, labels), loss(logits, labels), rtol=1e-9, atol=1e-9)


def test_no_texts_give_no_losses() -> None:
    for loss in (cross_entropy, hinge, errors):
        assert loss(np.zeros((0, 3)), np.zeros(0, dtype=np.intp)).shape == (0,)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cross-entropy", 2.4076059644443806), ("hinge", 7.0), ("accuracy", 1.0)],
)
def test_a_loss_is_found_by_the_config_s_name(name: str, expected: float) -> None:
    assert named(name)(LOGITS, LABELS)[0] == pytest.approx(expected, rel=1e-12)


def test_the_config_s_margin_is_the_hinge_s() -> None:
    assert named("hinge", 0.5)(LOGITS, LABELS)[0] == 4.0
