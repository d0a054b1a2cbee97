"""A client's side of the fit: holds the log-probabilities of its texts and answers with sums over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedbpt_api.scoring.backend import Bools, Floats
from fedbpt_api.verbalizer import regression
from fedbpt_api.verbalizer.messages import (
    AskCross,
    AskMoments,
    AskSums,
    Begin,
    Cross,
    Message,
    Moments,
    Sums,
    decode,
    encode,
)
from fedbpt_api.verbalizer.problem import FitError
from fedbpt_api.verbalizer.regression import Ints
from fedbpt_api.verbalizer.verbalizer import MARGIN, label_logprobs, lowered, normalised

_PURPOSE = 71  # keys the generator that draws folds


def assign_folds(labels: Ints, folds: int, seed: Sequence[int]) -> Ints:
    """A fold for each text: labels spread evenly, drawn from `seed` alone.

    Args:
        labels: Shape [n].
        folds: How many.
        seed: Key of the generator; a client's own.

    Returns:
        Folds 0..folds - 1, shape [n].
    """
    rng = np.random.default_rng((*seed, _PURPOSE))
    assigned = np.zeros(len(labels), dtype=np.intp)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        assigned[rows] = (np.arange(len(rows)) + rng.integers(folds)) % folds
    return assigned


class ClientFit:
    """One client during a fit.

    Args:
        name: Its name.
        logprobs: Natural-log probabilities of the T words after each of n texts, shape [n, T].
        labels: Each text's label as an index of `groups`, shape [n].
        groups: For each label the columns of its words.
        seed: Key of the generator that assigns folds.
        folds: Each text's fold, shape [n], in place of drawn ones.
        exact: False where `logprobs` are bounds, shape [n, T]; all are values where not given.

    Raises:
        ValueError: Shapes that do not fit together, labels without a group, NaN.
    """

    def __init__(
        self,
        name: str,
        logprobs: npt.ArrayLike,
        labels: Ints,
        groups: Sequence[Sequence[int]],
        *,
        seed: Sequence[int] = (0,),
        folds: Ints | None = None,
        exact: Bools | None = None,
    ) -> None:
        self.name = name
        width = np.asarray(logprobs).shape[-1]
        plain = self._rows = normalised(logprobs, width)
        self._bounded = 0 if exact is None else int(np.count_nonzero(~exact))
        if exact is not None and self._bounded:
            self._rows = normalised(lowered(np.asarray(logprobs, dtype=np.float64), exact, MARGIN), width)
        self._labels = np.asarray(labels, dtype=np.intp)
        if self._labels.shape != self._rows.shape[:1] or not np.isfinite(self._rows).all():
            raise ValueError(f"client {name}: expected a label and {width} finite numbers for each text")
        if len(self._labels) and not 0 <= self._labels.min() <= self._labels.max() < len(groups):
            raise ValueError(f"client {name}: expected labels within 0..{len(groups) - 1}")
        self._label_rows = label_logprobs(plain, groups)
        self._seed = tuple(seed)
        self._given = folds
        self._folds = np.zeros(len(self._labels), dtype=np.intp)
        self._design: Floats | None = None

    async def answer(self, message: bytes) -> bytes:
        """Answer an encoded message of the server; see `reply`."""
        return encode(self.reply(decode(message)))

    def reply(self, message: Message) -> Message:
        """Answer a message of the server.

        Raises:
            FitError: A message that a server does not send, or not at this point.
        """
        match message:
            case AskMoments():
                return self._moments(message)
            case Begin():
                return self._begin(message)
            case AskSums():
                return self._sums(message)
            case AskCross():
                return self._cross(message)
        raise FitError(f"client {self.name} got {type(message).__name__}, which only clients send")

    def _moments(self, ask: AskMoments) -> Moments:
        drawn = assign_folds(self._labels, ask.folds, self._seed)
        self._folds = drawn if self._given is None else np.asarray(self._given, dtype=np.intp)
        width = self._rows.shape[1] if ask.scatter else 0
        rows = self._rows[:, :width]
        mean = rows.sum(axis=0) / max(1, len(rows))
        away = rows - mean
        return Moments(
            folds=np.bincount(self._folds, minlength=ask.folds),
            labels=np.bincount(self._labels, minlength=self._label_rows.shape[1]),
            logits=self._label_rows.sum(axis=0),
            mean=mean,
            scatter=(away.T @ away)[np.triu_indices(width)],
            bounded=self._bounded,
        )

    def _begin(self, begin: Begin) -> Sums:
        width, r = self._rows.shape[1], begin.axes.shape[-1]
        used = width if r else 0
        p = regression.size(self._label_rows.shape[1], r)
        shapes = [values.shape for values in (begin.mean, begin.spread, begin.axes, begin.theta)]
        if shapes != [(used,), (used,), (used, r), (p,)]:
            raise FitError(
                f"client {self.name} was sent components of shapes {shapes} for {width} words",
                "do all clients have one word list?",
            )
        if r:
            components = ((self._rows - begin.mean) / begin.spread) @ begin.axes
        else:
            components = np.zeros((len(self._rows), 0))
        self._design = regression.design(self._label_rows, components)
        every = np.full(1, -1)
        return self._sums(AskSums(every, np.array([len(begin.theta)]), begin.theta, curvature=True))

    def _sums(self, ask: AskSums) -> Sums:
        rows, thetas = self._models(ask.sizes, ask.thetas)
        member = self._folds[None, :] != ask.folds[:, None]
        losses, gradients = regression.loss_and_gradient(rows, self._labels, thetas, member)
        parts = [g if k == len(g) else g[self._biases] for g, k in zip(gradients, ask.sizes, strict=True)]
        second = np.zeros(0, dtype=np.float32)
        if ask.curvature:
            full = regression.curvature(rows, thetas[0])
            own = np.arange(len(full)) if len(full) == ask.sizes[0] else self._biases
            second = full[np.ix_(own, own)][np.triu_indices(len(own))].astype(np.float32)
        return Sums(losses, np.concatenate(parts).astype(ask.thetas.dtype), second)

    def _cross(self, ask: AskCross) -> Cross:
        every = np.arange(len(self._labels))
        losses = np.zeros((1 + max(ask.candidates, default=0), len(every)))
        losses[0] = -self._label_rows[every, self._labels]
        if len(ask.candidates):
            rows, thetas = self._models(ask.sizes, ask.thetas)
            by_model = regression.text_losses(rows, self._labels, thetas)
            for candidate, fold, values in zip(ask.candidates, ask.folds, by_model, strict=True):
                own = self._folds == fold
                losses[candidate, own] = values[own]
        return Cross(len(every), losses.sum(axis=1), losses @ losses.T)

    def _models(self, sizes: Ints, thetas: Floats) -> tuple[Floats, Floats]:
        """The design, and the models' parameters as rows of its width."""
        if self._design is None:
            raise FitError(f"client {self.name} was asked for sums before it knew the components")
        _, c, p = self._design.shape
        parts = np.split(thetas.astype(np.float64), np.cumsum(sizes)[:-1])
        if sum(sizes) != len(thetas) or any(len(part) not in (c, p) for part in parts):
            raise FitError(f"client {self.name} was sent parameters that do not fit its {p}")
        return self._design, np.array([regression.widen(part, c, p) for part in parts])

    @property
    def _biases(self) -> Ints:
        """Which parameters are the scale and the biases."""
        assert self._design is not None  # `_models` has checked
        return regression.bias_columns(*self._design.shape[1:])
