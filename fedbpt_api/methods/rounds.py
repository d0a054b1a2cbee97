"""FedBPT's rounds (arXiv 2310.01467, section 3): local searches side by side, one merge, all clients judge.

A round: the server sends its mean and step size; every client that is asked runs CMA-ES from there on its own
loss (step 2), sends its mean, loss and step sizes (step 3); the aggregator merges them (step 4). Beyond the
paper every merged prompt, and some client's best candidate, is judged on all clients' texts, so that the best
prompt is known and kept whatever later rounds do.
"""

from __future__ import annotations

import numpy as np

from fedbpt_api.aggregate import Aggregator, FedAvg, FedBPT, Median, Trimmed
from fedbpt_api.federation.latecomers import Latecomers
from fedbpt_api.federation.local_search import Plan, Reference
from fedbpt_api.federation.runtime import Late, Round, Rules, ask_all, sample, search_round
from fedbpt_api.federation.summed_round import SummedParty, summed_round
from fedbpt_api.methods.searching import Searching, Stop
from fedbpt_api.prompts.space import PromptSpace
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.config import FederationSettings
from fedbpt_api.run.origins import choose_origin, settled
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.verbalizer.committee import alone

_MOST_IDLE = 20  # rounds in a row that found no prompt that is new


async def search(run: Searching) -> Stop:
    """Judge the starting prompts, then search around the best of them."""
    run.phase("starting prompts")
    centre, space = await choose_origin(run.assessor, await run.codebook())
    run.note(run.begun, centre, None, run.settings.search.sigma)
    if settled(run.assessor):
        return "settled"
    return await around(run, centre, space)


async def around(run: Searching, centre: Assessment, space: PromptSpace) -> Stop:
    """Rounds from the centre until the budget or the rounds end."""
    late: Late = Latecomers(run.lateness)
    try:
        return await _around(run, centre, space, late)
    finally:
        await late.aclose()


async def _around(run: Searching, centre: Assessment, space: PromptSpace, late: Late) -> Stop:
    run.phase("search")
    run.space, run.assessor.centre = space, centre
    settings, federation = run.settings.search, run.settings.federation
    f = federation
    rules = Rules(f.participation, f.quorum, f.timeout, f.clip, f.late)
    plan = Plan(
        population=settings.popsize,
        iterations=settings.iterations,
        minibatch=settings.minibatch,
        loss=settings.loss,
        margin=settings.margin,
        perturb=settings.perturb,
        vocabulary=(await run.codebook()).tokens if settings.perturb else (),
    )
    reference = Reference(centre.prompt, alone(centre.verbalizer))
    aggregator = aggregator_of(federation)
    state = aggregator.initial(np.zeros(space.dimension), settings.sigma)
    idle = 0
    most = 0 if settings.rounds is None and run.settings.privacy.mode == "gaussian" else settings.rounds
    while most is None or state.round < most:
        if idle == _MOST_IDLE:
            return "cap"
        clock = run.meter()
        asked = sample(run.parties.clients, rules.participation, run.settings.seed, state.round)
        together = asked[0]
        if isinstance(together, SummedParty):
            merged = await summed_round(together, state, aggregator, space, plan, reference)
        else:
            merged = await search_round(asked, state, aggregator, space, plan, reference, rules, late)
        run.parties.go_on(None)
        run.parties.go_on_without(merged.missing, merged.refused)
        state = merged.state
        shown, ended = run.assessor.best(), merged.spent
        try:
            points = [(state.mean, "merged mean")]
            points += [(z, "best candidate") for z in await _proposals(run, merged, settings.proposals)]
            judged = [(space.decode(z), z, origin) for z, origin in points]
            await run.assessor.assess_all(judged)
            shown = run.assessor.known[judged[0][0]]
        except BudgetSpent:
            ended = True
        idle = 0 if clock.answered() else idle + 1
        run.note(clock, shown, merged, state.sigma)
        if ended:
            return "budget"
    return "rounds"


def aggregator_of(federation: FederationSettings) -> Aggregator:
    """The rule that the settings name."""
    match federation.aggregator:
        case "fedavg":
            return FedAvg()
        case "median":
            return Median()
        case "trimmed":
            return Trimmed(federation.trim)
    return FedBPT(federation.sigma_rule)


async def _proposals(run: Searching, merged: Round, most: int) -> list[Floats]:
    """Some clients' best candidates, the clients taking turns."""
    names = sorted({client.name for client in run.parties.clients} & set(merged.searched))
    wanted = min(most, len(names))
    first = merged.state.round * wanted  # none where only sums are told
    turn = [names[(first + i) % len(names)] for i in range(wanted)]
    asked = [client for client in run.parties.clients if client.name in turn]
    answers = await ask_all(asked, lambda client: client.proposal(), run.settings.federation.timeout)
    run.parties.go_on_without(answers.missing, answers.refused)
    return [answers.got[name] for name in turn if name in answers.got]
