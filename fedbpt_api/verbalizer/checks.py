"""Is what a client answers possible at all? Bounds that hold whatever its texts are.

One client's numbers are added to those of all; so a number that no texts could give is refused before that,
with the client's name. What is possible but untrue is bounded by the client's share of the texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from fedbpt_api.verbalizer.discriminant import square, triangle
from fedbpt_api.verbalizer.messages import AskCross, AskMoments, AskSums, Begin, Cross, Message, Moments, Sums
from fedbpt_api.verbalizer.verbalizer import LOWEST

_STEEP: Final = 1e4  # largest derivative of one text's loss; scores have unit variance within labels
_ROUNDING: Final = 1e-6


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
    return "" if 0 <= answer.bounded <= n * asked.width else "its number of bounds is none"


def _sums(asked: Asked, answer: Sums, models: int, p: int) -> str:
    second = (models, p * (p + 1) // 2)
    shapes = [values.shape for values in (answer.losses, answer.gradients, answer.curvature)]
    if shapes != [(models,), (models, p), second]:
        return f"it sent other sums than those of {models} models of {p} parameters"
    n = asked.n
    if (answer.losses < -_ROUNDING).any() or (np.abs(answer.gradients) > _STEEP * n).any():
        return "its losses or their derivatives cannot be"
    rows, columns = triangle(p)
    own = answer.curvature[:, rows == columns]
    if (own < -_ROUNDING * max(n, 1)).any() or (own > _STEEP**2 * n).any():
        return "its curvature cannot be"
    return ""


def _cross(asked: Asked, question: AskCross, answer: Cross) -> str:
    k = 1 + len(question.designs)
    shapes = [values.shape for values in (answer.sums, answer.products, answer.gradients)]
    if shapes != [(k,), (k, k), question.thetas.shape]:
        return f"it sent losses of other than {k} candidates"
    if answer.n != asked.n:
        return f"it has {asked.n} texts, but tells of {answer.n}"
    own = np.diag(answer.products)
    # The square of a sum of n numbers is at most n times the sum of their squares (Cauchy and Schwarz).
    if (answer.sums < -_ROUNDING).any() or (answer.sums**2 > answer.n * own * (1 + 1e-6) + _ROUNDING).any():
        return "its losses cannot be"
    if (np.abs(answer.gradients) > _STEEP * answer.n).any():
        return "the derivatives of its losses cannot be"
    return ""
