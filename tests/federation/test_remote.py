"""Parties behind a network: a run is the same to the bit, and nobody believes what does not fit."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbpt_api.errors import FedbptError, RunFolderError
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.local_search import Reference
from fedbpt_api.federation.messages import Broadcast, MessageError
from fedbpt_api.federation.recorded import Records
from fedbpt_api.federation.remote import RemoteParty
from fedbpt_api.federation.responder import Responder
from fedbpt_api.federation.tally import Contestant
from fedbpt_api.prompts.written import Job
from fedbpt_api.run.events import Event, Warned
from fedbpt_api.run.result import RunResult
from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.budget import Budget, Limits
from fedbpt_api.task import Task
from fedbpt_api.verbalizer import Committee, Verbalizer, encode
from fedbpt_api.verbalizer.messages import AskSums
from toy import Toys, make_task
from toy_clients import GROUPS, PLAN, WORDS, WordSpace, make_client, start_ids
from toy_runs import numbers, run_toy, scored, texts_of
from toy_wires import run_between

CHANGES: list[dict[str, object]] = [
    {},
    {"search.choice": "committee", "search.ensemble": 2, "verbalizer.kind": "weighted"},
    {"search.form": "demonstrations", "search.proposals": 2, "federation.participation": 0.5},
    {"search.perturb": 0.5, "search.loss": "hinge", "federation.aggregator": "fedavg"},
    {"search.minibatch": 3, "verbalizer.kind": "bias"},
]


@dataclass
class Wire:
    """Brings envelopes to a party in this process, and keeps what it answered."""

    responder: Responder
    sent: list[bytes] = field(default_factory=list)
    got: list[bytes] = field(default_factory=list)

    async def exchange(self, data: bytes) -> bytes:
        self.sent.append(data)
        self.got.append(await self.responder.answer(data))
        return self.got[-1]


async def over_wires(task: Task, changes: dict[str, object]) -> tuple[RunResult, list[Wire]]:
    """A run whose parties are reached by envelopes only."""
    wires: list[Wire] = []

    def between(client: Client) -> Exchange:
        wires.append(Wire(Responder(client)))
        return wires[-1].exchange

    return await run_between(task, changes, between), wires


@pytest.mark.parametrize("changes", CHANGES, ids=lambda c: ", ".join(c) or "default")
async def test_a_run_over_wires_is_the_run_in_this_process(toys: Toys, changes: dict[str, object]) -> None:
    task = make_task()
    here = await run_toy(task, changes)
    there, wires = await over_wires(task, changes)
    assert there.prompt == here.prompt
    assert repr(numbers(there)) == repr(numbers(here))
    assert there.test == here.test
    assert there.stopped == here.stopped
    for name, row in here.spent.items():
        # What a cache has depends on who has asked before.
        assert {k: n for k, n in there.spent[name].items() if k != "cached_tokens"} == {
            k: n for k, n in row.items() if k != "cached_tokens"
        }
    private = [text.encode() for text in texts_of(task.clients)]
    for wire in wires:
        for data in (*wire.sent, *wire.got):
            assert not any(text in data for text in private)


@pytest.mark.parametrize(
    "changes", [{"budget.scored": 300}, {"clients.1.budget": {"scored": 150}}], ids=lambda c: ", ".join(c)
)
async def test_budgets_that_end_hold_over_wires_too(toys: Toys, changes: dict[str, object]) -> None:
    """A question is granted what it may need at most, so the end of a budget may come sooner."""
    task, longer = make_task(), {**changes, "search.rounds": 50}
    here = await run_toy(task, longer)
    there, _ = await over_wires(task, longer)
    assert there.stopped == here.stopped
    judging = max(len(client.train) + len(client.dev) for client in task.clients) * len(task.clients)
    assert scored(here) - judging <= scored(there) <= scored(here)
    assert there.spent["client1"]["scored"] <= 150 or "budget.scored" in changes


async def test_a_rounds_envelopes_stay_below_4_kilobytes(toys: Toys) -> None:
    client = await make_client()
    wire = Wire(Responder(client))
    party = await RemoteParty.reach(wire.exchange, Budget())
    space = replace(WordSpace(), dimension=500)
    reference = Reference(await start_ids(), Verbalizer.from_words(WORDS, GROUPS))
    with pytest.raises(MessageError, match="does not travel"):
        await party.search(Broadcast(0, np.zeros(500), 1.0), space, PLAN, reference)
    wire.responder._round = (space, PLAN, reference)
    party.channel.rounds = (space, PLAN, reference)
    await party.search(Broadcast(0, np.full(500, 1 / 3), 1.0), space, PLAN, reference)
    await party.proposal()
    search, proposal = zip(wire.sent[-2:], wire.got[-2:], strict=True)
    assert max(map(len, search)) <= 4096 and max(map(len, proposal)) <= 4096


@given(st.binary(max_size=200) | st.builds(seal, st.builds(Envelope, st.text(max_size=8), st.just({}))))
@settings(max_examples=60, deadline=None)
async def test_a_party_answers_whatever_arrives(data: bytes) -> None:
    answer = opened(await Responder(await make_client(train=2, dev=0)).answer(data))
    assert answer.kind in ("failed", "facts")


KINDS = ("words", "word sums", "write", "fit", "fit message", "evaluate", "joint losses", "rounds", "search")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "words",
    "prompt",
    "jobs",
    "judge",
    "groups",
    "fit",
    "verbalizer",
    "part",
    "repeat",
    "judged",
    "sets",
)
MORE = ("space", "plan", "reference", "contestants", "common", "grant", "ids", "members", "kind")


@given(
    st.sampled_from((*KINDS, "test")),
    st.dictionaries(st.sampled_from(NAMES + MORE), VALUES, max_size=6),
    st.binary(max_size=40),
)
@settings(max_examples=300, deadline=None)
async def test_a_party_refuses_questions_that_are_none(
    kind: str, fields: dict[str, Any], body: bytes
) -> None:
    data = orjson.dumps({"version": 1, "kind": kind, "fields": fields}) + b"\n" + body
    client = await make_client(train=2, dev=0)
    client.budget.parent = Budget()
    answer = opened(await Responder(client).answer(data))
    # A draw may be a question; then it is answered, within what was granted for it.
    assert answer.kind in (
        "failed",
        "spent",
        "done",
        "word sums",
        "lines",
        "sums",
        "joint losses",
        "tally",
        "forgotten",
    )
    grant = fields.get("grant", 0)
    assert client.budget.spent.scored <= (grant if isinstance(grant, int) and grant > 0 else 0)


@pytest.mark.parametrize("kind", ["evaluate", "test"])
@pytest.mark.parametrize("prompt", [{"ids": [3]}, {"members": [[3], [4], [5]]}], ids=["one", "three"])
async def test_a_committee_of_two_reads_two_prompts_only(kind: str, prompt: dict[str, object]) -> None:
    client = await make_client(train=2, dev=2)
    client.budget.parent = Budget()
    reading = Committee((Verbalizer.from_words(WORDS, GROUPS),) * 2).to_dict()
    judged = {"prompt": prompt, "verbalizer": reading}
    fields: dict[str, object] = judged | {"part": "dev", "repeat": 0}
    if kind == "test":
        fields = {"contestants": [judged | {"method": "tuned"}], "common": 0}
    answer = opened(await Responder(client).answer(seal(Envelope(kind, fields | {"grant": 1000}))))
    assert answer.kind == "failed" and "a member for each prompt" in str(answer.fields)
    assert client.budget.spent.scored == 0


async def lying(change: Callable[[dict[str, Any]], None], kind: str) -> RemoteParty:
    """A party whose answers of a kind are changed on their way."""
    responder = Responder(await make_client())

    async def exchange(data: bytes) -> bytes:
        answer = opened(await responder.answer(data))
        fields = orjson.loads(orjson.dumps(dict(answer.fields)))
        if answer.kind == kind:
            change(fields)
        return seal(Envelope(answer.kind, fields, answer.body))

    party = await RemoteParty.reach(exchange, Budget(Limits(scored=1000)))
    party.channel.apart = True
    return party


def told(**counts: int) -> dict[str, object]:
    """What a party says that it has spent, with these on the search."""
    nothing = dict.fromkeys((*asdict(Usage()), "duplicates", "stored"), 0)
    return {"life": "x", "search": nothing | counts, "test": nothing}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"answer": {"n": 7, "loss": 1.0, "correct": 1}}, "tells of 7"),
        ({"answer": {"n": 8, "loss": None, "correct": 1}}, "no finite number"),
        ({"answer": {"n": 8, "loss": 1.0, "correct": 9}}, "9 of 8 texts are correct"),
        ({"answer": {"n": 8, "loss": 0.0, "correct": 7}}, "losses that cannot be"),
        ({"answer": {"n": 8, "loss": -1.0, "correct": 8}}, "losses that cannot be"),
        ({"answer": {"n": 8, "loss": 1e6, "correct": 1}}, "losses that cannot be"),
        ({"answer": {"n": 8, "loss": -1e9, "correct": None}}, "tells less than it was asked for"),
        ({"answer": [1]}, "with something else"),
        ({"spent": []}, "what it has spent: it is missing"),
        ({"spent": {"life": "x", "search": {}, "test": {}}}, "what it has spent"),
        ({"spent": told(scored=17)}, "17 scored examples and 0 tokens, but was granted 8"),
        (
            {"spent": told(scored=8, prompt_tokens=10**6)},
            "1,000,000 tokens, but was granted 8 of",
        ),
    ],
)
async def test_sums_that_cannot_be_are_refused(changed: dict[str, Any], problem: str) -> None:
    party = await lying(lambda fields: fields.update(changed), "sums")
    with pytest.raises(FedbptError, match=problem):
        await party.evaluate(await start_ids(), Verbalizer.from_words(WORDS, GROUPS))


@pytest.mark.parametrize(("words", "kind"), [([-1, -2, 300], "done"), ([-3, 300], "failed")])
async def test_numbers_of_words_that_begin_alike_are_those_of_the_label_words(
    words: list[int], kind: str
) -> None:
    responder = Responder(await make_client(), (-1, -2))
    answer = opened(await responder.answer(seal(Envelope("words", {"words": words, "grant": 100}))))
    assert answer.kind == kind


async def test_a_search_by_another_name_is_refused() -> None:
    responder = Responder(await make_client("client9"))

    async def exchange(data: bytes) -> bytes:
        answer = opened(await responder.answer(data))
        fields = dict(answer.fields)
        if answer.kind == "facts":
            fields["answer"] = {**fields["answer"], "name": "client0"}
        return seal(Envelope(answer.kind, fields, answer.body))

    party = await RemoteParty.reach(exchange, Budget())
    reference = Reference(await start_ids(), Verbalizer.from_words(WORDS, GROUPS))
    responder._round = (WordSpace(), PLAN, reference)
    party.channel.rounds = (WordSpace(), PLAN, reference)
    with pytest.raises(MessageError, match="has sent the update of client9"):
        await party.search(Broadcast(0, np.zeros(2), 1.0), WordSpace(), PLAN, reference)


async def test_lines_whose_label_is_more_than_certain_are_refused() -> None:
    def boast(fields: dict[str, Any]) -> None:
        fields["answer"] = {"lines": [{"label": 0, "ids": [1, 2, 3], "confidence": 0.1}]}

    party = await lying(boast, "lines")
    jobs = [Job(0, (1,), (2,), (3,), (0, 0, 0))]
    with pytest.raises(MessageError, match="more than certain"):
        await party.write(jobs, Reference(await start_ids(), Verbalizer.from_words(WORDS, GROUPS)))


async def test_a_test_of_other_texts_than_there_are_is_refused() -> None:
    def inflate(fields: dict[str, Any]) -> None:
        for counts in fields["answer"]["confusions"].values():
            counts[0][0] += 90

    party = await lying(inflate, "tally")
    words = Verbalizer.from_words(WORDS, GROUPS)
    with pytest.raises(MessageError, match=r"0 test texts, but counts 90"):
        await party.test([Contestant("tuned", await start_ids(), words)], 0)


async def test_a_test_that_compares_others_than_were_tested_is_refused() -> None:
    def drop(fields: dict[str, Any]) -> None:
        fields["answer"]["paired"] = {}

    party, words = await lying(drop, "tally"), Verbalizer.from_words(WORDS, GROUPS)
    both = [Contestant(method, await start_ids(), words) for method in ("start+bias", "tuned")]
    with pytest.raises(MessageError, match="compares others than were tested"):
        await party.test(both, 0)


@pytest.mark.parametrize(
    "fields", ['{"answer": {}, "spent": {"life": "x", "search": @}}', '{"answer": {"message": @}}', "@"]
)
async def test_what_is_nested_without_end_is_refused(fields: str) -> None:
    """The parser allows more than Python can show, and a message that cannot be shown ends the run."""
    responder = Responder(await make_client())

    async def exchange(data: bytes) -> bytes:
        if opened(data).kind == "facts":
            return await responder.answer(data)
        nested = fields.replace("@", "[" * 1000 + "]" * 1000)
        return f'{{"version":1,"kind":"failed","fields":{nested}}}\n'.encode()

    party = await RemoteParty.reach(exchange, Budget())
    with pytest.raises(MessageError, match=r"nested deeper|JSON"):
        await party.word_sums(await start_ids())


async def test_a_proposal_of_other_coordinates_than_are_searched_is_refused() -> None:
    responder = Responder(await make_client())

    async def exchange(data: bytes) -> bytes:
        answer = opened(await responder.answer(data))
        body = answer.body * 2 if answer.kind == "proposal" else answer.body
        return seal(Envelope(answer.kind, answer.fields, body))

    party = await RemoteParty.reach(exchange, Budget())
    rounds = (WordSpace(), PLAN, Reference(await start_ids(), Verbalizer.from_words(WORDS, GROUPS)))
    responder._round = rounds
    party.channel.rounds = rounds
    await party.search(Broadcast(0, np.zeros(2), 1.0), *rounds)
    with pytest.raises(MessageError, match="proposes 4 coordinates, but 2 are searched"):
        await party.proposal()


async def test_a_fit_that_was_forgotten_is_begun_again_within_the_deadline() -> None:
    responder, gone = Responder(await make_client()), False

    async def exchange(data: bytes) -> bytes:
        nonlocal gone
        kind = opened(data).kind
        if kind == "fit" and gone:
            await asyncio.Event().wait()
        if kind == "fit message":
            gone = True
            responder._fits.clear()
        return await responder.answer(data)

    party = await RemoteParty.reach(exchange, Budget(), deadline=1)
    fit = await party.fit(await start_ids(), GROUPS)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await fit.answer(encode(AskSums(np.arange(1), np.zeros((1, 3)))))
    assert gone


async def test_a_party_that_lies_in_fits_is_left_out_of_three_and_then_of_the_run(toys: Toys) -> None:
    task, warned = make_task(), list[str]()

    def between(client: Client) -> Exchange:
        responder = Responder(client)

        async def exchange(data: bytes) -> bytes:
            answer = opened(await responder.answer(data))
            body = answer.body
            if client.name == "client1":
                body = body.replace(b'"Moments"', b'"Moment"')
            return seal(Envelope(answer.kind, answer.fields, body))

        return exchange

    def listen(event: Event) -> None:
        if isinstance(event, Warned):
            warned.append(event.message)

    result = await run_between(task, {}, between, listen)
    told = [text for text in warned if "no message of a verbalizer's fit" in text]
    assert [text.split(":")[0] for text in told] == [
        "client1 is left out of a question",
        "client1 is left out of the run",
    ]
    assert result.test is not None
    assert {row.client for row in result.test.rows} == {"*", "client0", "client2"}
    assert "client1" in result.spent
    noted = {c.client for c in result.rounds[-1].clients if c.note.startswith("left out of the run")}
    assert noted == {"client1"}


@pytest.mark.parametrize("kind", ["word sums", "lines"])
async def test_tokens_that_no_model_has_are_not_asked_for(toys: Toys, kind: str) -> None:
    """One party of three names them; the server's own model is asked what they are, and has none such."""

    def between(client: Client) -> Exchange:
        responder = Responder(client)

        async def exchange(data: bytes) -> bytes:
            answer = opened(await responder.answer(data))
            inner = answer.fields["answer"]
            if client.name == "client1" and answer.kind == kind == "word sums":
                inner = {"pairs": [[2**31 - 1, 1000.0], [9_999, 1000.0]]}
            if client.name == "client1" and answer.kind == kind == "lines":
                inner = {
                    "lines": [{**line, "ids": [9_999] * 5, "confidence": 0.0} for line in inner["lines"]]
                }
            return seal(Envelope(answer.kind, {**answer.fields, "answer": inner}, answer.body))

        return exchange

    result = await run_between(make_task(), {"search.form": "demonstrations"}, between)
    assert result.test is not None and result.prompt


