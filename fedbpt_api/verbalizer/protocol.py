"""The fit as a conversation: the server's questions, and what it makes of sums over clients.

1. Counts, label means and the covariance within labels give discriminants (`discriminant`), one set for each
   strength of shrinkage. Clients score their texts by them, each text without itself.
2. One regression a candidate (`regression`: scale, biases, trust in the discriminants) on all texts, by
   `Descent`; curvature travels once, at the start. Discriminants that are not trusted drop out.
3. From there the models of the folds, a few exchanges; then their losses on the texts left out.
4. Scale and bias, unless the best candidate is clearly better: by two standard errors (of the difference on
   the same texts). Then the strongest shrinkage within half a standard error of the best. Its model is
   refined until it has converged, and written as weights of words.

Nothing here knows how messages travel: `protocol` is a generator of messages that is sent the answers.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final, TypeVar

import numpy as np

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer import regression
from fedbpt_api.verbalizer.descent import Descent
from fedbpt_api.verbalizer.discriminant import Classes, square
from fedbpt_api.verbalizer.messages import AskCross, AskMoments, AskSums, Begin, Cross, Message, Moments, Sums
from fedbpt_api.verbalizer.regression import Ints
from fedbpt_api.verbalizer.verbalizer import MARGIN, Kind, Verbalizer

STRENGTHS: Final = (0.9, 0.8, 0.6, 0.4, 0.2, 0.1)
"""Strengths of shrinkage that are tried, the strongest first; those below T / (T + n) are left out: with few
texts the covariance is mostly noise."""

_LABELS = 34  # most labels whose means 256 kB allow
_PATH, _FOLD, _REFINE = 9, 4, 12  # most exchanges: models on all texts, models of the folds, the end
_CLEAR, _CLOSE = (
    2.0,
    0.5,
)  # standard errors: discriminants against none, the strongest shrinkage against the best
_ROUGH, _DONE = 1e-6, 1e-10  # largest gradient component after which descents end

Single = type[np.float32]
Double = type[np.float64]
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
Part = Generator[Message, list[Message], None]


def protocol(
    words: Sequence[int], groups: Sequence[Sequence[int]], kind: Kind = "weighted", folds: int = 8
) -> Talk:
    """Yields a message for all clients, is sent their answers, and returns the outcome.

    Args:
        words: Token ids of the T words, label words first.
        groups: For each label the columns of its words.
        kind: The richest kind allowed. "bias" has scale 1; "weighted" may also end as a scale and a bias,
            and does without weights where there are no words beside the label words.
        folds: Folds of the cross-validation.
    """
    plain = Verbalizer.from_words(words, groups)
    if kind == "words":
        return (yield from _words_alone(plain))
    weighted = kind == "weighted"
    more = weighted and len(groups) <= _LABELS and len(words) > sum(map(len, groups))
    width = len(words) if more else 0
    problem = _problem(_typed(Moments, (yield AskMoments(folds, width > 0))), width, weighted)
    if np.count_nonzero(problem.folds) < 2:
        return (yield from _words_alone(plain))
    first = _add(_typed(Sums, (yield problem.begin())))
    paths = [_path(problem, j, first) for j in range(len(problem.candidates))]
    yield from _descend(paths, [-1] * len(paths), np.float32, _PATH, _ROUGH)
    # Scores that would have to be turned round tell only that label means are nearer than chance has them.
    paths = [path for path in paths if path.candidate.strength is None or path.descent.point[-1] > 0]
    crosses, chosen = yield from _cross_validate(problem, paths)
    means = np.sum([a.sums for a in crosses], axis=0) / problem.n
    names = ["words", *(path.candidate.name for path in paths)]
    held_out = tuple((a.n, float(a.sums[chosen])) for a in crosses)
    final = yield from _refine(problem, paths[chosen - 1])
    return Outcome(
        verbalizer=_written(plain, problem, final),
        loss=float(means[chosen]),
        losses=dict(zip(names, means.tolist(), strict=True)),
        n=problem.n,
        held_out=held_out,
        shrinkage=final.candidate.strength,
        residual=final.descent.residual,
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model that is tried: without discriminants where `strength` is None, with scale 1 if not `scaled`."""

    name: str
    strength: float | None = None
    scaled: bool = True


@dataclass(frozen=True, slots=True)
class _Model:
    """A candidate's regression, on all texts or on those outside a fold; its design's number."""

    candidate: _Candidate
    design: int
    descent: Descent


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is known after the first exchange.

    Attributes:
        labels: Texts of each label, shape [C].
        folds: Texts of each fold, shape [folds].
        logits: Label log-probabilities summed over texts, shape [C].
        means: Mean log-probabilities of each label's texts, as they travel, shape [C, T].
        covariance: Within labels, upper triangle, as it travels, shape [T (T + 1) / 2].
        candidates: What is tried, the simplest first; the place of each is its design's.
        margin: As the verbalizer's: None where no client has a bound.
    """

    labels: Ints
    folds: Ints
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
        return Begin(self.labels, self.centre, *single, strong, self.start())

    @property
    def centre(self) -> Floats:
        """Mean label log-probabilities, shape [C]."""
        return np.array(self.logits / self.n)

    @property
    def shares(self) -> Floats:
        """Of the labels, none of them 0, shape [C]."""
        return np.array((self.labels + 0.5) / (self.n + len(self.labels) / 2))

    def start(self) -> Floats:
        """A model [p] whose logits are on average the logarithms of the labels' shares.

        Its scale is 1, or 0 where it will be fitted: there, curvature is largest.
        """
        scaled = self.candidates[0].scaled
        goal = np.log(self.shares) - (0.0 if scaled else self.centre)
        biases = regression.contrasts(len(goal)).T @ goal
        return np.concatenate([[float(not scaled)], biases, [0.0]])

    def penalty(self, candidate: _Candidate) -> tuple[Floats, Floats]:
        """Of each of the candidate's parameters, and what it pulls to."""
        weighted = candidate.strength is not None
        return regression.penalty(self.shares, self.n, scaled=candidate.scaled, weighted=weighted)


