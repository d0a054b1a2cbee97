"""Masks that vanish only where all parties answer of the same, and weights that hide all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fedbpt_api.aggregate.fedbpt import constants
from fedbpt_api.federation import plain
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.hidden import Hidden
from fedbpt_api.federation.local_search import Reference
from fedbpt_api.federation.masks import STEP, Masks, added
from fedbpt_api.federation.messages import Broadcast, encode_broadcast
from fedbpt_api.federation.responder import Responder
from fedbpt_api.prompts.codebook import Codebook, CodebookSpace
from fedbpt_api.prompts.space import Ids
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.verbalizer import Verbalizer, encode
from fedbpt_api.verbalizer.messages import AskMoments
from toy import IDS
from toy_clients import GROUPS, PLAN, WORDS, make_client

NAMES = ("a", "b", "c")
GOOD: Ids = (IDS[" good"],)
BAD: Ids = (IDS[" bad"],)
CODEBOOK = Codebook((GOOD[0], BAD[0], IDS[" the"]), (" good", " bad", " the"), np.eye(3), "toy")
D = 3
LISTS: dict[str, object] = {"prompt": [], "words": [], "named": 0, "size": 1000}


class Parties:
    """Three parties that have agreed, each of which can be asked something else."""

    def __init__(self, responders: Sequence[Responder], found: Sequence[Hidden]) -> None:
        self.members = dict(zip(NAMES, responders, strict=True))
        self.hidden = found

    @classmethod
    async def met(cls, about: Sequence[bytes] = (b"", b"", b"")) -> Parties:
        masks = {name: Masks(name) for name in NAMES}
        found = [Hidden(masks[name], told) for name, told in zip(NAMES, about, strict=True)]
        responders = []
        for key, name in enumerate(NAMES):
            client = await make_client(name, key=key)
            client.budget.parent = Budget()
            responders.append(Responder(client, hidden=found[key]))
        parties = cls(responders, found)
        await parties.all("peers", {"keys": {name: one.public.hex() for name, one in masks.items()}})
        await parties.all("words", {"words": list(WORDS)})
        return parties

    async def all(self, kind: str, fields: dict[str, object], body: bytes = b"") -> dict[str, Envelope]:
        return {name: await self.one(name, kind, fields, body) for name in NAMES}

    async def one(self, name: str, kind: str, fields: dict[str, object], body: bytes = b"") -> Envelope:
        question = Envelope(kind, fields | {"grant": 10_000}, body)
        return opened(await self.members[name].answer(seal(question)))


def hidden(answers: dict[str, Envelope]) -> bool:
    """Whether the sum over all is still masked: words that are uniform are no sums over a few texts."""
    assert {answer.kind for answer in answers.values()} == {"masked"}, answers
    sizes = {len(answer.body) // 8 for answer in answers.values()}
    total = added({name: answer.body for name, answer in answers.items()}, sizes.pop())
    return bool((np.abs(total) > 100).all())


def evaluating() -> dict[str, object]:
    verbalizer = Verbalizer.from_words(WORDS, GROUPS).to_dict()
    return {"prompt": {"ids": list(GOOD)}, "verbalizer": verbalizer, "part": "dev", "repeat": 0}


def fitting(prompt: Ids = GOOD, number: str = "f") -> dict[str, object]:
    groups = [list(group) for group in GROUPS]
    return {"fit": number, "prompt": {"ids": list(prompt)}, "groups": groups, "with_dev": False}


def rounds(prompt: Ids = GOOD) -> dict[str, object]:
    space = CodebookSpace(CODEBOOK, (1,), np.zeros((1, D)), None)
    reference = Reference(prompt, Verbalizer.from_words(WORDS, GROUPS))
    told = {"space": plain.of_space(space), "plan": plain.of_plan(PLAN)}
    return told | {"reference": plain.of_reference(reference)}


async def test_masks_vanish_where_all_were_told_the_same() -> None:
    parties = await Parties.met()
    assert not hidden(await parties.all("evaluate", evaluating()))
    assert not hidden(await parties.all("fit", fitting()))
    assert not hidden(await parties.all("fit message", {"fit": "f"}, encode(AskMoments(False))))
    assert not hidden(await parties.all("word sums", LISTS))


async def test_parties_with_other_tasks_are_not_added_up() -> None:
    parties = await Parties.met(about=(b"one", b"other", b"other"))
    assert hidden(await parties.all("evaluate", evaluating()))
    assert hidden(await parties.all("word sums", LISTS))


async def test_answers_of_other_words_are_not_added_up() -> None:
    parties = await Parties.met()
    await parties.one("a", "words", {"words": [*WORDS[:-1], BAD[0]]})
    assert hidden(await parties.all("fit", fitting()))
    assert not hidden(await parties.all("word sums", LISTS))  # of no list of words
    await parties.all("words", {"words": list(WORDS)})
    assert not hidden(await parties.all("fit", fitting(number="g")))


async def test_messages_to_other_fits_are_not_added_up() -> None:
    parties = await Parties.met()
    await parties.one("a", "fit", fitting(BAD))
    for name in "bc":
        await parties.one(name, "fit", fitting(GOOD))
    assert hidden(await parties.all("fit message", {"fit": "f"}, encode(AskMoments(True))))


def weights(parties: Sequence[float]) -> dict[str, object]:
    told = dict(zip(NAMES, parties, strict=True))
    return {"round": 0, "weights": told, "sigma": 1.0, "second": True}


async def searched(*begins: float) -> Parties:
    """Parties that have searched, each from there."""
    parties = await Parties.met()
    await parties.all("rounds", rounds())
    for name, begin in zip(NAMES, begins, strict=True):
        told = await parties.one(name, "search", {}, encode_broadcast(Broadcast(0, np.full(D, begin), 1.0)))
        assert told.kind == "scalars", told
    return parties


RULE: list[float] = constants(D, 3).weights.tolist()


async def test_steps_are_added_up_where_all_began_there() -> None:
    parties = await searched(0.5, 0.5, 0.5)
    answers = await parties.all("weighed", weights(RULE))
    total = added({name: answer.body for name, answer in answers.items()}, D + D * (D + 1) // 2)
    expected = np.zeros(D)
    for weight, member in zip(RULE, parties.hidden, strict=True):
        assert member._last is not None
        expected += weight * (member._last[1].mean - 0.5)
    np.testing.assert_allclose(total[:D], expected, atol=4 * STEP)


async def test_steps_from_elsewhere_are_not_added_up() -> None:
    assert hidden(await (await searched(0.5, 0.0, 0.0)).all("weighed", weights(RULE)))
    parties = await searched(0.5, 0.5, 0.5)
    await parties.one("a", "rounds", rounds(BAD))
    await parties.one("a", "search", {}, encode_broadcast(Broadcast(0, np.full(D, 0.5), 1.0)))
    assert hidden(await parties.all("weighed", weights(RULE)))


@pytest.mark.parametrize(
    ("told", "second", "why"),
    [
        ([1.0, 0.0, 0.0], True, "3 parties or more"),
        ([0.5, 0.5, 0.0], False, "3 parties or more"),
        ([1.0, 1.0, -1.0], False, "3 parties or more"),
        ([1.0 - 2e-12, 1e-12, 1e-12], True, "not the rule's"),
        ([0.999, 0.0005, 0.0005], False, "next to nothing"),
    ],
)
async def test_weights_that_show_one_party_are_refused(told: list[float], second: bool, why: str) -> None:
    parties = await searched(0.5, 0.5, 0.5)
    for answer in (await parties.all("weighed", weights(told) | {"second": second})).values():
        assert answer.kind == "failed" and why in answer.fields["answer"]["message"]


async def test_a_round_is_weighed_once(tmp_path: Path) -> None:
    """Sums with the same weights in another order are as many equations as there are steps."""
    parties = await searched(0.5, 0.5, 0.5)
    for name, member in zip(NAMES, parties.hidden, strict=True):
        member._place = tmp_path / name
    first = await parties.all("weighed", weights(RULE))
    assert first == await parties.all("weighed", weights(RULE))
    for answer in (await parties.all("weighed", weights(RULE[::-1]))).values():
        assert answer.kind == "failed" and "weighed once" in answer.fields["answer"]["message"]
    # Nor is another search of the round, which is drawn from the same numbers; whoever was started again.
    for member, name in zip(parties.hidden, NAMES, strict=True):
        member._weighings = Hidden(Masks(name), b"", tmp_path / name)._weighings
    await parties.all("rounds", rounds(BAD))
    await parties.all("search", {}, encode_broadcast(Broadcast(0, np.full(D, 0.5), 1.0)))
    for answer in (await parties.all("weighed", weights(RULE))).values():
        assert answer.kind == "failed" and "weighed once" in answer.fields["answer"]["message"]