@pytest.mark.parametrize("every", [29, 40, 61])
async def test_parties_that_are_started_again_change_nothing(toys: Toys, every: int) -> None:
    """What they were told is told again; their scores are theirs, so nothing is paid for twice."""
    task, changes = make_task(), CHANGES[2] | {"search.proposals": 3}
    here = await run_toy(task, changes)

    def between(client: Client) -> Exchange:
        asked = itertools.count(1)
        responder = Responder(client)

        async def exchange(data: bytes) -> bytes:
            nonlocal responder
            if next(asked) % every == 0:
                client.use_words(())
                client._best = None
                responder = Responder(client)
            return await responder.answer(data)

        return exchange

    there = await run_between(task, changes, between)
    assert there.prompt == here.prompt and there.test == here.test
    assert [r["scored"] for r in numbers(there)] == [r["scored"] for r in numbers(here)]


class Crash(BaseException):
    """A server that is gone from one moment to the next."""


@pytest.mark.parametrize("torn", [0, 1, 30])
async def test_a_server_that_is_gone_goes_on_from_its_answers(toys: Toys, tmp_path: Path, torn: int) -> None:
    task, changes = make_task(), CHANGES[1]
    here, wires = await over_wires(task, changes)
    whole = sum(len(wire.sent) for wire in wires)
    clients: dict[str, Responder] = {}
    asked, lives = 0, 0
    result: RunResult | None = None
    while result is None:
        lives += 1
        left = itertools.count(whole // 3, -1)
        kept = [Records(tmp_path)]

        def between(client: Client, left: Iterator[int] = left, kept: list[Records] = kept) -> Exchange:
            responder = clients.setdefault(client.name, Responder(client))

            async def exchange(data: bytes) -> bytes:
                nonlocal asked
                if next(left) == 0:
                    raise Crash
                asked += 1
                return await responder.answer(data)

            return kept[-1].of(client.name, exchange)

        try:
            result = await run_between(task, changes, between)
        except Crash:
            for recorded in kept:
                recorded.close()
            for path in tmp_path.iterdir():
                path.write_bytes(path.read_bytes()[: -torn or None])
    for recorded in kept:
        recorded.close()
    assert lives in (3, 4, 5)
    assert result.prompt == here.prompt and result.test == here.test
    assert repr(numbers(result)) == repr(numbers(here))
    assert asked == whole if not torn else asked <= whole + 3 * len(task.clients)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    async def nobody(question: bytes) -> bytes:
        raise AssertionError

    (tmp_path / "answers-a.records").write_bytes(b"something else")
    with pytest.raises(RunFolderError, match="no file of answers"):
        Records(tmp_path).of("a", nobody)


async def test_versions_that_differ_are_named() -> None:
    data = seal(Envelope("facts", {})).replace(b'"version":1', b'"version":2')
    answer = opened(await Responder(await make_client()).answer(data))
    assert "version 2" in answer.fields["answer"]["message"]
    assert "same release" in answer.fields["answer"]["hint"]
