"""The fit as a conversation: the server's questions, and what it makes of sums over clients.

1. Counts, means and covariances give the standardisation and the components: the principal axes of the
   standardised words, at most 30 and fewer with many labels (little is lost, and messages stay small).
2. One model per candidate strength on all texts, by `Descent`; curvature travels once, at the start.
3. From there the models of the folds, four exchanges; then their losses on the texts left out.
4. The simplest candidate within half a standard error of the best: scale and bias, weights from the
   strongest penalty to the weakest. (The error is that of the difference to the best on the same texts.)
   Its model is refined until it has converged, and folded back to the words.

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
from fedbpt_api.verbalizer.messages import AskCross, AskMoments, AskSums, Begin, Cross, Message, Moments, Sums
from fedbpt_api.verbalizer.problem import FitError
from fedbpt_api.verbalizer.regression import Ints
from fedbpt_api.verbalizer.verbalizer import MARGIN, Kind, Verbalizer

PENALTIES: Final = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Strengths that are tried, the simplest model first; those below 5/n never win and are left out."""

_COMPONENTS, _PARAMETERS = 30, 68  # most components and most parameters of a model: what 256 kB allow
_PATH, _FOLD, _REFINE = 9, 4, 12  # most exchanges: models on all texts, models of the folds, the end
_ROUGH, _DONE = 1e-6, 1e-10  # largest gradient component after which descents end
_OFFSET = 0.5  # added to each standard deviation
_SCALE = 0.5  # over n: all but free, as prompts differ in how sure the model is with them
_RANK = 1e-9  # axes with less than this share of the first one's variance are none

Single = type[np.float32]
Double = type[np.float64]
Answer = TypeVar("Answer", Moments, Sums, Cross)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of the conversation.

    Attributes:
        verbalizer: The fitted verbalizer.
        penalty: Strength of the weights' penalty; None where there are no weights.
        loss: Cross-validated loss of what was chosen, in nats a text; 0 without texts.
        losses: The same for every candidate, the simplest first.
        n: Training texts of all clients.
        held_out: Each client's texts and the sum of their cross-validated losses, in the order of answers.
        components: Components of the weighted models.
        residual: Largest gradient component at the end; 0 for label words alone.
    """

    verbalizer: Verbalizer
    loss: float
    losses: dict[str, float]
    n: int
    held_out: tuple[tuple[int, float], ...]
    penalty: float | None = None
    components: int = 0
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

    Raises:
        FitError: Answers that do not fit the question.
    """
    plain = Verbalizer.from_words(words, groups)
    if kind == "words":
        return (yield from _words_alone(plain))
    weighted = kind == "weighted"
    more = weighted and _most_components(len(groups)) > 0 and len(words) > sum(map(len, groups))
    width = len(words) if more else 0
    answers = _typed(Moments, (yield AskMoments(folds, width > 0)))
    problem = _problem(answers, width)
    if np.count_nonzero(problem.folds) < 2:
        return (yield from _words_alone(plain))
    begin = Begin(problem.mean, problem.spread, problem.axes, problem.start(scaled=True))
    first = _add(_typed(Sums, (yield begin)))
    candidates = problem.candidates(scaled=weighted)
    paths = [_path(problem, candidate, first) for candidate in candidates]
    yield from _descend(paths, [-1] * len(paths), np.float32, _PATH, _ROUGH)
    crosses, chosen = yield from _cross_validate(problem, paths)
    means = np.sum([a.sums for a in crosses], axis=0) / problem.n
    losses = dict(zip(["words", *(c.name for c in candidates)], means.tolist(), strict=True))
    held_out = tuple((a.n, float(a.sums[chosen])) for a in crosses)
    outcome = Outcome(
        plain, float(means[chosen]), losses, problem.n, held_out, components=problem.axes.shape[1]
    )
    candidate = candidates[chosen - 1]
    final = yield from _refine(problem, candidate, paths[chosen - 1].point)
    fitted = _fold_back(plain, problem, final.point)
    return replace(outcome, verbalizer=fitted, penalty=candidate.strength, residual=final.residual)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model that is tried: without weights where `strength` is None, with scale 1 if not `scaled`."""

    name: str
    strength: float | None = None
    scaled: bool = True


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is known after the first exchange.

    Attributes:
        labels: Texts of each label, shape [C].
        folds: Texts of each fold, shape [folds].
        logits: Label log-probabilities summed over texts, shape [C].
        mean, spread: Standardisation, shape [T].
        axes: Standardised words to components, shape [T, r].
        margin: As the verbalizer's: None where no client has a bound.
    """

    labels: Ints
    folds: Ints
    logits: Floats
    mean: Floats
    spread: Floats
    axes: Floats
    margin: float | None

    @property
    def n(self) -> int:
        return int(self.labels.sum())

    @property
    def size(self) -> int:
        """Parameters of a weighted model."""
        return regression.size(len(self.labels), self.axes.shape[1])

    def candidates(self, scaled: bool) -> list[_Candidate]:
        """What is tried, the simplest first; only biases if not `scaled`."""
        if not scaled:
            return [_Candidate("bias", scaled=False)]
        strengths = [s for s in PENALTIES if self.axes.shape[1] and s >= 5 / self.n]
        weighted = [_Candidate(f"weighted {strength:g}", strength) for strength in strengths]
        return [_Candidate("scale and bias"), *weighted]

    def start(self, scaled: bool) -> Floats:
        """A model [p] whose logits are on average the logarithms of the labels' shares.

        Its scale is 1, or 0 where it will be fitted: there, curvature is largest.
        """
        shares = (self.labels + 0.5) / (self.n + len(self.labels) / 2)
        goal = np.log(shares) - (0.0 if scaled else self.logits / self.n)
        biases = regression.contrasts(len(shares)).T @ goal
        return regression.widen(np.concatenate([[float(not scaled)], biases]), len(shares), self.size)

    def penalty(self, candidate: _Candidate) -> tuple[Floats, Floats]:
        """Of each of the candidate's parameters, and what it pulls to."""
        c = len(self.labels)
        size = c if candidate.strength is None else self.size
        scale = _SCALE / self.n if candidate.scaled else np.inf
        return regression.penalty(c, size, candidate.strength or 0.0, scale)


