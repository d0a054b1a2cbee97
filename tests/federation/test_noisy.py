"""Whole runs with noise: what is released, how often, and that nothing else is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedbpt_api import resume
from fedbpt_api.errors import ConfigError
from fedbpt_api.federation import plain
from fedbpt_api.federation.account import Account
from fedbpt_api.federation.channel import Channel
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.facts import Facts
from fedbpt_api.federation.noise import Noise
from fedbpt_api.federation.noisy import ANSWERED, NoisyResponder
from fedbpt_api.federation.promise import PARTS, Part, Promise
from fedbpt_api.federation.remote import RemoteParty
from fedbpt_api.prompts.soft import SoftSpace
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run import enclosed, private
from fedbpt_api.run.events import Assessed, Event, Noted
from fedbpt_api.run.opening import open_parties
from fedbpt_api.run.parties import Keep
from fedbpt_api.run.private import matched, promise_of, released
from fedbpt_api.run.replay import replay
from fedbpt_api.run.result import RunResult
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.verbalizer import Committee, Reading, Verbalizer
from toy import IDS, ToyBackend, Toys, make_task
from toy_clients import GROUPS, PLAN, WORDS, make_client
from toy_runs import after_round, make_settings

NOISY: dict[str, object] = {
    "privacy.mode": "gaussian",
    "privacy.prompts": 6,
    "verbalizer.kind": "bias",
    "search.proposals": 0,
    "search.rounds": 2,
    "budget.scored": 20_000,
}
TASK = make_task(clients=3, train=40, dev=30, test=40)


async def run(changes: dict[str, object], folder: Path | None = None) -> tuple[RunResult, list[Event]]:
    events: list[Event] = []
    settings = make_settings(TASK, NOISY | changes)
    return await Tuner(settings, TASK, folder, on_event=events.append).run(), events


@pytest.fixture(autouse=True)
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that is the same whenever a test runs, or one in so many would fail for its draws alone."""
    seeds = np.random.default_rng(11)
    monkeypatch.setattr("secrets.randbits", lambda bits: int.from_bytes(seeds.bytes(bits // 8)))


def judged(events: list[Event]) -> list[Assessed]:
    return [event for event in events if isinstance(event, Assessed)]


async def test_with_hardly_any_noise_a_run_is_as_good_as_without(toys: Toys, tmp_path: Path) -> None:
    """Epsilon 100: what is left are clipping, the bias in closed form, and fewer prompts."""
    huge: dict[str, object] = {"privacy.epsilon": 100, "privacy.clip_loss": 4.0, "privacy.clip_logits": 8.0}
    result, events = await run(huge | {"search.rounds": 3, "privacy.clip_mean": 20.0}, tmp_path / "run")
    plain, _ = await run({"privacy.mode": "none", "search.rounds": 3})
    losses = [event.loss for event in judged(events)]
    assert min(losses) < losses[0] - 0.05  # .07 to .26 in 25 runs with other draws
    text = TunedPrompt.load(tmp_path / "run").text
    assert result.prompt.partition("\n--- and ---\n")[0] in (text, text or "(no prompt)")  # as people read it
    accuracy = {}
    for name, one in (("noise", result), ("plain", plain)):
        assert one.test is not None
        (row,) = (row for row in one.test.rows if row.client == "*" and row.method == "tuned")
        accuracy[name] = row.accuracy
    assert accuracy["noise"] > accuracy["plain"] - 0.05


def test_the_more_noise_the_less_is_believed() -> None:
    """The posterior mean of a bias with a standard normal prior, by hand."""
    sums, counts = np.array([-40.0, 40.0]), np.array([20.0, 20.0])
    for noise, kept in ((0.0, 1.0), (1.0, 0.5), (3.0, 0.1)):
        found = matched(sums, counts, (1, 2), ((0,), (1,)), noise)
        np.testing.assert_allclose(found.bias, kept * np.array([1.0, -1.0]), atol=1e-12)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Noise]:
    """Every party's releases."""
    found: list[Noise] = []
    begin = Noise.__init__

    def noted(self: Noise, *args: object, **kwargs: object) -> None:
        begin(self, *args, **kwargs)  # type: ignore[arg-type]
        found.append(self)

    monkeypatch.setattr(Noise, "__init__", noted)
    return found


async def test_releases_are_planned_counted_and_told(toys: Toys, made: list[Noise]) -> None:
    result, events = await run({"search.rounds": 9})
    count = len(judged(events))
    assert count == 7  # six, and those that answer together
    rounds = len(result.rounds) - 2  # the first and the last search nothing
    for noise in made:
        assert noise.counts["dev"] == count and noise.counts["test"] == 1
        assert noise.counts["train"] == 2 * count + rounds <= noise.promise.releases["train"]
    first = next(event.message for event in events if isinstance(event, Noted))
    assert "epsilon 8.00 for training texts" in first
    assert (
        f"{made[0].promise.spent({'dev': count})[('dev',)]:.2f} for development texts in {count} answers"
        in result.privacy
    )


async def test_releases_that_came_to_nothing_are_told_too(toys: Toys, made: list[Noise]) -> None:
    """The budget ends between a third prompt's training and its development texts."""
    prompts = ["Is the mood good or bad?\n", "", "Good or bad?\n"]
    changes: dict[str, object] = {"prompts": prompts, "budget.scored": 2 * 210 + 130, "search.ensemble": 1}
    result, events = await run(changes)
    assert len(judged(events)) == 2
    counts = {part: max(noise.counts[part] for noise in made) for part in ("train", "dev", "test")}
    assert counts["train"] > 2 * 2
    assert f"training texts in {counts['train']} answers" in result.privacy
    assert f"development texts in {counts['dev']} answers" in result.privacy
    assert "test texts in 1 answer;" in result.privacy


async def nobody(data: bytes) -> bytes:
    raise AssertionError("nothing is asked")


@pytest.mark.parametrize("told", [{}, {"train": 10**9, "dev": 3, "test": 1}])
def test_no_party_makes_more_of_a_report_than_was_planned(told: dict[Part, int]) -> None:
    settings = make_settings(TASK, NOISY)
    account = Account("c", Budget(), released=told)
    facts = Facts("c", 40, 30, 40, (20, 20), (1, 2), 9, ToyBackend().info, None)
    party = RemoteParty(Channel(facts, nobody, account, b""))
    planned = promise_of(settings).releases
    expected = {part: min(told.get(part, 0), planned[part]) for part in PARTS}
    assert released(settings, [party]) == expected
    assert "epsilon" in private.told(settings, 1, expected)


async def test_texts_in_two_parts_have_no_part_of_their_own(toys: Toys) -> None:
    first = TASK.clients[1]
    more = (first.train[0], first.dev[0])
    twice = replace(first, dev=(*first.dev, *first.train[:2]), test=(*first.test, *more))
    task = replace(TASK, clients=(TASK.clients[0], twice, TASK.clients[2]))
    with pytest.raises(ConfigError, match="client 'client1': 3 texts stand in more than one of train"):
        await Tuner(make_settings(task, NOISY), task).run()
    assert toys["toy"].scored == 0
    party = make_settings(task, NOISY | {"privacy.unit": "party"})  # where they are protected together
    assert (await Tuner(party, task).run()).test is not None


async def test_all_texts_of_a_party_are_told_one_epsilon(toys: Toys) -> None:
    result, events = await run({"privacy.unit": "party"})
    first = next(event.message for event in events if isinstance(event, Noted))
    planned = sum(promise_of(make_settings(TASK, NOISY)).releases.values())
    assert f"epsilon 8.00 for training, development and test texts together in {planned} answers" in first
    assert result.privacy.count("test texts together in") == 1 and "for training texts" not in result.privacy


async def test_only_questions_with_a_known_sensitivity_are_answered(toys: Toys) -> None:
    parties = await open_parties(make_settings(TASK, NOISY), TASK, lambda: False, Keep())
    client = parties.local[0]
    client.budget.parent = None
    promise = Promise("text", 8.0, 1e-5, {"train": 9, "dev": 9, "test": 1}, 2.0, 3.0, 1.0)
    party = NoisyResponder(client, Noise(promise, {"train": 40, "dev": 30, "test": 40}), 2)
    kinds = ("fit", "fit message", "word sums", "joint losses", "proposal", "keys", "weighed", "nonsense")
    for kind in kinds:
        assert kind not in ANSWERED
        answer = opened(await party.answer(seal(Envelope(kind, {"grant": 1000}))))
        assert answer.kind == "failed" and not answer.body
        assert "not answered with noise" in answer.fields["answer"]["message"]
    assert toys["toy"].requests == 0
    await parties.aclose()


THREE = Verbalizer.from_bias(WORDS, ((0,), (1,), (2,)), 1.0, np.array([0.0, 0.0, -1.5]))
TWO = Verbalizer.from_words(WORDS, GROUPS)
PICKING = Verbalizer(
    WORDS, GROUPS, 1.0, np.zeros(2), np.zeros((2, 5)), np.full(5, -2.0), np.full(5, 1e-308), "weighted"
)
"""Losses that are NaN where a word's log-probability is above a threshold, and no others."""
HIDING = Committee((TWO, PICKING))


def asked_of(kind: str, readings: Sequence[Reading]) -> Envelope:
    """A question in which texts are read by these."""
    prompts: list[dict[str, object]] = [
        {"members": [[IDS[" good"]], [IDS[" bad"]]]} if isinstance(r, Committee) else {"ids": [IDS[" good"]]}
        for r in readings
    ]
    prompt, told = prompts[0], [reading.to_dict() for reading in readings]
    fields: dict[str, object] = {"grant": 1000}
    match kind:
        case "evaluate":
            fields |= {"prompt": prompt, "verbalizer": told[0], "part": "dev", "repeat": 0}
        case "test":
            named = [(f"m{k}", p, v) for k, (p, v) in enumerate(zip(prompts, told, strict=True))]
            contestants = [dict(zip(("method", "prompt", "verbalizer"), c, strict=True)) for c in named]
            fields |= {"contestants": contestants, "common": 0}
        case "label sums":
            fields |= {"prompt": prompt, "groups": [list(group) for group in readings[0].groups]}
        case "rounds":
            fields |= {
                "space": plain.of_space(SoftSpace((1,), np.zeros((1, 3), np.float32), 2, 1.0, 0)),
                "plan": plain.of_plan(PLAN),
                "reference": {"prompt": prompt, "verbalizer": told[0]},
            }
    return Envelope(kind, fields)


@pytest.mark.parametrize(
    ("kind", "readings"),
    [
        ("evaluate", [PICKING]),
        ("evaluate", [HIDING]),
        ("evaluate", [THREE]),
        ("test", [TWO, PICKING]),
        ("test", [TWO, HIDING]),
        ("test", [TWO, THREE]),
        ("test", [THREE, TWO]),
        ("label sums", [THREE]),
        ("rounds", [PICKING]),
    ],
)
async def test_what_could_fail_for_some_texts_only_is_refused_whatever_they_are(
    kind: str, readings: Sequence[Reading]
) -> None:
    client = await make_client(train=40, dev=30)
    client.budget.parent = Budget()
    promise = Promise("text", 8.0, 1e-5, {"train": 9, "dev": 9, "test": 1}, 2.0, 3.0, 1.0)
    party = NoisyResponder(client, Noise(promise, {"train": 40, "dev": 30, "test": 0}), 2)
    answer = opened(await party.answer(seal(asked_of(kind, readings))))
    assert answer.kind == "failed", answer
    assert "2 labels" in str(answer.fields) or "kind 'weighted'" in str(answer.fields)
    assert client.budget.spent.scored == 0


@pytest.mark.parametrize("kind", ["label sums", "evaluate", "test", "rounds"])
async def test_a_party_that_knows_no_words_yet_asks_to_be_told(kind: str) -> None:
    """It was started again; that is no fault of its own."""
    client = await make_client(train=40, dev=30, words=())
    client.budget.parent = Budget()
    promise = Promise("text", 8.0, 1e-5, {"train": 9, "dev": 9, "test": 1}, 2.0, 3.0, 1.0)
    party = NoisyResponder(client, Noise(promise, {"train": 40, "dev": 30, "test": 0}), 2)
    assert opened(await party.answer(seal(asked_of(kind, [TWO])))).kind == "forgotten"


async def test_losses_that_are_no_number_are_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    client = await make_client(train=40, dev=30)

    def odd(logits: object, labels: object) -> np.ndarray:
        return np.where(np.arange(30) < 2, np.nan, np.where(np.arange(30) < 5, -7.0, 1.0))

    monkeypatch.setattr("fedbpt_api.federation.client.cross_entropy", odd)
    sums = await client.evaluate((IDS[" good"],), TWO, "dev", most=2.0)
    assert sums.loss == 2 * 2.0 + 25 * 1.0


async def test_a_run_with_noise_goes_on_with_the_noise_that_was_told(toys: Toys, tmp_path: Path) -> None:
    tuner: Tuner
    stop = after_round(1, lambda: tuner.stop())
    tuner = Tuner(make_settings(TASK, NOISY), TASK, tmp_path / "run", stop)
    assert (await tuner.run()).stopped == "cancelled"
    told = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("releases-*")}
    assert len(told) == 3
    result = await resume(tmp_path / "run", task=TASK)
    for name, before in told.items():
        assert (tmp_path / "run" / name).read_bytes().startswith(before)
    assert result.test is not None
    assert (await replay(tmp_path / "run", task=TASK)).differences == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verbalizer.kind": "weighted"}, "verbalizer.kind: 'weighted' does not go with"),
        ({"search.choice": "committee"}, "search.choice: 'committee' does not go with"),
        ({"privacy.delta": 0.5}, "privacy.delta: 0.5 lets one of 40 texts"),
        ({"privacy.epsilon": 1e-7}, "judge fewer prompts"),
    ],
)
async def test_what_cannot_be_promised_is_refused_before_anything_is_paid(
    toys: Toys, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await run(changes)
    assert toys["toy"].requests == 0


async def test_a_config_need_not_say_what_noise_needs(toys: Toys) -> None:
    settings = make_settings(TASK, {"privacy.mode": "gaussian", "method": "ensemble"})
    assert settings.verbalizer.kind == "bias" and settings.search.choice == "held-out"
    assert enclosed.opener_of(settings) is enclosed.open_enclosed


async def test_a_search_s_mean_is_clipped_and_its_steps_are_not_told(
    toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far a search goes, its displacement is at most clip_mean sqrt(d) before noise."""
    rows: list[np.ndarray] = []
    released = Noise.released

    async def seen(self, part, question, sensitivity, compute):  # type: ignore[no-untyped-def]
        async def kept():  # type: ignore[no-untyped-def]
            rows.append(await compute())
            return rows[-1]

        return await released(self, part, question, sensitivity, kept)

    monkeypatch.setattr(Noise, "released", seen)
    await run({"privacy.clip_mean": 0.01, "search.rounds": 1})
    moved = [row for row in rows if len(row) == 5]  # four coordinates and a loss
    assert len(moved) == 3
    for row in moved:
        assert np.linalg.norm(row[:-1]) == pytest.approx(0.5) and -0.5 <= row[-1] <= 0.5
