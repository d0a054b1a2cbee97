"""Is what a client answers possible at all? Bounds that hold whatever its texts are.

One client's numbers are added to those of all; so a number that no texts could give is refused before that,
with the client's name. What is possible but untrue is bounded by the client's share of the texts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer.committee import Reading, verbalizers_of
from fedbpt_api.verbalizer.discriminant import square
from fedbpt_api.verbalizer.messages import AskCross, AskMoments, AskSums, Begin, Cross, Message, Moments, Sums
from fedbpt_api.verbalizer.verbalizer import LOWEST, Verbalizer

_WRONG: Final = 1e4  # nats that one text's loss may have at most: logits of such size are none
_STEEP: Final = 1e4  # largest derivative of one text's loss; scores have unit variance within labels
_ROUNDING: Final = 1e-6
_SINGLE: Final = 1e-5  # relative rounding of what travels in single precision


@dataclass(frozen=True, slots=True)
class Asked:
    """What a fit is about.

    Attributes:
        labels: C.
        width: T.
        n: The client's texts, as it said before.
    """

    labels: int
    width: int
    n: int


def problem(asked: Asked, question: Message, answer: Message) -> str:
    """Why `answer` is none to `question`; empty where it may be one."""
    numbers = [getattr(answer, f.name) for f in fields(answer) if f.name != "labels"]
    if any(isinstance(values, np.ndarray) and values.dtype.kind != "f" for values in numbers):
        return "it sent whole numbers, whose squares are not what they should be"
    match question, answer:
        case AskMoments(), Moments():
            return _moments(asked, question, answer)
        case Begin(), Sums():
            return _sums(asked, answer, *question.thetas.shape)
        case AskSums(), Sums():
            return _sums(asked, answer, *question.thetas.shape)
        case AskCross(), Cross():
            return _cross(asked, question, answer)
    return f"it sent {type(answer).__name__}, which is no answer to {type(question).__name__}"


def _moments(asked: Asked, question: AskMoments, answer: Moments) -> str:
    c, t = asked.labels, asked.width if question.scatter else 0
    shapes = [v.shape for v in (answer.labels, answer.logits, answer.means, answer.scatter)]
    if shapes != [(c,), (c,), (c, t), (t * (t + 1) // 2,)]:
        return f"it sent moments of other than {t} words and {c} labels"
    n = float(answer.labels.sum())
    if (answer.labels < 0).any() or (answer.labels != np.round(answer.labels)).any():
        return "its counts of texts are none"
    if n != asked.n:
        return f"it has {asked.n} texts, but tells of {n:g}"
    # Log-probabilities are normalised over T words, none below LOWEST nats of the largest.
    low = LOWEST - np.log(max(asked.width, c)) - _ROUNDING
    if (answer.logits > _ROUNDING * max(n, 1)).any() or (answer.logits < low * n - _ROUNDING).any():
        return "its labels have probabilities that cannot be"
    if (answer.means > _ROUNDING).any() or (answer.means < low).any():
        return "its words have probabilities that cannot be"
    if (answer.means[answer.labels == 0] != 0).any():
        return "it has means of labels without a text"
    spread = square(answer.scatter)
    own = np.diag(spread)
    if (own < -_ROUNDING).any() or (own > n * low**2 + _ROUNDING).any():
        return "its words vary by more than they can"
    if (spread**2 > np.outer(own, own) * (1 + 1e-6) + _ROUNDING).any():
        return "its words vary together by more than each of them"
    if not _semidefinite(spread, 1e-9):
        return "its words vary together as none can"
    return "" if 0 <= answer.bounded <= n * asked.width else "its number of bounds is none"


def _sums(asked: Asked, answer: Sums, models: int, p: int) -> str:
    shapes = [values.shape for values in (answer.losses, answer.gradients, answer.curvature)]
    if shapes != [(models,), (models, p), (models, p * (p + 1) // 2)]:
        return f"it sent other sums than those of {models} models of {p} parameters"
    n = asked.n
    if (answer.losses < -_ROUNDING).any() or not _slopes(asked, answer.losses, answer.gradients):
        return "its losses or their derivatives cannot be"
    for upper in answer.curvature:
        second = square(upper)
        own = np.diag(second)
        # Of the biases: Q' (diag(p) - p p') Q, summed over texts, with p (1 - p) at most 1/4, a variance.
        if (own > _STEEP**2 * n).any() or (own[1:-1] > n / 2 + _SINGLE * max(n, 1)).any():
            return "its curvature cannot be"
        if not _semidefinite(second, _SINGLE):
            return "its curvature cannot be: losses are convex"
    return ""


def _slopes(asked: Asked, losses: Floats, gradients: Floats) -> bool:
    """Whether texts can have these losses, shape [M], and their derivatives, shape [M, p].

    A text's loss has the derivative p - e_y by its logits, of norm at most sqrt(2) (1 - p_y), and 1 - p_y is
    at most its loss -log p_y; biases are orthonormal contrasts of logits (`regression.contrasts`). The
    scale's derivative is a mean difference of label log-probabilities, which lie within LOWEST nats.
    """
    wrong = np.minimum(np.maximum(losses, 0.0), asked.n) * (1 + _ROUNDING) + _ROUNDING
    steep = np.abs(gradients) > _STEEP * asked.n
    spread = -LOWEST + np.log(max(asked.width, asked.labels))
    biases = np.sqrt((gradients[:, 1:-1] ** 2).sum(axis=1)) > np.sqrt(2) * wrong
    return not (steep.any() or biases.any() or (np.abs(gradients[:, 0]) > spread * wrong).any())


def _semidefinite(matrix: Floats, rounding: float) -> bool:
    """Whether a symmetric matrix is positive semidefinite, but for a share of its largest element."""
    size = len(matrix)
    if not size:
        return True
    slack = (rounding * float(np.abs(matrix).max()) + _ROUNDING) * size
    try:
        np.linalg.cholesky(matrix + slack * np.eye(size))
    except np.linalg.LinAlgError:
        return False
    return True


def _cross(asked: Asked, question: AskCross, answer: Cross) -> str:
    k = 1 + len(question.designs)
    shapes = [values.shape for values in (answer.sums, answer.products, answer.gradients)]
    if shapes != [(k,), (k, k), question.thetas.shape]:
        return f"it sent losses of other than {k} candidates"
    if answer.n != asked.n:
        return f"it has {asked.n} texts, but tells of {answer.n}"
    own = np.diag(answer.products)
    if (answer.sums > _WRONG * answer.n).any() or (own > _WRONG**2 * answer.n).any():
        return "its losses are larger than any"
    # The square of a sum of n numbers is at most n times the sum of their squares (Cauchy and Schwarz).
    if (answer.sums < -_ROUNDING).any() or (answer.sums**2 > answer.n * own * (1 + 1e-6) + _ROUNDING).any():
        return "its losses cannot be"
    if (answer.products < -_ROUNDING).any() or not _semidefinite(np.asarray(answer.products), 1e-9):
        return "its losses cannot be: the products of two do not go together"
    if (np.abs(answer.gradients) > _STEEP * answer.n).any():
        return "the derivatives of its losses cannot be"
    return ""


def sums_problem(reading: Reading, n: int, loss: float, correct: int) -> str:
    """Why n texts cannot have this summed loss with so many of them read correctly; empty where they may.

    The label that is read is the most probable one: a text that is read correctly costs at most log C nats,
    one that is not at least log 2, and no text more than the verbalizer's logits can lie apart (of a
    committee, the mean of what its members' can).
    """
    slack = _ROUNDING * max(n, 1)
    wrong = n - correct
    if loss < wrong * np.log(2) - slack:
        return f"{wrong} of {n} texts that are read wrongly cost more than {loss:g} nats"
    farthest = float(np.mean([_farthest(verbalizer) for verbalizer in verbalizers_of(reading)]))
    most = correct * np.log(len(reading.groups)) + wrong * farthest
    return f"{n} texts cannot cost {loss:g} nats" if loss > most * (1 + _ROUNDING) + slack else ""


def _farthest(verbalizer: Verbalizer) -> float:
    """Nats that no text's loss exceeds, whatever the model says of it."""
    low = -LOWEST + np.log(len(verbalizer.words))
    scaled = verbalizer.weights / verbalizer.spread
    centred = scaled - scaled.mean(axis=0)
    logits = verbalizer.bias - scaled @ verbalizer.mean
    weighed = 2 * low * np.abs(centred).sum(axis=1).max()
    labels = np.log(len(verbalizer.groups))
    return float(abs(verbalizer.scale) * low + weighed + np.ptp(logits) + labels)