def _problem(answers: list[Moments], width: int) -> _Problem:
    """Standardisation and components from what the clients' texts add up to."""
    folds = np.array([a.folds for a in answers], dtype=np.intp).sum(axis=0)
    labels = np.array([a.labels for a in answers], dtype=np.intp).sum(axis=0)
    logits = np.array([a.logits for a in answers], dtype=np.float64).sum(axis=0)
    sizes = [int(a.labels.sum()) for a in answers]
    n, upper = max(1, sum(sizes)), np.triu_indices(width)
    if any(a.mean.shape != (width,) or a.scatter.shape != (len(upper[0]),) for a in answers):
        raise FitError(f"a client sent moments of other than {width} words", "do all have one word list?")
    mean = np.sum([a.mean * k / n for a, k in zip(answers, sizes, strict=True)], axis=0).reshape(width)
    scatter = np.sum([a.scatter for a in answers], axis=0).reshape(len(upper[0]))
    for answer, k in zip(answers, sizes, strict=True):
        away = answer.mean - mean
        scatter = scatter + k * away[upper[0]] * away[upper[1]]
    covariance = _square(scatter / n)
    spread = np.sqrt(np.maximum(np.diag(covariance), 0.0)) + _OFFSET
    variances, axes = np.linalg.eigh(covariance / np.outer(spread, spread))
    rank = int(np.count_nonzero(variances > _RANK * max(variances.max(initial=0.0), _RANK)))
    kept = max(0, min(_most_components(len(labels)), rank, n - 1))
    if not kept:
        return _Problem(labels, folds, logits, np.zeros(0), np.zeros(0), np.zeros((0, 0)), None)
    margin = MARGIN if any(a.bounded for a in answers) else None
    return _Problem(labels, folds, logits, mean, spread, axes[:, ::-1][:, :kept], margin)


