"""A client's side of the fit: holds the log-probabilities of its texts and answers with sums over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedbpt_api.scoring.backend import Bools, Floats
from fedbpt_api.verbalizer import regression
from fedbpt_api.verbalizer.discriminant import Classes, square
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
        self._designs: list[Floats] = []

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
        rows, c = self._rows[:, :width], self._label_rows.shape[1]
        counts = np.bincount(self._labels, minlength=c)
        means = np.eye(c)[self._labels].T @ rows / np.maximum(counts, 1)[:, None]
        away = rows - means[self._labels]
        return Moments(
            folds=np.bincount(self._folds, minlength=ask.folds),
            labels=counts,
            logits=self._label_rows.sum(axis=0),
            means=means,
            scatter=(away.T @ away)[np.triu_indices(width)],
            bounded=self._bounded,
        )

    def _begin(self, begin: Begin) -> Sums:
        c, width = self._label_rows.shape[1], self._rows.shape[1] if len(begin.strengths) else 0
        told = (begin.labels, begin.centre, begin.means, begin.covariance, begin.theta)
        shapes = [values.shape for values in told]
        if shapes != [(c,), (c,), (c, width), (width * (width + 1) // 2,), (c + 1,)]:
            raise FitError(
                f"client {self.name} was sent moments of shapes {shapes} for {c} labels and {width} words",
                "do all clients have one word list?",
            )
        self._designs = [regression.design(self._label_rows, np.zeros_like(self._label_rows))]
        if width:
            classes = Classes.of(begin.labels, begin.means, square(begin.covariance))
            for scores in classes.held_out(self._rows, self._labels, begin.strengths.tolist()):
                self._designs.append(regression.design(self._label_rows - begin.centre, scores))
        every = np.arange(len(self._designs))
        thetas = np.repeat(begin.theta[None], len(every), axis=0)
        return self._sums(AskSums(every, np.full(len(every), -1), thetas, curvature=True))

    def _sums(self, ask: AskSums) -> Sums:
        thetas = self._models(ask.designs, ask.thetas)
        losses, gradients = np.zeros(len(thetas)), np.zeros_like(thetas)
        for design in np.unique(ask.designs):
            of = ask.designs == design
            member = self._folds[None, :] != ask.folds[of][:, None]
            losses[of], gradients[of] = regression.loss_and_gradient(
                self._designs[design], self._labels, thetas[of], member
            )
        second = np.zeros((0, 0))
        if ask.curvature:
            upper = np.triu_indices(thetas.shape[1])
            pairs = zip(ask.designs, thetas, strict=True)
            second = np.array([regression.curvature(self._designs[d], theta)[upper] for d, theta in pairs])
        return Sums(losses, gradients.astype(ask.thetas.dtype), second.astype(np.float32))

    def _cross(self, ask: AskCross) -> Cross:
        every = np.arange(len(self._labels))
        losses = np.zeros((1 + max(ask.candidates, default=0), len(every)))
        losses[0] = -self._label_rows[every, self._labels]
        thetas = self._models(ask.designs, ask.thetas) if len(ask.designs) else ask.thetas
        for candidate, design, fold, theta in zip(
            ask.candidates, ask.designs, ask.folds, thetas, strict=True
        ):
            own = self._folds == fold
            rows, labels = self._designs[design][own], self._labels[own]
            losses[candidate, own] = regression.text_losses(rows, labels, theta[None])[0]
        return Cross(len(every), losses.sum(axis=1), losses @ losses.T)

    def _models(self, designs: Ints, thetas: Floats) -> Floats:
        """The models' parameters in double precision, once they are known to fit the designs."""
        if not self._designs:
            raise FitError(f"client {self.name} was asked for sums before it knew the designs")
        p = self._label_rows.shape[1] + 1
        if thetas.shape != (len(designs), p) or not set(designs.tolist()) <= set(range(len(self._designs))):
            raise FitError(
                f"client {self.name} was sent models that do not fit its designs of {p} parameters"
            )
        return thetas.astype(np.float64)
