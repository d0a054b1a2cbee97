"""What is asked of parties as plain JSON values, and back; numbers come back to the bit.

Reading checks shapes, ranges and finiteness, and raises `MessageError` for whatever does not fit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ParamSpec, TypeVar

import numpy as np

from fedbpt_api.federation.local_search import Plan, Reference
from fedbpt_api.federation.messages import MAX_COUNT, MessageError
from fedbpt_api.federation.tally import Contestant, PairedCounts, Sums, Tally, rivals_of
from fedbpt_api.prompts.codebook import Codebook, CodebookSpace
from fedbpt_api.prompts.padding import PaddedSpace
from fedbpt_api.prompts.soft import SoftSpace
from fedbpt_api.prompts.space import Asked, Ensemble, Ids, PromptSpace, members_of
from fedbpt_api.prompts.written import Job, Line
from fedbpt_api.scoring.backend import Floats, Soft
from fedbpt_api.verbalizer import Committee, Reading, Verbalizer
from fedbpt_api.verbalizer.committee import reading_from_dict

P = ParamSpec("P")
T = TypeVar("T")
Plain = Any  # what JSON can hold

_MAX_IDS = 1 << 16
_MAX_TOKEN = (1 << 31) - 1


def reading(read: Callable[P, T]) -> Callable[P, T]:
    """Turn what plain values can do wrong into a `MessageError`."""

    @functools.wraps(read)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            what = f"{read.__name__.strip('_')}: {type(error).__name__} {error}"
            raise MessageError(f"a message does not hold what it must ({what})") from error

    return checked


def whole(value: Plain, low: int = 0, high: int = MAX_COUNT) -> int:
    """A whole number within its limits.

    Raises:
        ValueError: It is none.
    """
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r} is no whole number from {low} to {high}")
    return value


def finite(value: Plain) -> float:
    """A finite number.

    Raises:
        ValueError: It is none.
    """
    if type(value) not in (int, float) or not np.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


@reading
def to_length(value: Plain, most: int) -> int:
    """A number of bytes, of at most so many."""
    return whole(value, 0, most)


@reading
def to_ids(value: Plain) -> Ids:
    """Token ids."""
    return _numbers(value, 0)


@reading
def to_words(value: Plain) -> Ids:
    """What answers are read for: token ids, numbers of label words that begin alike (`LabelTrie.tokens`)."""
    return _numbers(value, -_MAX_IDS)


def _numbers(value: Plain, low: int) -> Ids:
    if not isinstance(value, list) or len(value) > _MAX_IDS:
        raise ValueError("expected a list of token ids")
    return tuple(whole(token, low, _MAX_TOKEN) for token in value)


@reading
def to_floats(value: Plain, dimensions: int = 1) -> Floats:
    """Finite numbers in so many dimensions."""
    found = np.array(value, dtype=np.float64)
    if found.ndim != dimensions or not np.isfinite(found).all():
        raise ValueError(f"expected finite numbers in {dimensions} dimensions, got shape {found.shape}")
    return found


def of_prompt(prompt: Asked) -> Plain:
    """A prompt, whatever its kind."""
    if isinstance(prompt, Ensemble):
        return {"members": [list(ids) for ids in prompt.members]}
    return {"vectors": prompt.vectors.tolist()} if isinstance(prompt, Soft) else {"ids": list(prompt)}


@reading
def to_prompt(value: Plain) -> Asked:
    """Reads `of_prompt`."""
    ((kind, data),) = value.items()
    if kind == "members":
        return Ensemble(tuple(to_ids(ids) for ids in data))
    if kind == "vectors":
        return Soft(to_floats(data, 2))
    if kind != "ids":
        raise ValueError(f"unknown kind of prompt {kind!r}")
    return to_ids(data)


@reading
def to_reading(value: Plain, prompt: Asked) -> Reading:
    """A verbalizer's or a committee's `to_dict`; a committee has a member for each of the prompts."""
    found = reading_from_dict(value)
    if isinstance(found, Committee) and len(found.members) != len(members_of(prompt)):
        raise ValueError("a committee of other than a member for each prompt")
    return found


@reading
def to_verbalizer(value: Plain) -> Verbalizer:
    """Reads `Verbalizer.to_dict`."""
    return Verbalizer.from_dict(value)


def of_reference(reference: Reference) -> Plain:
    return {"prompt": of_prompt(reference.prompt), "verbalizer": reference.verbalizer.to_dict()}


@reading
def to_reference(value: Plain) -> Reference:
    return Reference(to_prompt(value["prompt"]), to_verbalizer(value["verbalizer"]))


def of_plan(plan: Plan) -> Plain:
    return asdict(plan) | {"vocabulary": list(plan.vocabulary)}


@reading
def to_plan(value: Plain) -> Plan:
    if value["loss"] not in ("cross-entropy", "hinge", "accuracy"):
        raise ValueError(f"unknown loss {value['loss']!r}")
    return Plan(
        population=whole(value["population"], 2, 10_000),
        iterations=whole(value["iterations"], 1, 10_000),
        minibatch=None if value["minibatch"] is None else whole(value["minibatch"], 1),
        loss=value["loss"],
        margin=finite(value["margin"]),
        perturb=finite(value["perturb"]),
        vocabulary=to_ids(value["vocabulary"]),
    )


def of_space(space: PromptSpace) -> Plain:
    """A space with all that decoding takes: no party computes words' coordinates anew.

    Raises:
        MessageError: It is of a kind that does not travel.
    """
    if isinstance(space, SoftSpace):
        return {"kind": "soft", **space.to_dict()}
    if isinstance(space, PaddedSpace):
        fillers = [[missing, list(ids)] for missing, ids in sorted(space.fillers.items())]
        inner = of_space(space.inner)
        return {
            "kind": "padded",
            "inner": inner,
            "block": space.block,
            "lead": space.lead,
            "fillers": fillers,
        }
    if isinstance(space, CodebookSpace):
        return {
            "kind": "codebook",
            "codebook": space.codebook.to_dict(),
            "pieces": [piece if isinstance(piece, int) else list(piece) for piece in space.pieces],
            "anchors": space.anchors.tolist(),
            "bare": None if space.bare is None else list(space.bare),
        }
    raise MessageError(f"a space of kind {type(space).__name__} does not travel")


@reading
def to_space(value: Plain) -> PromptSpace:
    """Reads `of_space`."""
    if value["kind"] == "soft":
        return SoftSpace.from_dict(value)
    if value["kind"] == "padded":
        inner = to_space(value["inner"])
        if not isinstance(inner, CodebookSpace):
            raise ValueError("only a codebook's space is padded")
        fillers = {whole(missing): to_ids(ids) for missing, ids in value["fillers"]}
        return PaddedSpace(inner, whole(value["block"], 1), whole(value["lead"]), fillers)
    if value["kind"] != "codebook":
        raise ValueError(f"unknown kind of space {value['kind']!r}")
    pieces = tuple(whole(p, 0, _MAX_IDS) if isinstance(p, int) else to_ids(p) for p in value["pieces"])
    codebook = Codebook.from_dict(value["codebook"])
    anchors = to_floats(value["anchors"], 2)
    if anchors.shape[1] != codebook.coordinates.shape[1]:
        raise ValueError("anchors and codebook have other coordinates")
    if sum(piece for piece in pieces if isinstance(piece, int)) != len(anchors):
        raise ValueError("the pieces have other positions than there are anchors")
    return CodebookSpace(codebook, pieces, anchors, None if value["bare"] is None else to_ids(value["bare"]))


def of_job(job: Job) -> Plain:
    return {
        "label": job.label,
        "lead": list(job.lead),
        "before": list(job.before),
        "after": list(job.after),
        "seed": list(job.seed),
    }


@reading
def to_job(value: Plain) -> Job:
    seed = tuple(whole(part) for part in value["seed"])
    return Job(
        label=whole(value["label"]),
        lead=to_ids(value["lead"]),
        before=to_ids(value["before"]),
        after=to_ids(value["after"]),
        seed=seed,
    )


def of_line(line: Line) -> Plain:
    return {"label": line.label, "ids": list(line.ids), "confidence": line.confidence}


@reading
def to_line(value: Plain) -> Line:
    return Line(whole(value["label"]), to_ids(value["ids"]), finite(value["confidence"]))


@reading
def to_lines(value: Plain, most: int) -> tuple[Line, ...]:
    """So many lines at most."""
    if len(value) > most:
        raise ValueError(f"{len(value)} lines, where {most} were asked for")
    return tuple(to_line(line) for line in value)


@reading
def to_pairs(value: Plain, most: int, largest: float = math.inf) -> tuple[tuple[int, float], ...]:
    """Words and their sums of squared deviations, so many and so large at most; no word twice."""
    found = tuple((whole(token, 0, _MAX_TOKEN), finite(total)) for token, total in value)
    if len(found) > most or any(not 0 <= total <= largest for _, total in found):
        raise ValueError("sums of squares that cannot be, or too many")
    if len({token for token, _ in found}) < len(found):
        raise ValueError("a word that comes twice")
    return found


def of_sums(sums: Sums) -> Plain:
    return {"n": sums.n, "loss": sums.loss, "correct": sums.correct}


@reading
def to_sums(value: Plain) -> Sums:
    correct = None if value["correct"] is None else whole(value["correct"])
    sums = Sums(whole(value["n"]), finite(value["loss"]), correct)
    if (sums.correct or 0) > sums.n:
        raise ValueError(f"{sums.correct} of {sums.n} texts are correct")
    return sums


def of_contestant(contestant: Contestant) -> Plain:
    return {
        "method": contestant.method,
        "prompt": of_prompt(contestant.prompt),
        "verbalizer": contestant.verbalizer.to_dict(),
    }


@reading
def to_contestant(value: Plain) -> Contestant:
    prompt = to_prompt(value["prompt"])
    return Contestant(str(value["method"]), prompt, to_reading(value["verbalizer"], prompt))


def of_tally(tally: Tally) -> Plain:
    return {
        "confusions": {method: counts.tolist() for method, counts in tally.confusions.items()},
        "paired": {rival: asdict(counts) for rival, counts in tally.paired.items()},
    }


@reading
def to_tally(value: Plain, methods: Sequence[str], labels: int) -> Tally:
    """Reads `of_tally`: of these methods, all over the same texts."""
    if list(value["confusions"]) != list(methods):
        raise ValueError("a tally of other methods than were tested")
    confusions = {
        method: np.array([[whole(n) for n in row] for row in rows], dtype=np.int64)
        for method, rows in value["confusions"].items()
    }
    if {counts.shape for counts in confusions.values()} != {(labels, labels)}:
        raise ValueError(f"counts of other than {labels} labels")
    if set(value["paired"]) != set(rivals_of(methods)):
        raise ValueError("a tally that compares others than were tested")
    paired = {rival: _counts(counts) for rival, counts in value["paired"].items()}
    totals = {int(c.sum()) for c in confusions.values()} | {c.n for c in paired.values()}
    if len(totals) != 1:
        raise ValueError("methods that were tested on different numbers of texts")
    return Tally(confusions, paired)


def _counts(value: Mapping[str, Plain]) -> PairedCounts:
    return PairedCounts(**{name: whole(count) for name, count in value.items()})
