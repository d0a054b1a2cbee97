"""Cross-scoring: whose answers make the others' texts be read worse? Found without a call, and left out.

What a party sends is checked for what no texts could give (`verbalizer.checks`); numbers that are possible
but untrue can still spoil every verbalizer that they are added to. So a judged prompt's verbalizer is fitted
without each party in turn, and every other party says what that fit costs on its texts: training texts as the
fit's own cross-validation holds them out, and development texts. All of that is messages; scores are paid
for. A party without which the others do clearly better is left out of the run, and what was judged with it is
fitted anew: leave-one-out influence, with other parties' held-out losses as the measure, one party at a time
(the worst first, as one that spoils all fits makes any other look bad).

No party says anything of itself, and the mean over the others is trimmed, so that one liar cannot clear
itself. It could lie in all fits but those without another one, who would look as harmful then as it is; but
the fits without the liar are as good. So where two are as harmful nobody is left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from fedbpt_api.fanning import side_by_side
from fedbpt_api.federation.tally import Sums
from fedbpt_api.prompts.space import Ensemble
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.scoring.backend import Floats

FEWEST: Final = 4
"""Parties among which one can be told from the rest."""

MOST: Final = 32
"""Parties for which so many fits are made; among more, one has little weight."""

_ERRORS = 4.0  # standard errors by which the others must do better
_APART = 2.0  # standard errors by which the most harmful one must be ahead of the next
_SPREAD = 0.3  # least standard deviation of two readings' difference in loss on a text, in nats


def gain(before: Mapping[str, Sums], after: Mapping[str, Sums]) -> tuple[float, float]:
    """What some parties' texts gain by another reading: its trimmed mean over parties and a standard error.

    The error is that of a trimmed mean from winsorised values (J. Tukey, D. McLaughlin 1963, Sankhya A 25),
    but no less than `_SPREAD` over the square root of the number of texts. One party is cut at each end.

    Args:
        before: Sums by party.
        after: The same under the other reading; a party that has none of both is left aside.

    Returns:
        Nats a text; minus infinity where fewer than 3 parties tell.
    """
    names = [name for name in sorted(after) if after[name].n and before.get(name, Sums()).n]
    count = len(names)
    if count < 3:
        return -math.inf, math.inf
    gains = np.sort([before[name].mean_loss - after[name].mean_loss for name in names])
    floor = _SPREAD / math.sqrt(sum(after[name].n for name in names))
    winsorised: Floats = np.clip(gains, gains[1], gains[-2])
    error = float(winsorised.std(ddof=1)) / ((1 - 2 / count) * math.sqrt(count))
    return float(gains[1:-1].mean()), max(error, floor)


def suspect(everyone: Mapping[str, Sums], without: Mapping[str, Mapping[str, Sums]]) -> str | None:
    """The party without which the others do clearly better, and better than without any other; None if none.

    Args:
        everyone: Held-out sums by party, of the reading that all took part in.
        without: For each party the others' sums, of the reading fitted without it.
    """
    gains = {name: gain(everyone, others) for name, others in sorted(without.items())}
    ranked = sorted(gains, key=lambda name: gains[name][0], reverse=True)
    if len(ranked) < FEWEST:
        return None
    mean, error = gains[ranked[0]]
    alone = mean - gains[ranked[1]][0] > _APART * error
    return ranked[0] if mean > _ERRORS * error and alone else None


async def leave_out_suspects(assessor: Assessor, judged: Assessment) -> list[str]:
    """Leave those out of the run whose answers, by cross-scoring a judged prompt, harm the others.

    At most a quarter of the parties. Nothing is scored anew.

    Returns:
        Whom; nobody as a rule.

    Raises:
        QuorumError: Too few parties answered.
    """
    parties, found = assessor.parties, list[str]()
    plain = assessor.settings.federation.cross_scoring and assessor.settings.privacy.mode == "none"
    most = len(parties.clients) // 4 if plain and not judged.fixed else 0
    while len(found) < most:
        names = sorted(judged.clients & {client.name for client in parties.clients})
        if not FEWEST <= len(names) <= MOST:
            break
        if isinstance(judged.prompt, Ensemble):  # by one verbalizer for their mean, with and without each
            judged = await _among(assessor, judged, names)
        work = [_among(assessor, judged, [n for n in names if n != left]) for left in names]
        others = [_held_out(one) for one in await side_by_side(work)]
        name = suspect(_held_out(judged), dict(zip(names, others, strict=True)))
        if name is None or assessor.made_up:
            break
        texts = gain(_held_out(judged), others[names.index(name)])[0]
        why = f"without its answers the others' texts are read better, by {texts:.2f} nats a text"
        await leave_out(assessor, name, why)
        judged = assessor.known.get(judged.prompt, judged)
        found.append(name)
    return found


async def leave_out(assessor: Assessor, name: str, why: str) -> None:
    """Leave a party out of the run, and out of all that was judged with it.

    Raises:
        QuorumError: Too few parties answered.
    """
    assessor.parties.leave_out(name, why)
    names = [client.name for client in assessor.parties.clients]
    kept = [
        judged
        for judged in assessor.known.values()
        if not isinstance(judged.prompt, Ensemble) and not judged.train.keys().isdisjoint(names)
    ]  # prompts that answer together are chosen anew
    found = await side_by_side([_among(assessor, judged, names) for judged in kept])
    assessor.known = {judged.prompt: judged for judged in found}
    if assessor.centre is not None:
        assessor.centre = assessor.known.get(assessor.centre.prompt, assessor.centre)
    assessor.chosen = None


async def _among(assessor: Assessor, judged: Assessment, names: Collection[str]) -> Assessment:
    """A judged prompt as these parties alone have it, as far as they answered, its verbalizer fitted anew."""
    train, dev, floor = (
        {name: sums for name, sums in part.items() if name in names}
        for part in (judged.train, judged.dev, judged.floor)
    )
    if judged.fixed:
        return replace(judged, train=train, dev=dev, floor=floor)
    fits = await assessor.ask(lambda party: party.fit(judged.prompt, assessor.parties.groups), train)
    verbalizer, report = await assessor.fitted(list(fits.got.values()), assessor.settings.verbalizer.kind)
    train = {name: Sums(n, loss) for name, (n, loss) in report.held_out.items()}
    if dev:
        told = dev.keys() & train.keys()
        dev = dict((await assessor.ask(lambda party: party.evaluate(judged.prompt, verbalizer), told)).got)
    return replace(judged, verbalizer=verbalizer, train=train, dev=dev, floor=floor, repeated=False)


def _held_out(judged: Assessment) -> dict[str, Sums]:
    """Each party's sums over its texts, none of them read by what was fitted on it."""
    return {name: judged.train[name] + judged.dev[name] for name in sorted(judged.clients)}