def _problem(answers: list[Moments], width: int, weighted: bool) -> _Problem:
    """What the clients' texts add up to, and what is worth trying with it."""
    folds = np.array([a.folds for a in answers], dtype=np.intp).sum(axis=0)
    counts = np.array([a.labels for a in answers], dtype=np.intp)
    logits = np.array([a.logits for a in answers], dtype=np.float64).sum(axis=0)
    labels, upper = counts.sum(axis=0), np.triu_indices(width)
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
    return _Problem(labels, folds, logits, means, covariance, tuple(candidates), margin)


def _words_alone(plain: Verbalizer) -> Talk:
    """Nothing is fitted; the loss of the label words is still asked for."""
    none = np.zeros(0, dtype=np.intp)
    answers = _typed(Cross, (yield AskCross(none, none, none, np.zeros(0))))
    n = sum(a.n for a in answers)
    held_out = tuple((a.n, float(a.sums[0])) for a in answers)
    loss = sum(total for _, total in held_out) / max(1, n)
    return Outcome(plain, loss, {"words": loss}, n, held_out)


def _path(problem: _Problem, place: int, first: Sums) -> _Model:
    """A candidate's model on all texts at its start, of which `first` has the sums."""
    candidate = problem.candidates[place]
    start, second = problem.start(), square(first.curvature[place])
    path = Descent.from_curvature(start, second, problem.penalty(candidate), problem.n)
    path.observe(float(first.losses[place]), first.gradients[place])
    return _Model(candidate, place, path)


def _cross_validate(
    problem: _Problem, paths: list[_Model]
) -> Generator[Message, list[Message], tuple[list[Cross], int]]:
    """Clients' sums of losses of the candidates (label words, then `paths`), and which one is taken."""
    used = [int(k) for k in np.flatnonzero(problem.folds)]
    folds = used * len(paths)
    models = [
        replace(path, descent=path.descent.fold(problem.n - int(problem.folds[k])))
        for path in paths
        for k in used
    ]
    yield from _descend(models, folds, np.float32, _FOLD, 0.0)
    candidates = np.repeat(np.arange(1, len(paths) + 1), len(used))
    ask = AskCross(candidates, _designs(models), np.array(folds), _trials(models, np.float32))
    answers = _typed(Cross, (yield ask))
    n = problem.n
    means = np.sum([a.sums for a in answers], axis=0) / n
    products = np.sum([a.products for a in answers], axis=0) / n
    best = int(means.argmin())
    squares = np.diag(products) + products[best, best] - 2 * products[best]
    errors = np.sqrt(np.maximum(squares - (means - means[best]) ** 2, 0.0) / n)
    if (means[:2] <= means[best] + _CLEAR * errors[:2]).any():
        return answers, 1  # never the label words alone: biases cost nothing
    return answers, 2 + int(np.flatnonzero(means[2:] <= means[best] + _CLOSE * errors[2:])[0])


def _refine(problem: _Problem, path: _Model) -> Generator[Message, list[Message], _Model]:
    """The chosen model from a point near its optimum to the optimum itself."""
    penalty, point = problem.penalty(path.candidate), path.descent.point
    ask = AskSums(np.array([path.design]), np.array([-1]), point[None].astype(np.float64), curvature=True)
    sums = _add(_typed(Sums, (yield ask)))
    final = Descent.from_curvature(point, square(sums.curvature[0]), penalty, problem.n)
    final.observe(float(sums.losses[0]), sums.gradients[0])
    model = replace(path, descent=final)
    yield from _descend([model], [-1], np.float64, _REFINE, _DONE)
    return model


def _descend(
    models: list[_Model], folds: list[int], dtype: Single | Double, exchanges: int, enough: float
) -> Part:
    """Let `models` descend, each on all texts but those of its fold (-1: none is left out)."""
    for _ in range(exchanges):
        going = [j for j, model in enumerate(models) if model.descent.residual > enough]
        if not going:
            return
        some = [models[j] for j in going]
        thetas = _trials(some, dtype)
        ask = AskSums(_designs(some), np.array([folds[j] for j in going]), thetas, curvature=False)
        sums = _add(_typed(Sums, (yield ask)))
        for model, loss, gradient in zip(some, sums.losses, sums.gradients, strict=True):
            model.descent.observe(float(loss), gradient)


def _designs(models: list[_Model]) -> Ints:
    return np.array([model.design for model in models])


def _trials(models: list[_Model], dtype: Single | Double) -> Floats:
    """Trial points of models, as they travel, shape [M, p]."""
    points: Floats = np.array([model.descent.travel(dtype) for model in models]).astype(dtype)
    return points


def _written(plain: Verbalizer, problem: _Problem, model: _Model) -> Verbalizer:
    """The model in terms of words."""
    theta = model.descent.point
    bias = regression.contrasts(len(problem.labels)) @ theta[1:-1]
    strength = model.candidate.strength
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
