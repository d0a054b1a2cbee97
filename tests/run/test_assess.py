"""Which of two judged prompts is better: hand-made sums, clients that are missing, the floor of a search."""

from __future__ import annotations

import math

import pytest

from fedbpt_api.federation.client import Sums
from fedbpt_api.run.assess import Assessment
from fedbpt_api.verbalizer import Verbalizer

PLAIN = Verbalizer.from_words((1, 2), ((0,), (1,)))
Parts = dict[str, tuple[int, float]]


def judged(train: Parts, dev: Parts, floor: Parts | None = None) -> Assessment:
    """An assessment from {client: (texts, mean loss)}."""

    def sums(parts: Parts) -> dict[str, Sums]:
        return {name: Sums(n, n * mean) for name, (n, mean) in parts.items()}

    return Assessment((), "", PLAIN, sums(train), sums(dev), sums(floor or {}))


def test_the_loss_is_the_mean_over_training_and_development_texts_of_all_clients() -> None:
    one = judged({"a": (4, 1.0), "b": (8, 0.5)}, {"a": (2, 2.0), "b": (2, 0.0)})
    assert one.train_loss == pytest.approx(8 / 12)
    assert one.dev_sums == Sums(4, 4.0)
    assert one.loss == pytest.approx((4 + 4 + 4) / 16)
    assert one.loss_on({"b"}) == pytest.approx(4 / 10)


def test_training_texts_of_a_searched_prompt_count_at_least_as_the_centre_did() -> None:
    floor: Parts = {"a": (4, 0.9)}
    dev: Parts = {"a": (4, 0.5)}
    assert judged({"a": (4, 0.1)}, dev, floor).loss == pytest.approx((0.9 + 0.5) / 2)
    assert judged({"a": (4, 1.3)}, dev, floor).loss == pytest.approx((1.3 + 0.5) / 2)


def test_a_prompt_that_its_training_texts_ruled_out_never_wins() -> None:
    out, best = judged({"a": (4, 0.1)}, {}), judged({"a": (4, 3.0)}, {"a": (4, 3.0)})
    assert math.isinf(out.loss)
    assert not out.beats(best)
    assert not best.beats(out)  # nothing to compare: who was first stays


def test_prompts_are_compared_on_the_clients_that_answered_for_both() -> None:
    """Client b's texts are easy: a prompt must not win because b was missing when the other was judged."""
    before = judged({"a": (4, 1.0), "b": (4, 0.1)}, {"a": (4, 1.0), "b": (4, 0.1)})
    after = judged({"a": (4, 0.9)}, {"a": (4, 0.9)})
    assert after.loss > before.loss
    assert after.beats(before) and not before.beats(after)
    worse = judged({"b": (4, 0.2)}, {"b": (4, 0.2)})
    assert worse.loss < before.loss
    assert not worse.beats(before) and before.beats(worse)


def test_clients_without_development_texts_count_with_their_training_texts() -> None:
    one = judged({"a": (4, 1.0), "b": (4, 0.5)}, {"a": (4, 2.0), "b": (0, 0.0)})
    assert one.clients == {"a", "b"}
    assert one.loss == pytest.approx((4 + 2 + 8) / 12)
