"""The fit as a conversation: the server's questions, and what it makes of sums over clients.

1. Counts, label means and the covariance within labels give discriminants (`discriminant`), one set for each
   strength of shrinkage. Clients score their texts by them, each text without itself.
2. One regression a candidate (`regression`: scale, biases, trust in the discriminants) on all texts, all side
   by side, by Newton's method: sums of losses, gradients and curvature, a few exchanges.
3. At the optima, each text's loss under the models without it (`regression.left_out`): one exchange, in which
   the last step is seen to have been the last. Discriminants that are not trusted drop out.
4. The simplest candidate within half a standard error of the best (of the difference on the same texts):
   scale and bias, then the strongest shrinkage. It is written as weights of words.

Nothing here knows how messages travel: `protocol` is a generator of messages that is sent the answers.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final, TypeVar

import numpy as np

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer import regression
from fedbpt_api.verbalizer.discriminant import Classes, square, triangle
from fedbpt_api.verbalizer.messages import AskCross, AskMoments, AskSums, Begin, Cross, Message, Moments, Sums
from fedbpt_api.verbalizer.newton import Descent
from fedbpt_api.verbalizer.regression import Ints
from fedbpt_api.verbalizer.verbalizer import MARGIN, Kind, Verbalizer

STRENGTHS: Final = (0.9, 0.8, 0.6, 0.4, 0.2, 0.1)
"""Strengths of shrinkage that are tried, the strongest first; those below T / (T + n) are left out: with few
texts the covariance is mostly noise."""

_LABELS = 28  # most labels whose means 256 kB allow
_TRUST = 0.7  # in discriminants, at the start: usual values are 0.4 to 1.6
_STEPS = 16  # most of Newton's
_NEAR = 1e-7  # nats a text; a step that promises less is the last
_CLOSE = 0.5  # standard errors of the best within which the simplest is taken; see docs/search.md

Answer = TypeVar("Answer", Moments, Sums, Cross)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of the conversation.

    Attributes:
        verbalizer: The fitted verbalizer.
        shrinkage: Strength of the covariance's shrinkage; None where there are no weights.
        loss: Cross-validated loss of what was chosen, in nats a text; 0 without texts.
        losses: The same for every candidate, the simplest first.
        n: Training texts of all clients.
        held_out: Each client's texts and the sum of their cross-validated losses, in the order of answers.
        residual: Largest gradient component at the end; 0 for label words alone.
    """

    verbalizer: Verbalizer
    loss: float
    losses: dict[str, float]
    n: int
    held_out: tuple[tuple[int, float], ...]
    shrinkage: float | None = None
    residual: float = 0.0


Talk = Generator[Message, list[Message], Outcome]


