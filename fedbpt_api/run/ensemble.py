"""Prompts that answer together: chosen from those that were judged, without a call.

Prompts that look best on a few dozen texts are hardly better than others (benchmarks/pool.py), but their
errors differ, and a few of them together read better than nearly any of them. So the result is the few
prompts that together read the development texts of all clients best (`verbalizer.committee`): texts that a
reading was fitted on would only repeat their labels. The set is grown one prompt at a time (forward
selection, Caruana et al. 2004, "Ensemble selection from libraries of models"). Clients send a sum a
candidate; texts, labels and readings stay with them.

All scores are paid for; while the answers are used, each text is asked once a member. A prompt of the user's
own that is better on held-out texts by a standard error wins all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import reduce

import numpy as np

from fedbpt_api.aggregate.clipping import without_outliers
from fedbpt_api.prompts.space import Asked, Ensemble, Ids
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.private import hidden_by_noise
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer.committee import alone

ORIGIN = "ensemble"
_ODD = 5.0  # times the median distance from the others' losses
_CLEARLY = 1.0  # standard errors by which a prompt of the user's must be better
_DOUBT = 1.5  # standard deviations of noise in a loss, within which prompts count as equally good


async def choose_ensemble(assessor: Assessor, most: int) -> Assessment:
    """Judge the set of `most` prompts that read held-out texts best together; it is the run's choice.

    Args:
        assessor: Has judged single prompts; is told the choice.
        most: Members of the ensemble; fewer where fewer prompts were judged.

    Raises:
        FedbptError: Too few clients answered, or nothing was judged.
    """
    best = assessor.best()
    single = [a for a in assessor.known.values() if isinstance(a.prompt, tuple) and a.clients]
    common = _regulars(single)
    judged = [a for a in single if common <= a.clients]
    if not isinstance(best.prompt, tuple) or best.fixed or not common or len(judged) < 2:
        return best
    members: list[int] = []
    while len(members) < min(most, len(judged)):
        rest = [p for p in range(len(judged)) if p not in members]
        losses = await _losses(assessor, judged, common, [(*members, p) for p in rest])
        members.append(rest[int(np.argmin(losses))])
    chosen: tuple[Ids, ...] = tuple(a.prompt for p in members if isinstance((a := judged[p]).prompt, tuple))
    asked: Asked = Ensemble(chosen) if len(chosen) > 1 else chosen[0]
    together = await assessor.assess(asked, ORIGIN)
    given = [await assessor.parties.backend.tokenize(text) for text in assessor.settings.prompts]
    rivals = [assessor.known[ids] for ids in given if ids in assessor.known]
    better = [rival for rival in rivals if rival.beats(together, _CLEARLY)]
    assessor.chosen = reduce(lambda found, a: a if a.beats(found) else found, better) if better else together
    return assessor.chosen


async def average_best(assessor: Assessor, most: int) -> Assessment:
    """Judge the best prompts together, as far as noise hides which of them is better.

    Args:
        assessor: Has judged single prompts; is told the choice.
        most: Members of the ensemble; fewer where fewer prompts were judged.

    Raises:
        FedbptError: Too few clients answered, or nothing was judged.
    """
    best = assessor.best()
    texts = [(client.n_train, client.n_dev) for client in assessor.parties.clients]
    hidden = _DOUBT * hidden_by_noise(assessor.settings, texts)
    near = sorted((a for a in assessor.known.values() if a.loss <= best.loss + hidden), key=lambda a: a.loss)
    near = [a for a in near if isinstance(a.prompt, tuple)][:most]
    members = tuple(a.prompt for a in near if isinstance(a.prompt, tuple))
    common = frozenset.intersection(*(a.clients for a in near)) if near else frozenset()
    if len(members) < 2 or not common or not isinstance(best.prompt, tuple):
        return best
    assessor.chosen = await assessor.assess(Ensemble(members), ORIGIN)
    return assessor.chosen


def _regulars(judged: Sequence[Assessment]) -> frozenset[str]:
    """The clients that answered for at least half of the prompts: nobody chooses by what it leaves out."""
    times = Counter(name for a in judged for name in a.clients)
    return frozenset(name for name, count in times.items() if 2 * count >= len(judged))


async def _losses(
    assessor: Assessor, judged: Sequence[Assessment], names: frozenset[str], sets: Sequence[Sequence[int]]
) -> Floats:
    """For each set of places in `judged` its loss on these clients' held-out texts, in nats, summed.

    Only differences between sets mean something. A client whose differences, a text, stand out counts as the
    most extreme of the others would (`aggregate.clipping`).
    """
    pairs = [(a.prompt, alone(a.verbalizer)) for a in judged]
    answers = await assessor.ask(lambda client: client.joint_losses(pairs, sets), names)
    size = 4 * len(sets)  # up a float32 a set, down 16-bit places
    assessor.parties.count_bytes(
        dict.fromkeys(answers.got, size), dict.fromkeys(answers.got, 2 * sum(map(len, sets)))
    )
    texts = {c.name: c.n_dev or c.n_train for c in assessor.parties.clients}
    told = [name for name in sorted(answers.got) if texts[name]]
    rows = np.array([answers.got[name] for name in told])
    found: Floats = np.sum(rows, axis=0)
    away = rows - rows.mean(axis=1, keepdims=True)
    return found + without_outliers(away, [texts[name] for name in told], _ODD)
