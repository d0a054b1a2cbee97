"""Which of two judged prompts is better: hand-made sums, clients that are missing, the floor of a search."""

from __future__ import annotations

import math

import pytest

from fedbpt_api.errors import FedbptError
from fedbpt_api.federation.tally import Sums
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.events import Assessed, Event
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.verbalizer import Verbalizer
from toy import PROMPT, ToyBackend, Toys, make_task
from toy_runs import make_settings

PLAIN = Verbalizer.from_words((1, 2), ((0,), (1,)))
Parts = dict[str, tuple[int, float]]


def judged(train: Parts, dev: Parts, floor: Parts | None = None) -> Assessment:
    """An assessment from {client: (texts, mean loss)}."""

    def sums(parts: Parts) -> dict[str, Sums]:
        return {name: Sums(n, n * mean) for name, (n, mean) in parts.items()}

    return Assessment((), "", PLAIN, sums(train), sums(dev), sums(floor or {}))


def test_the_loss_is_the_mean_over_training_and_development_texts_of_all_clients() -> None:
    one = judged({"a": (4, 1.0), "b": (8, 0.5)}, {"a": (2, 2.0), "b": (2, 0.0)})
    assert one.train_loss == pytest.approx(8 / 12)
    assert one.dev_sums == Sums(4, 4.0)
    assert one.loss == pytest.approx((4 + 4 + 4) / 16)
    assert one.loss_on({"b"}) == pytest.approx(4 / 10)


def test_training_texts_of_a_searched_prompt_count_at_least_as_the_centre_did() -> None:
    floor: Parts = {"a": (4, 0.9)}
    dev: Parts = {"a": (4, 0.5)}
    assert judged({"a": (4, 0.1)}, dev, floor).loss == pytest.approx((0.9 + 0.5) / 2)
    assert judged({"a": (4, 1.3)}, dev, floor).loss == pytest.approx((1.3 + 0.5) / 2)


def test_a_prompt_that_its_training_texts_ruled_out_never_wins() -> None:
    out, best = judged({"a": (4, 0.1)}, {}), judged({"a": (4, 3.0)}, {"a": (4, 3.0)})
    assert math.isinf(out.loss)
    assert not out.beats(best)
    assert not best.beats(out)  # nothing to compare: who was first stays


def test_prompts_are_compared_on_the_clients_that_answered_for_both() -> None:
    """Client b's texts are easy: a prompt must not win because b was missing when the other was judged."""
    before = judged({"a": (4, 1.0), "b": (4, 0.1)}, {"a": (4, 1.0), "b": (4, 0.1)})
    after = judged({"a": (4, 0.9)}, {"a": (4, 0.9)})
    assert after.loss > before.loss
    assert after.beats(before) and not before.beats(after)
    worse = judged({"b": (4, 0.2)}, {"b": (4, 0.2)})
    assert worse.loss < before.loss
    assert not worse.beats(before) and before.beats(worse)


def test_clients_without_development_texts_count_with_their_training_texts() -> None:
    one = judged({"a": (4, 1.0), "b": (4, 0.5)}, {"a": (4, 2.0), "b": (0, 0.0)})
    assert one.clients == {"a", "b"}
    assert one.loss == pytest.approx((4 + 2 + 8) / 12)


async def test_on_a_noisy_server_what_wins_was_looked_at_twice(toys: Toys) -> None:
    """The best of many noisy numbers looks better than it is: winners are asked about again."""
    task = make_task()
    toys.opened["toy"] = noisy = ToyBackend(noise=0.3)
    judged: list[Assessed] = []

    def hear(event: Event) -> None:
        if isinstance(event, Assessed):
            judged.append(event)

    result = await Tuner(make_settings(task), task, None, hear).run()
    winners = {event.prompt for event in judged if event.chosen} | {judged[0].prompt}
    assert len(winners) > 1 and result.prompt in winners
    encoder = Encoder(noisy, task.template, task.label_words)
    for client in task.clients:
        dev = await encoder.texts(client.dev)
        for prompt in {event.prompt for event in judged}:
            ids = await noisy.tokenize(prompt)
            inputs = {text.with_prompt(ids).ids for text in dev}
            asked = {i: sum(n for (j, _), n in noisy.answered.items() if j == i) for i in inputs}
            assert set(asked.values()) <= ({2} if prompt in winners else {0, 1, 2})


