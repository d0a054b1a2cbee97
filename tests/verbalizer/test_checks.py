"""What no texts could give is refused, with the client's name; what texts give never is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbpt_api.errors import FedbptError, QuotaError
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.losses import cross_entropy
from fedbpt_api.verbalizer import ClientFit, Committee, FitError, Verbalizer, decode, encode, fit_over_clients
from fedbpt_api.verbalizer.checks import sums_problem
from fedbpt_api.verbalizer.committee import label_logits
from fedbpt_api.verbalizer.discriminant import square
from fedbpt_api.verbalizer.messages import Cross, Message, Moments, Sums

RNG = np.random.default_rng(8)
ROWS = RNG.normal(size=(40, 12)) * 2 - 4
LABELS = RNG.integers(3, size=40).astype(np.intp)
GROUPS = ((0,), (1,), (2,))
Change = Callable[[Any], dict[str, Any]]


class Liar:
    """Changes its answers of a kind."""

    name, n = "liar", 40

    def __init__(self, kind: type[Message], change: Change) -> None:
        self._fit = ClientFit("liar", ROWS, LABELS, GROUPS)
        self._kind, self._change = kind, change

    async def answer(self, message: bytes) -> bytes:
        answer = self._fit.reply(decode(message))
        return encode(replace(answer, **self._change(answer)) if isinstance(answer, self._kind) else answer)


def twisted(scatter: Floats) -> Floats:
    """Products of different words ten times as large."""
    full = square(scatter)
    return np.array((10 * full - 9 * np.diag(np.diag(full)))[np.triu_indices(len(full))])


def entangled(scatter: Floats) -> Floats:
    """Three words of which any two vary together as two may, but not all three."""
    full = square(scatter)
    own = np.sqrt(np.diag(full))
    for i, j, sign in ((0, 1, 1), (1, 2, 1), (0, 2, -1)):
        full[i, j] = full[j, i] = sign * 0.99 * own[i] * own[j]
    return np.array(full[np.triu_indices(len(full))])


LIES: list[tuple[type[Message], Change, str]] = [
    (Moments, lambda m: {"labels": 100 * m.labels}, "40 texts, but tells of 4000"),
    (Moments, lambda m: {"labels": -m.labels}, "counts of texts are none"),
    (Moments, lambda m: {"labels": m.labels + np.array([0.5, -0.5, 0])}, "counts of texts are none"),
    (Moments, lambda m: {"means": -m.means}, "words have probabilities"),
    (Moments, lambda m: {"means": 100 * m.means}, "words have probabilities"),
    (Moments, lambda m: {"means": m.means[:, :5]}, "other than 12 words"),
    (Moments, lambda m: {"logits": -m.logits}, "labels have probabilities"),
    (Moments, lambda m: {"logits": 1e5 * m.logits}, "labels have probabilities"),
    (Moments, lambda m: {"scatter": -m.scatter}, "vary by more than they can"),
    (Moments, lambda m: {"scatter": 1e6 * m.scatter}, "vary by more than they can"),
    (Moments, lambda m: {"scatter": twisted(m.scatter)}, "vary together"),
    (Moments, lambda m: {"scatter": entangled(m.scatter)}, "vary together as none can"),
    (Moments, lambda m: {"bounded": -1}, "number of bounds"),
    (Sums, lambda s: {"losses": -s.losses - 1}, "losses or their derivatives"),
    (Sums, lambda s: {"gradients": s.gradients + 1e7}, "losses or their derivatives"),
    (Sums, lambda s: {"gradients": s.gradients[:, :2]}, "other sums"),
    (Sums, lambda s: {"losses": 0 * s.losses}, "losses or their derivatives"),
    (Sums, lambda s: {"gradients": np.full_like(s.gradients, 60.0)}, "losses or their derivatives"),
    (Sums, lambda s: {"curvature": -s.curvature - 1}, "curvature"),
    (Sums, lambda s: {"curvature": -s.curvature}, "curvature"),
    (Sums, lambda s: {"curvature": 100 * s.curvature}, "curvature"),
    (Cross, lambda c: {"n": c.n + 1}, "40 texts, but tells of 41"),
    (Cross, lambda c: {"sums": 100 * c.sums}, "its losses cannot be"),
    (Cross, lambda c: {"sums": -c.sums - 1}, "its losses cannot be"),
    (Cross, lambda c: {"sums": c.sums[:1]}, "other than"),
    (Cross, lambda c: {"sums": c.sums + 1e30, "products": c.products + 1e60}, "losses are larger than any"),
    (Cross, lambda c: {"sums": c.sums.astype(np.int32)}, "whole numbers"),
    (Sums, lambda s: {"gradients": np.full(s.gradients.shape, -(2**31), np.int32)}, "whole numbers"),
    (Cross, lambda c: {"products": c.products * (3 - 2 * np.eye(len(c.products)))}, "do not go together"),
    (Cross, lambda c: {"gradients": c.gradients + 1e7}, "derivatives of its losses"),
]


@pytest.mark.parametrize(("kind", "change", "problem"), LIES)
async def test_what_cannot_be_is_refused(kind: type[Message], change: Change, problem: str) -> None:
    honest = ClientFit("honest", ROWS, LABELS, GROUPS)
    with pytest.raises(FitError, match=f"liar cannot take part in a fit: .*{problem}") as refused:
        await fit_over_clients([honest, Liar(kind, change)], range(12), GROUPS)
    assert refused.value.client == "liar" and refused.value.refused


@given(st.integers(0, 2**32), st.integers(0, 30), st.floats(0.01, 100.0), st.booleans())
@settings(max_examples=40, deadline=None)
async def test_what_texts_give_is_never_refused(seed: int, n: int, spread: float, bounded: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = spread * rng.standard_normal((n, 12)) - rng.random() * 100
    if n and seed % 3 == 0:
        rows[rng.integers(n)] = -np.inf
        rows[:, 3] = 0.0
    labels = rng.integers(3, size=n).astype(np.intp)
    exact = rng.random((n, 12)) < 0.5 if bounded else None
    clients = [ClientFit("a", rows, labels, GROUPS, exact=exact), ClientFit("b", ROWS, LABELS, GROUPS)]
    verbalizer, _ = await fit_over_clients(clients, range(12), GROUPS)
    assert np.isfinite(verbalizer.weights).all()


@given(st.integers(0, 2**32), st.integers(0, 30), st.floats(0.01, 100.0))
@settings(max_examples=60, deadline=None)
async def test_what_texts_cost_is_never_refused(seed: int, n: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    verbalizer, _ = await fit_over_clients([ClientFit("a", ROWS, LABELS, GROUPS)], range(12), GROUPS)
    rows = spread * rng.standard_normal((n, 12)) - rng.random() * 100
    labels = rng.integers(3, size=n).astype(np.intp)
    loss = float(verbalizer.losses(rows, labels).sum())
    correct = int((verbalizer.logits(rows).argmax(axis=1) == labels).sum())
    assert sums_problem(verbalizer, n, loss, correct) == ""
    committee = Committee(
        (verbalizer, Verbalizer.from_bias(range(12), GROUPS, 3.0, np.array([9.0, -9.0, 0.0])))
    )
    answers = [(rows, np.ones(rows.shape, dtype=bool)), (rows[::-1], np.ones(rows.shape, dtype=bool))]
    logits = label_logits(committee, answers)
    correct = int((logits.argmax(axis=1) == labels).sum())
    assert sums_problem(committee, n, float(cross_entropy(logits, labels).sum()), correct) == ""


@pytest.mark.parametrize(
    ("loss", "correct", "problem"),
    [
        (-1.0, 10, "0 of 10 texts"),
        (0.1, 9, "1 of 10 texts that are read wrongly cost more than 0.1 nats"),
        (11.0, 10, "10 texts cannot cost 11 nats"),
        (1e9, 0, "10 texts cannot cost 1e"),
    ],
)
def test_losses_that_no_texts_have_are_refused(loss: float, correct: int, problem: str) -> None:
    verbalizer = Verbalizer.from_bias(range(12), GROUPS, 1.0, np.array([0.1, -0.1, 0.0]))
    assert sums_problem(verbalizer, 10, loss, correct).startswith(problem)


@pytest.mark.parametrize("error", [FedbptError("gone"), TimeoutError()])
async def test_a_client_that_fails_is_named(error: Exception) -> None:
    class Failing(Liar):
        async def answer(self, message: bytes) -> bytes:
            raise error

    with pytest.raises(FitError, match=r"liar: (gone|no answer in time)") as failed:
        await fit_over_clients([Failing(Moments, lambda m: {})], range(12), GROUPS)
    assert failed.value.client == "liar" and not failed.value.refused


async def test_a_quota_ends_it_all() -> None:
    class Poor(Liar):
        async def answer(self, message: bytes) -> bytes:
            raise QuotaError("nothing left")

    with pytest.raises(QuotaError):
        await fit_over_clients([Poor(Moments, lambda m: {})], range(12), GROUPS)
