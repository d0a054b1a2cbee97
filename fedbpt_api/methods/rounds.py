"""FedBPT's rounds (arXiv 2310.01467, section 3): local searches side by side, one merge, all clients judge.

A round: the server sends its mean and step size; every client that is asked runs CMA-ES from there on its own
loss (step 2), sends its mean, loss and step sizes (step 3); the aggregator merges them (step 4). Beyond the
paper every merged prompt, and some client's best candidate, is judged on all clients' texts, so that the best
prompt is known and kept whatever later rounds do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedbpt_api.aggregate import Aggregator, FedAvg, FedBPT, Median, Trimmed
from fedbpt_api.federation.latecomers import Latecomers
from fedbpt_api.federation.local_search import Plan, Reference
from fedbpt_api.federation.party import Party
from fedbpt_api.federation.runtime import Late, Round, Rules, ask_all, sample, search_round
from fedbpt_api.federation.summed_round import SummedParty, summed_round
from fedbpt_api.methods.searching import Searching, Stop
from fedbpt_api.prompts.space import PromptSpace
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.config import FederationSettings
from fedbpt_api.run.draws import Draws, settled
from fedbpt_api.run.origins import choose_origin
from fedbpt_api.run.padding import blocks_of, settle_padding
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.verbalizer.committee import alone

_MOST_IDLE = 20  # rounds in a row that found no prompt that is new


async def search(run: Searching) -> Stop:
    """Judge the starting prompts, then search around the best of them.

    A round that does not fit into what is left of the budget would tell nothing: what it finds could not be
    judged. Where the model writes examples, that goes on more of them.
    """
    run.phase("starting prompts")
    centre, space, draws = await choose_origin(run.assessor, await run.codebook())
    plan, settings = await _plan(run), run.settings.search
    whole = draws is not None and draws.left and _most(run) != 0  # then only whole rounds are begun
    judged = 1 + settings.proposals + (blocks_of(run.assessor) is not None)
    searched = not whole or _fits(run, plan, _asked(run, 0), judged)
    if searched:
        centre, space = await settle_padding(run.assessor, centre, space)
    run.note(run.begun, centre, None, settings.sigma)
    if settled(run.assessor):
        return "settled"
    run.phase("search")
    if searched and (stop := await around(run, centre, space, plan, whole=whole)) is not None:
        return stop
    assert draws is not None
    return await _rest(run, draws)


async def around(
    run: Searching, centre: Assessment, space: PromptSpace, plan: Plan, *, whole: bool
) -> Stop | None:
    """Rounds from the centre until the budget or the rounds end.

    Args:
        run: The run.
        centre: Where they begin.
        space: What is searched.
        plan: How.
        whole: Whether there is something else to do: None, where the next round may not fit into the budget,
            or rounds find nothing new.
    """
    late: Late = Latecomers(run.lateness)
    try:
        return await _around(run, centre, space, plan, late, whole)
    finally:
        await late.aclose()


async def _around(
    run: Searching, centre: Assessment, space: PromptSpace, plan: Plan, late: Late, whole: bool
) -> Stop | None:
    run.space, run.assessor.centre = space, centre
    settings, f = run.settings.search, run.settings.federation
    rules = Rules(f.participation, f.quorum, f.timeout, f.clip, f.late)
    reference = Reference(centre.prompt, alone(centre.verbalizer))
    aggregator = aggregator_of(f)
    state = aggregator.initial(np.zeros(space.dimension), settings.sigma)
    idle, most = 0, _most(run)
    while most is None or state.round < most:
        if idle == _MOST_IDLE:
            return None if whole else "cap"
        clock = run.meter()
        asked = _asked(run, state.round)
        if whole and not _fits(run, plan, asked, 1 + settings.proposals):
            return None
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


def _most(run: Searching) -> int | None:
    """Rounds at most: with noise, where every search costs privacy, only those that are asked for."""
    asked = run.settings.search.rounds
    return 0 if asked is None and run.settings.privacy.mode == "gaussian" else asked


async def _plan(run: Searching) -> Plan:
    """How clients search in every round."""
    settings = run.settings.search
    return Plan(
        population=settings.popsize,
        iterations=settings.iterations,
        minibatch=settings.minibatch,
        loss=settings.loss,
        margin=settings.margin,
        perturb=settings.perturb,
        vocabulary=(await run.codebook()).tokens if settings.perturb else (),
    )


def _asked(run: Searching, number: int) -> list[Party]:
    """The clients that search in a round."""
    return sample(run.parties.clients, run.settings.federation.participation, run.settings.seed, number)


def _fits(run: Searching, plan: Plan, asked: Sequence[Party], prompts: int) -> bool:
    """Whether a whole round, and judging so many prompts, stays within the run's budget."""
    search = sum(plan.fresh(client.n_train, len(client.info.inputs)) for client in asked)
    return run.parties.budget.used(search + prompts * run.assessor.cost) <= 1


async def _rest(run: Searching, draws: Draws) -> Stop:
    """Judge more draws, to the end of the budget."""
    clock, assessor = run.meter(), run.assessor
    centre, assessor.centre = assessor.centre, None  # they are not searched for around it
    try:
        await draws.judge(1.0)
    finally:
        assessor.centre = centre
    if clock.answered():
        run.note(clock, assessor.best(), None, run.settings.search.sigma)
    if settled(assessor):
        return "settled"
    return "cap" if not draws.left and assessor.affords(1, 1.0) else "budget"


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
