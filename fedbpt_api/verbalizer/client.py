"""A client's side of the fit: holds the log-probabilities of its texts and answers with sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedbpt_api.scoring.backend import Bools, Floats
from fedbpt_api.verbalizer import regression
from fedbpt_api.verbalizer.discriminant import Classes, square, triangle
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


class ClientFit:
    """One client during a fit.

    Args:
        name: Its name.
        logprobs: Natural-log probabilities of the T words after each of n texts, shape [n, T].
        labels: Each text's label as an index of `groups`, shape [n].
        groups: For each label the columns of its words.
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
        self._designs: list[Floats] = []

    @property
    def n(self) -> int:
        """Its texts."""
        return len(self._labels)

    async def answer(self, message: bytes) -> bytes:
        """Answer an encoded message of the server; see `reply`."""
        return encode(self.reply(_question(message)))

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
        width = self._rows.shape[1] if ask.scatter else 0
        rows, c = self._rows[:, :width], self._label_rows.shape[1]
        counts = np.bincount(self._labels, minlength=c)
        means = np.eye(c)[self._labels].T @ rows / np.maximum(counts, 1)[:, None]
        away = rows - means[self._labels]
        return Moments(
            labels=counts,
            logits=self._label_rows.sum(axis=0),
            means=means,
            scatter=(away.T @ away)[triangle(width)],
            bounded=self._bounded,
        )

    def _begin(self, begin: Begin) -> Sums:
        c, width = self._label_rows.shape[1], self._rows.shape[1] if len(begin.strengths) else 0
        told = (begin.labels, begin.centre, begin.means, begin.covariance)
        shapes = [values.shape for values in told]
        if shapes != [(c,), (c,), (c, width), (width * (width + 1) // 2,)]:
            raise FitError(
                f"client {self.name} was sent moments of shapes {shapes} for {c} labels and {width} words",
                "do all clients have one word list?",
            )
        self._designs = [regression.design(self._label_rows, np.zeros_like(self._label_rows))]
        if width:
            for scores in _classes(begin).held_out(self._rows, self._labels, begin.strengths.tolist()):
                self._designs.append(regression.design(self._label_rows - begin.centre, scores))
        return self._sums(AskSums(np.arange(len(self._designs)), begin.thetas))

    def _sums(self, ask: AskSums) -> Sums:
        self._check(ask.designs, ask.thetas)
        upper = triangle(ask.thetas.shape[1])
        losses, gradients, second = [], [], []
        for design, theta in zip(ask.designs, ask.thetas, strict=True):
            rows = self._designs[design]
            loss, gradient = regression.loss_and_gradient(rows, self._labels, theta)
            losses.append(loss)
            gradients.append(gradient)
            second.append(regression.curvature(rows, theta)[upper].astype(np.float32))
        return Sums(np.array(losses), np.array(gradients), np.array(second))

    def _cross(self, ask: AskCross) -> Cross:
        k, p = ask.thetas.shape
        if k:
            self._check(ask.designs, ask.thetas)
        if [v.shape for v in (ask.free, ask.pulls, ask.curvature)] != [(k, p), (k, p), (k, p * (p + 1) // 2)]:
            raise FitError(f"client {self.name} was sent curvature that does not fit {p} parameters")
        every = np.arange(len(self._labels))
        losses, gradients = np.zeros((1 + k, len(every))), np.zeros((k, p))
        losses[0] = -self._label_rows[every, self._labels]
        models = zip(ask.designs, ask.thetas, ask.curvature, ask.pulls, ask.free, strict=True)
        for place, (design, theta, second, pull, free) in enumerate(models):
            rows = self._designs[design]
            _, gradients[place] = regression.loss_and_gradient(rows, self._labels, theta)
            losses[1 + place] = regression.left_out(rows, self._labels, theta, square(second), pull, free > 0)
        return Cross(len(every), losses.sum(axis=1), losses @ losses.T, gradients)

    def _check(self, designs: Ints, thetas: Floats) -> None:
        """Whether models fit the designs."""
        if not self._designs:
            raise FitError(f"client {self.name} was asked for sums before it knew the designs")
        p = self._label_rows.shape[1] + 1
        if thetas.shape != (len(designs), p) or not set(designs.tolist()) <= set(range(len(self._designs))):
            raise FitError(
                f"client {self.name} was sent models that do not fit its designs of {p} parameters"
            )


# Clients of one process are asked the same: it is read, and the axes are found, once and not by each.
_SIDE_BY_SIDE = 32  # fits at the same time
_question = lru_cache(maxsize=_SIDE_BY_SIDE)(decode)


@lru_cache(maxsize=_SIDE_BY_SIDE)
def _classes(begin: Begin) -> Classes:
    """What the texts of all clients add up to."""
    return Classes.of(begin.labels, begin.means, square(begin.covariance))
