"""After the search nothing is scored: whoever would have to has no answer, and the run keeps its result."""

from __future__ import annotations

import pytest

from fedbpt_api.federation.client import Client
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.responder import Responder
from fedbpt_api.run import suspects, tune
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.events import Event, RoundDone
from fedbpt_api.run.tune import Tuner
from lies import reached_through
from toy import IDS, LABEL_WORDS, ToyBackend, Toys, make_task
from toy_runs import make_settings, run_toy, scored

COMMITTEE: dict[str, object] = {
    "search.choice": "committee", "search.ensemble": 3, "search.rounds": None, "search.form": "auto",
}  # fmt: skip
OWN_SERVER = {"clients.1.backend": {"kind": "toy", "name": "own"}}


def dying(toys: Toys, request: int) -> None:
    """Client 1's own server fails from some request on."""
    toys.opened["toy"] = ToyBackend(ripple=1.5)
    toys.opened["own"] = ToyBackend(ripple=1.5, fail_from=request)


@pytest.mark.parametrize("budget", [400, 550, 700, 850])
async def test_a_client_whose_own_budget_ended_is_not_asked_to_score_for_the_result(
    toys: Toys, budget: int
) -> None:
    toys["toy"].ripple = 1.5
    for seed in range(2):
        task = make_task(seed=seed, test=4)
        changes = {**COMMITTEE, "budget.scored": budget, "seed": seed, "clients.0.budget": {"scored": 100}}
        result = await run_toy(task, changes)
        assert result.stopped == "budget" and scored(result) <= budget


@pytest.mark.parametrize("budget", [400, 430, 470, 505])
async def test_nor_is_one_whose_server_failed_in_between(toys: Toys, budget: int) -> None:
    for seed in range(2):
        dying(toys, 12)
        changes = {**COMMITTEE, **OWN_SERVER, "budget.scored": budget, "seed": seed}
        assert (await run_toy(make_task(seed=seed, test=4), changes)).stopped == "budget"


@pytest.mark.parametrize("choice", ["committee", "held-out"])
@pytest.mark.parametrize("named", [False, True])
async def test_a_run_that_is_stopped_keeps_its_result_without_a_call(
    toys: Toys, monkeypatch: pytest.MonkeyPatch, choice: str, named: bool
) -> None:
    """One client's server is dead; another client is named by cross-scoring at the very end, or not."""
    dying(toys, 12)
    whom: list[str] = []

    async def at_the_end(assessor: Assessor, judged: Assessment) -> list[str]:
        whom[:] = ["client3"] if named and "client3" not in assessor.parties.left_out else []
        return await suspects.leave_out_suspects(assessor, judged)

    monkeypatch.setattr(suspects, "suspect", lambda everyone, without: whom.pop() if whom else None)
    monkeypatch.setattr(tune, "leave_out_suspects", at_the_end)

    def stop(event: Event) -> None:
        if isinstance(event, RoundDone) and event.record.round == 1:
            tuner.stop()

    task = make_task(5, 8, 6, 2)
    changes = {**COMMITTEE, **OWN_SERVER, "search.choice": choice, "budget.scored": 5000}
    tuner = Tuner(make_settings(task, changes), task, None, stop)
    result = await tuner.run()
    assert result.stopped == "cancelled"
    assert tuner._assessor is not None
    assert ("client3" in tuner._assessor.parties.left_out) == named


@pytest.mark.parametrize("budget", [430, 560])
async def test_a_party_that_has_lost_its_scores_is_left_out_of_the_result_alone(
    toys: Toys, budget: int
) -> None:
    """It says that it cannot score for what is left of the run's budget, when the result is fitted."""
    toys["toy"].ripple = 1.5
    lost: list[int] = []

    def between(client: Client) -> Exchange:
        party = Responder(client, tuple(IDS[group[0]] for group in LABEL_WORDS.words))

        async def exchange(data: bytes) -> bytes:
            question = opened(data)
            answer = await party.answer(data)
            if client.name == "client1" and question.kind == "joint losses":
                lost.append(1)  # the search has ended
            elif client.name == "client1" and question.kind == "fit" and lost:
                told = {"answer": {"cap": "scored examples", "own": False}}
                return seal(Envelope("spent", {**told, "spent": opened(answer).fields["spent"]}))
            return answer

        return exchange

    task = make_task(test=4)
    settings = make_settings(task, {**COMMITTEE, "budget.scored": budget})
    result = await Tuner(settings, task, opener=reached_through(between)).run()
    assert lost and result.stopped == "budget"
