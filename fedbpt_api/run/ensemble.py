"""Prompts that answer together: chosen greedily from those that were judged, without a call.

Single prompts that look best on a few dozen texts are hardly better than others, but their errors differ, and
the mean of their log-probabilities (a product of experts) is better than most of them. Forward selection
(Caruana et al. 2004, "Ensemble selection from libraries of models"): beginning with the best prompt, the one
is added with which the held-out loss of all together is smallest. All scores are paid for; while the answers
are used, each text is asked once a member.

The best of many prompts owes its loss to luck as well, the mean of several much less. So an ensemble need not
beat the best single prompt on the texts that both were chosen by, only the prompts that nobody chose:
those that the user gave.
"""

from __future__ import annotations

from fedbpt_api.prompts.space import Ensemble, Ids
from fedbpt_api.run.assess import Assessment, Assessor
from fedbpt_api.verbalizer import Kind

_CONSIDERED = 32  # of the best prompts
ORIGIN = "ensemble"


async def choose_ensemble(assessor: Assessor, most: int) -> Assessment:
    """Judge the best set of `most` prompts; it is the run's choice unless one of the user's own is better.

    Args:
        assessor: Has judged single prompts; is told the choice.
        most: Members of the ensemble; fewer where fewer prompts were judged.

    Raises:
        FedbptError: Too few clients answered, or nothing was judged.
    """
    best = assessor.best()
    single = [a for a in assessor.known.values() if isinstance(a.prompt, tuple) and a.clients == best.clients]
    ranked = sorted(single, key=lambda a: a.loss)[:_CONSIDERED]
    if not isinstance(best.prompt, tuple) or best.fixed:
        return best
    # A bias is enough to choose by, and its fit takes a client a tenth of the bytes of weights.
    kind: Kind = "words" if assessor.settings.verbalizer.kind == "words" else "bias"
    members: tuple[Ids, ...] = (best.prompt,)
    while len(members) < most:
        found: list[tuple[float, Ids]] = []
        for other in ranked:
            if isinstance(other.prompt, tuple) and other.prompt not in members:
                tried = await assessor.held_out(Ensemble((*members, other.prompt)), kind)
                found.append((tried.mean_loss, other.prompt))
        if not found:
            break
        members = (*members, min(found, key=lambda pair: pair[0])[1])
    if len(members) > 1:
        together = await assessor.assess(Ensemble(members), ORIGIN)
        given = [await assessor.parties.backend.tokenize(text) for text in assessor.settings.prompts]
        rivals = [assessor.known[ids] for ids in given if ids in assessor.known]
        if not any(rival.beats(together) for rival in rivals):
            assessor.chosen = together
    return assessor.best()