def _most_components(labels: int) -> int:
    """So many that a model has at most 68 parameters; none with more than 34 labels."""
    return max(0, min(_COMPONENTS, (_PARAMETERS - 1) // (labels - 1) - 1))


def _words_alone(plain: Verbalizer) -> Talk:
    """Nothing is fitted; the loss of the label words is still asked for."""
    none = np.zeros(0, dtype=np.intp)
    answers = _typed(Cross, (yield AskCross(none, none, none, np.zeros(0))))
    n = sum(a.n for a in answers)
    held_out = tuple((a.n, float(a.sums[0])) for a in answers)
    loss = sum(total for _, total in held_out) / max(1, n)
    return Outcome(plain, loss, {"words": loss}, n, held_out)


def _path(problem: _Problem, candidate: _Candidate, first: Sums) -> Descent:
    """A candidate's model on all texts at its start; `first` are the sums at the start with scale 0."""
    penalty = problem.penalty(candidate)
    c, p = len(problem.labels), problem.size
    rows = regression.bias_columns(c, p) if candidate.strength is None else np.arange(p)
    second = _square(first.curvature)[np.ix_(rows, rows)]
    path = Descent.from_curvature(problem.start(candidate.scaled)[rows], second, penalty, problem.n)
    if candidate.scaled:
        path.observe(float(first.losses[0]), first.gradients[rows])
    return path


def _cross_validate(
    problem: _Problem, paths: list[Descent]
) -> Generator[Message, list[Message], tuple[list[Cross], int]]:
    """Clients' sums of losses of the candidates (label words, then `paths`), and which one is taken."""
    used = [int(k) for k in np.flatnonzero(problem.folds)]
    folds = used * len(paths)
    models = [path.fold(problem.n - int(problem.folds[k])) for path in paths for k in used]
    yield from _descend(models, folds, np.float32, _FOLD, 0.0)
    candidates = np.repeat(np.arange(1, len(paths) + 1), len(used))
    ask = AskCross(candidates, np.array(folds), *_pack(models, np.float32))
    answers = _typed(Cross, (yield ask))
    n = problem.n
    means = np.sum([a.sums for a in answers], axis=0) / n
    products = np.sum([a.products for a in answers], axis=0) / n
    best = int(means.argmin())
    squares = np.diag(products) + products[best, best] - 2 * products[best]
    errors = np.sqrt(np.maximum(squares - (means - means[best]) ** 2, 0.0) / n)
    close = np.flatnonzero(means <= means[best] + errors / 2)
    return answers, max(int(close[0]), 1)  # never the label words alone: biases cost nothing


def _refine(
    problem: _Problem, candidate: _Candidate, point: Floats
) -> Generator[Message, list[Message], Descent]:
    """The chosen model from a point near its optimum to the optimum itself."""
    penalty = problem.penalty(candidate)
    start = Descent(point, np.zeros((0, 0)), penalty, problem.n)
    sizes, thetas = _pack([start], np.float64)
    sums = _add(_typed(Sums, (yield AskSums(np.array([-1]), sizes, thetas, curvature=True))))
    final = Descent.from_curvature(point, _square(sums.curvature), penalty, problem.n)
    final.observe(float(sums.losses[0]), sums.gradients)
    yield from _descend([final], [-1], np.float64, _REFINE, _DONE)
    return final


def _descend(
    models: list[Descent], folds: list[int], dtype: Single | Double, exchanges: int, enough: float
) -> Part:
    """Let `models` descend, each on all texts but those of its fold (-1: none is left out)."""
    for _ in range(exchanges):
        going = [j for j, model in enumerate(models) if model.residual > enough]
        if not going:
            return
        sizes, thetas = _pack([models[j] for j in going], dtype)
        ask = AskSums(np.array([folds[j] for j in going]), sizes, thetas, curvature=False)
        sums = _add(_typed(Sums, (yield ask)))
        if sums.gradients.shape != thetas.shape or sums.losses.shape != sizes.shape:
            raise FitError("a client sent other sums than it was asked for")
        gradients = np.split(sums.gradients, np.cumsum(sizes)[:-1])
        for j, loss, gradient in zip(going, sums.losses, gradients, strict=True):
            models[j].observe(float(loss), gradient)


def _pack(models: list[Descent], dtype: Single | Double) -> tuple[Ints, Floats]:
    """Sizes and trial points of models, as they travel."""
    points = [model.travel(dtype) for model in models]
    thetas: Floats = np.concatenate(points).astype(dtype)
    return np.array([len(point) for point in points]), thetas


def _fold_back(plain: Verbalizer, problem: _Problem, theta: Floats) -> Verbalizer:
    """The model in terms of words instead of components."""
    c = len(problem.labels)
    slopes = regression.contrasts(c) @ theta[1:].reshape(c - 1, -1)
    if len(theta) == c:
        return Verbalizer.from_bias(plain.words, plain.groups, theta[0], slopes[:, 0])
    return Verbalizer(
        words=plain.words,
        groups=plain.groups,
        scale=float(theta[0]),
        bias=slopes[:, 0],
        weights=slopes[:, 1:] @ problem.axes.T,
        mean=problem.mean,
        spread=problem.spread,
        kind="weighted",
        margin=problem.margin,
    )


def _typed(cls: type[Answer], answers: list[Message]) -> list[Answer]:
    """The answers, which must all be of the type that was asked for."""
    typed = [answer for answer in answers if isinstance(answer, cls)]
    if not answers or len(typed) != len(answers):
        raise FitError(f"expected {cls.__name__} from every client", "do all run the same version?")
    return typed


def _add(answers: list[Sums]) -> Sums:
    """Sums over all clients, in double precision."""
    if len({(a.losses.shape, a.gradients.shape, a.curvature.shape) for a in answers}) > 1:
        raise FitError("clients sent sums of different lengths", "do all have one word list?")

    def total(name: str) -> Floats:
        return reduce(np.add, (getattr(a, name).astype(np.float64) for a in answers))

    return Sums(total("losses"), total("gradients"), total("curvature"))


def _square(upper: Floats) -> Floats:
    """A symmetric matrix from its upper triangle, row by row."""
    width = int(np.sqrt(2 * len(upper) + 0.25) - 0.5)
    full = np.zeros((width, width))
    full[np.triu_indices(width)] = upper
    return full + np.triu(full, 1).T