def protocol(words: Sequence[int], groups: Sequence[Sequence[int]], kind: Kind = "weighted") -> Talk:
    """Yields a message for all clients, is sent their answers, and returns the outcome.

    Args:
        words: Token ids of the T words, label words first.
        groups: For each label the columns of its words.
        kind: The richest kind allowed. "bias" has scale 1; "weighted" may also end as a scale and a bias,
            and does without weights where there are no words beside the label words.
    """
    plain = Verbalizer.from_words(words, groups)
    if kind == "words":
        return (yield from _words_alone(plain))
    weighted = kind == "weighted"
    more = weighted and len(groups) <= _LABELS and len(words) > sum(map(len, groups))
    width = len(words) if more else 0
    problem = _problem(_typed(Moments, (yield AskMoments(width > 0))), width, weighted)
    if problem.n < 2:
        return (yield from _words_alone(plain))
    first = _add(_typed(Sums, (yield problem.begin())))
    models = [problem.model(candidate) for candidate in problem.candidates]
    _observe(models, first)
    designs = np.arange(len(models))
    for _ in range(_STEPS):
        if max(model.promise for model in models) < _NEAR:
            break
        thetas = np.array([model.trial for model in models])
        _observe(models, _add(_typed(Sums, (yield AskSums(designs, thetas)))))
    crosses = _typed(Cross, (yield _ask_cross(models)))
    # Scores that would have to be turned round tell only that label means are nearer than chance has them.
    taken = [
        j for j in range(len(models)) if problem.candidates[j].strength is None or models[j].trial[-1] > 0
    ]
    means = np.sum([a.sums for a in crosses], axis=0) / problem.n
    chosen = _choice(means, np.sum([a.products for a in crosses], axis=0) / problem.n, problem.n, taken)
    slope = models[chosen].slope(np.sum([a.gradients[chosen] for a in crosses], axis=0))
    names = {"words": 0} | {problem.candidates[j].name: 1 + j for j in taken}
    return Outcome(
        verbalizer=_written(plain, problem, problem.candidates[chosen], models[chosen].trial),
        loss=float(means[1 + chosen]),
        losses={name: float(means[place]) for name, place in names.items()},
        n=problem.n,
        held_out=tuple((a.n, float(a.sums[1 + chosen])) for a in crosses),
        shrinkage=problem.candidates[chosen].strength,
        residual=float(np.abs(slope).max()),
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model that is tried: without discriminants where `strength` is None, with scale 1 if not `scaled`."""

    name: str
    strength: float | None = None
    scaled: bool = True


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is known after the first exchange.

    Attributes:
        labels: Texts of each label, shape [C].
        logits: Label log-probabilities summed over texts, shape [C].
        means: Mean log-probabilities of each label's texts, as they travel, shape [C, T].
        covariance: Within labels, upper triangle, as it travels, shape [T (T + 1) / 2].
        candidates: What is tried, the simplest first; the place of each is its design's.
        margin: As the verbalizer's: None where no client has a bound.
    """

    labels: Ints
    logits: Floats
    means: Floats
    covariance: Floats
    candidates: tuple[_Candidate, ...]
    margin: float | None

    @property
    def n(self) -> int:
        return int(self.labels.sum())

    @property
    def classes(self) -> Classes:
        return Classes.of(self.labels, self.means, square(self.covariance))

    def begin(self) -> Begin:
        """What clients are told; without moments where there is nothing to weigh."""
        strengths = [c.strength for c in self.candidates if c.strength is not None]
        means, covariance = (self.means, self.covariance) if strengths else (self.means[:, :0], np.zeros(0))
        single = (means.astype(np.float32), covariance.astype(np.float32))
        strong = np.array(strengths, dtype=np.float64)
        thetas = np.array([self.start(candidate) for candidate in self.candidates])
        return Begin(self.labels, self.centre, *single, strong, thetas)

    @property
    def centre(self) -> Floats:
        """Mean label log-probabilities, shape [C]."""
        return np.array(self.logits / self.n)

    @property
    def shares(self) -> Floats:
        """Of the labels, none of them 0, shape [C]."""
        return np.array((self.labels + 0.5) / (self.n + len(self.labels) / 2))

    def start(self, candidate: _Candidate) -> Floats:
        """Where a candidate's model begins, shape [p]: logits are on average the logarithms of shares."""
        goal = np.log(self.shares)
        scale, trust = (1.0, 0.0) if candidate.strength is None else (0.0, _TRUST)
        if candidate.strength is None:
            goal = goal - self.centre
        return np.concatenate([[scale], regression.contrasts(len(goal)).T @ goal, [trust]])

    def model(self, candidate: _Candidate) -> Descent:
        """A candidate's, at its start."""
        weighted = candidate.strength is not None
        penalty = regression.penalty(self.shares, self.n, scaled=candidate.scaled, weighted=weighted)
        return Descent(self.start(candidate), penalty, self.n)


def _problem(answers: list[Moments], width: int, weighted: bool) -> _Problem:
    """What the clients' texts add up to, and what is worth trying with it."""
    counts = np.array([a.labels for a in answers], dtype=np.intp)
    logits = np.array([a.logits for a in answers], dtype=np.float64).sum(axis=0)
    labels, upper = counts.sum(axis=0), triangle(width)
    shares = counts / np.maximum(labels, 1)
    means = np.sum([a.means * share[:, None] for a, share in zip(answers, shares, strict=True)], axis=0)
    scatter = np.sum([a.scatter for a in answers], axis=0)
    for answer, own in zip(answers, counts, strict=True):
        away = (answer.means - means) * np.sqrt(own)[:, None]
        scatter = scatter + (away.T @ away)[upper]
    # Rounded as they travel, so that server and clients have the same discriminants.
    means, covariance = (
        x.astype(np.float32).astype(np.float64) for x in (means, scatter / max(1, labels.sum()))
    )
    candidates = [_Candidate("scale and bias" if weighted else "bias", scaled=weighted)]
    if width and not Classes.of(labels, means, square(covariance)).flat:
        least = width / (width + labels.sum())
        candidates += [_Candidate(f"weighted {s:g}", s) for s in STRENGTHS if s >= min(least, STRENGTHS[0])]
    margin = MARGIN if any(a.bounded for a in answers) else None
    return _Problem(labels, logits, means, covariance, tuple(candidates), margin)


def _words_alone(plain: Verbalizer) -> Talk:
    """Nothing is fitted; the loss of the label words is still asked for."""
    answers = _typed(Cross, (yield _ask_cross([])))
    n = sum(a.n for a in answers)
    held_out = tuple((a.n, float(a.sums[0])) for a in answers)
    loss = sum(total for _, total in held_out) / max(1, n)
    return Outcome(plain, loss, {"words": loss}, n, held_out)


def _observe(models: list[Descent], sums: Sums) -> None:
    """Let the models take a step."""
    for model, loss, gradient, second in zip(
        models, sums.losses, sums.gradients, sums.curvature, strict=True
    ):
        model.observe(float(loss), gradient, square(second))


def _ask_cross(models: list[Descent]) -> AskCross:
    """Asks for losses of texts left out, at the models' trial points."""
    k, p = len(models), len(models[0].trial) if models else 0
    upper = triangle(p)
    second = np.array([model.without_one[upper] for model in models], dtype=np.float32)
    return AskCross(
        designs=np.arange(k),
        thetas=np.array([model.trial for model in models]).reshape(k, p),
        free=np.array([model.free for model in models], dtype=np.intp).reshape(k, p),
        pulls=np.array([model.pull(model.trial) for model in models]).reshape(k, p),
        curvature=second.reshape(k, len(upper[0])),
    )


def _choice(means: Floats, products: Floats, n: int, taken: list[int]) -> int:
    """Which candidate is taken.

    Args:
        means: Mean losses, of the label words and of all candidates, shape [K + 1].
        products: Mean products of two losses on the same text, shape [K + 1, K + 1].
        n: Texts.
        taken: Candidates that may be.
    """
    places = np.array([1 + j for j in taken])  # never the label words alone: biases cost nothing
    best = places[means[places].argmin()]
    squares = np.diag(products) + products[best, best] - 2 * products[best]
    errors = np.sqrt(np.maximum(squares - (means - means[best]) ** 2, 0.0) / n)
    return int(next(k for k in places if means[k] <= means[best] + _CLOSE * errors[k])) - 1


def _written(plain: Verbalizer, problem: _Problem, candidate: _Candidate, theta: Floats) -> Verbalizer:
    """A candidate's model in terms of words."""
    bias = regression.contrasts(len(problem.labels)) @ theta[1:-1]
    strength = candidate.strength
    if strength is None:
        return Verbalizer.from_bias(plain.words, plain.groups, theta[0], bias)
    classes = problem.classes
    bias = bias - theta[0] * problem.centre - theta[-1] * classes.offsets(strength)
    return Verbalizer(
        words=plain.words,
        groups=plain.groups,
        scale=float(theta[0]),
        bias=bias - bias.mean(),
        weights=theta[-1] * classes.directions(strength),
        mean=classes.mean,
        spread=np.ones_like(classes.mean),
        kind="weighted",
        margin=problem.margin,
    )


def _typed(cls: type[Answer], answers: list[Message]) -> list[Answer]:
    """The answers, all of the type that was asked for (`checks` has seen to it)."""
    return [answer for answer in answers if isinstance(answer, cls)]


def _add(answers: list[Sums]) -> Sums:
    """Sums over all clients, in double precision."""

    def total(name: str) -> Floats:
        return reduce(np.add, (getattr(a, name).astype(np.float64) for a in answers))

    return Sums(total("losses"), total("gradients"), total("curvature"))