async def judged_within(budget: int, noisy: ToyBackend) -> tuple[int, int]:
    """Prompts of which all texts were scored, and prompts that a run within the budget remembers."""
    task, prompts = make_task(), [PROMPT, "", "great", "awful", "good"]
    changes = {"prompts": prompts, "budget.scored": budget, "search.rounds": 1}
    told: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Assessed):
            told.append(event.prompt)

    tuner = Tuner(make_settings(task, changes), task, None, hear)
    try:
        await tuner.run()
    except FedbptError:
        assert tuner._assessor is not None and not tuner._assessor.known  # not one was judged
    encoder = Encoder(noisy, task.template, task.label_words)
    texts = [t for c in task.clients for t in (*await encoder.texts(c.train), *await encoder.texts(c.dev))]
    asked = {ids for ids, _ in noisy.answered}
    own = [await noisy.tokenize(prompt) for prompt in prompts]
    paid = [ids for ids in own if all(text.with_prompt(ids).ids in asked for text in texts)]
    assert tuner._assessor is not None
    assert len(told) == len(set(told)) == len(tuner._assessor.known)
    return len(paid), sum(ids in tuner._assessor.known for ids in paid)


async def test_a_prompt_whose_second_look_is_not_affordable_is_remembered(toys: Toys) -> None:
    found = set()
    for budget in range(60, 360, 12):
        toys.opened["toy"] = noisy = ToyBackend(noise=0.3)
        paid, known = await judged_within(budget, noisy)
        assert known == paid
        found.add(paid)
    assert len(found) > 3


async def test_a_client_that_fails_the_second_look_is_believed_the_first(
    toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client 1's own server fails in one request; some of these are second looks."""
    look, failed = Assessor._again, list[int]()

    async def again(assessor: Assessor, doubted: Assessment) -> Assessment:
        before = own.requests
        found = await look(assessor, doubted)
        failed.extend(own.fail_on & set(range(before + 1, own.requests + 1)))
        assert found.dev.keys() == doubted.dev.keys()
        if own.fail_on & set(range(before + 1, own.requests + 1)):
            assert found.dev["client1"] == doubted.dev["client1"]
            assert found.dev["client0"] != doubted.dev["client0"]
        return found

    monkeypatch.setattr(Assessor, "_again", again)
    for request in range(4, 24):
        toys.opened["toy"] = ToyBackend(noise=0.3)
        toys.opened["own"] = own = ToyBackend(noise=0.3, fail_on=frozenset({request}))
        task = make_task()
        changes = {
            "clients.1.backend": {"kind": "toy", "name": "own"},
            "prompts": [PROMPT, "", "great", "good"], "search.rounds": 1,
        }  # fmt: skip
        await Tuner(make_settings(task, changes), task).run()
    assert failed


async def test_prompts_measured_side_by_side_are_remembered_when_a_second_look_ends_the_run(
    toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.opened["toy"] = ToyBackend(noise=0.3)
    task, told = make_task(), list[str]()

    def hear(event: Event) -> None:
        if isinstance(event, Assessed):
            told.append(event.prompt)

    changes = {"prompts": [PROMPT], "search.rounds": 1, "search.choice": "committee"}
    tuner = Tuner(make_settings(task, {**changes, "budget.scored": 100_000}), task, None, hear)
    await tuner.run()
    assessor = tuner._assessor
    assert assessor is not None
    monkeypatch.setattr(assessor.parties, "apart", True)
    assessor.ended, assessor.chosen = False, None

    async def spent(assessor: Assessor, doubted: Assessment) -> Assessment:
        raise BudgetSpent("scored examples")

    monkeypatch.setattr(Assessor, "_again", spent)
    monkeypatch.setattr(Assessment, "beats", lambda new, old, by=0.0: True)
    prompts = [await toys["toy"].tokenize(text) for text in (" great", " awful")]
    before = len(told)
    with pytest.raises(BudgetSpent):
        await assessor.assess_all([(ids, None, "best candidate") for ids in prompts])
    assert all(ids in assessor.known for ids in prompts)
    assert told[before:] == [" great", " awful"]
