"""The sum of parties' answers is the answer of one party with all their texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbpt_api.federation import plain
from fedbpt_api.federation.envelope import Envelope
from fedbpt_api.federation.messages import MessageError
from fedbpt_api.federation.summable import packed, unpacked
from fedbpt_api.federation.tally import Sums, Tally
from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer import ClientFit, decode, encode
from fedbpt_api.verbalizer.messages import AskMoments, AskSums, Begin, Message
from fedbpt_api.verbalizer.protocol import protocol

WORDS, GROUPS = 6, ((0,), (1,), (2,))


def texts(seed: int, n: int) -> tuple[Floats, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.log(rng.dirichlet(np.ones(WORDS), n)), rng.integers(0, 3, n)


def added(answers: list[Envelope], size: int = 0) -> Envelope:
    """What a server makes of answers of which it sees the sum."""
    both = [packed(answer, size) for answer in answers]
    assert all(layout == both[0][0] for layout, _ in both)
    return unpacked(both[0][0], np.sum([row for _, row in both], axis=0))


def close(ours: Message, theirs: Message) -> None:
    assert type(ours) is type(theirs)
    for name in type(theirs).__dataclass_fields__:
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-6
        )  # curvature is float32


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), min_size=2, max_size=4))
def test_every_message_of_a_fit(seed: int, sizes: list[int]) -> None:
    logprobs, labels = texts(seed, sum(sizes) + 6)
    cuts = np.cumsum([*sizes])
    parts = list(zip(np.split(logprobs, cuts), np.split(labels, cuts), strict=True))
    everyone = [ClientFit(f"c{k}", rows, own, GROUPS) for k, (rows, own) in enumerate(parts)]
    whole = ClientFit("all", logprobs, labels, GROUPS)
    talk = protocol(range(WORDS), GROUPS)
    message = next(talk)
    kinds = set()
    try:
        while True:
            told = whole.reply(decode(encode(message)))
            answers = [
                Envelope("fit message", {}, encode(c.reply(decode(encode(message))))) for c in everyone
            ]
            close(decode(added(answers).body), told)
            kinds.add(type(message))
            message = talk.send([told])
    except StopIteration:
        assert {AskMoments, Begin} <= kinds
        assert AskSums in kinds or len(labels) < 8


async def test_what_a_fit_begins_with() -> None:
    def begun(fit: ClientFit) -> Envelope:
        first, second = (encode(fit.reply(AskMoments(scatter))) for scatter in (False, True))
        return Envelope("moments", {"plain": len(first)}, first + second)

    logprobs, labels = texts(1, 20)
    parts = [ClientFit(f"c{k}", logprobs[k::3], labels[k::3], GROUPS) for k in range(3)]
    whole, summed = begun(ClientFit("all", logprobs, labels, GROUPS)), added([begun(part) for part in parts])
    for ours, theirs in zip(halves(summed), halves(whole), strict=True):
        close(decode(ours), decode(theirs))


def halves(answer: Envelope) -> tuple[bytes, bytes]:
    cut = int(answer.fields["plain"])
    return answer.body[:cut], answer.body[cut:]


def test_sums_losses_words_and_counts() -> None:
    sums = [Sums(3, 1.5, 2), Sums(4, 2.25, 4)]
    assert added([Envelope("sums", plain.of_sums(s)) for s in sums]).fields == plain.of_sums(Sums(7, 3.75, 6))
    losses = [Envelope("joint losses", {"losses": d}) for d in ([1.0, 0.5], [2.0, 0.25])]
    assert added(losses).fields == {"losses": [3.0, 0.75]}
    pairs = [Envelope("word sums", {"pairs": p}) for p in ([[3, 1.0], [7, 2.0]], [[7, 0.5]])]
    assert added(pairs, size=8).fields == {"pairs": [[3, 1.0], [7, 2.5]]}
    with pytest.raises(MessageError, match="beyond the 7"):
        packed(pairs[0], size=7)
    rng = np.random.default_rng(0)
    tallies = []
    for _ in range(3):
        truth, methods = rng.integers(0, 3, 10), ("start+bias", "tuned", "majority")
        tallies.append(Tally.of(truth, {m: rng.integers(0, 3, 10) for m in methods}, 3))
    found = added([Envelope("tally", plain.of_tally(t)) for t in tallies]).fields
    assert found["confusions"] == {
        m: np.sum([t.confusions[m] for t in tallies], axis=0).tolist() for m in tallies[0].confusions
    }
    assert found["paired"]["start+bias"]["wins"] == sum(t.paired["start+bias"].wins for t in tallies)


def test_what_is_no_sum_is_refused() -> None:
    for kind in ("update", "proposal", "nonsense"):
        with pytest.raises(MessageError, match="cannot be added up"):
            packed(Envelope(kind, {}))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.text(max_size=5), st.just("Cross")
)
LAYOUTS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=5), max_leaves=12)
KINDS = ("sums", "joint losses", "word sums", "tally", "moments", "fit message", "")


@given(st.sampled_from(KINDS), st.lists(LAYOUTS, max_size=3), st.integers(0, 6))
def test_a_layout_that_is_none_is_a_message_error(kind: str, rest: list[Any], n: int) -> None:
    try:
        found = unpacked([kind, *rest], np.zeros(n))
    except MessageError:
        return
    assert found.kind == kind
