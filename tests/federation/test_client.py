"""A client: sums that add up, a fitness that is what the formulas say, a search that keeps to its budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
import pytest

from fedbpt_api.aggregate import GlobalState
from fedbpt_api.federation.local_search import Plan, Reference
from fedbpt_api.federation.messages import Broadcast, decode_update, encode_state, encode_update
from fedbpt_api.federation.tally import Sums
from fedbpt_api.prompts.space import Ids
from fedbpt_api.prompts.written import Job
from fedbpt_api.scoring.backend import BackendInfo, Floats, Prompt, Scores, Usage
from fedbpt_api.scoring.budget import Limits
from fedbpt_api.scoring.encode import EncodedText
from fedbpt_api.scoring.losses import cross_entropy
from fedbpt_api.scoring.trie import label_trie
from fedbpt_api.verbalizer import Verbalizer
from toy import ALIKE, ToyBackend, make_examples, make_task
from toy_clients import (
    GROUPS,
    LABEL_IDS,
    PLAN,
    WORDS,
    OnePrompt,
    WordSpace,
    make_client,
    start_ids,
    table_client,
)

BROADCAST = Broadcast(0, np.zeros(2), 1.0)
PLAIN = Verbalizer.from_words(LABEL_IDS, GROUPS)
FIVE = Reference((), Verbalizer.from_words(WORDS, GROUPS))
BIASED = Verbalizer.from_bias(LABEL_IDS, GROUPS, 0.5, np.array([0.25, -0.25]))
LN2 = math.log(2.0)
Table = dict[Ids, float]


async def test_the_cost_of_judging_a_prompt_counts_every_input() -> None:
    toy = ToyBackend()
    trie = await label_trie(toy, ALIKE)
    client = await make_client(backend=trie.over(toy), train=12, dev=8, words=trie.tokens)
    await client.fit((), trie.groups, with_dev=True)
    assert client.cost == client.scorer.budget.spent.scored == toy.scored == 40
    assert (await make_client(train=12, dev=8)).cost == 20


async def test_sums_are_over_all_texts_and_add_up() -> None:
    client = await make_client(train=12, dev=8)
    prompt = await start_ids()
    words = Verbalizer.from_words(WORDS, GROUPS)
    data = make_task(1, 12, 8, 1).clients[0]
    toy = ToyBackend()
    for part, rows in (("train", data.train), ("dev", data.dev)):
        losses, right = 0.0, 0
        for row in rows:
            ids = prompt + await toy.tokenize("Text:") + await toy.tokenize(f" {row.text}")
            ids += await toy.tokenize("\nMood:")
            negative, positive = (await toy.score([Prompt(ids)], LABEL_IDS)).logprobs[0]
            losses -= positive if row.label == "positive" else negative
            right += (positive > negative) == (row.label == "positive")
        sums = await client.evaluate(prompt, words, "train" if part == "train" else "dev")
        assert (sums.n, sums.correct) == (len(rows), right)
        assert sums.loss == pytest.approx(losses, rel=1e-5)
    both = await client.evaluate(prompt, words, "train") + sums
    assert both.n == 20 and both.loss > sums.loss


async def test_without_development_texts_the_sums_are_empty_and_cost_nothing() -> None:
    client = await make_client(dev=0)
    assert await client.evaluate(await start_ids(), Verbalizer.from_words(WORDS, GROUPS)) == Sums()
    assert client.scorer.budget.spent.scored == 0
    assert math.isnan(Sums().mean_loss) and math.isnan(Sums().accuracy)


async def jobs(*labels: int) -> list[Job]:
    """Lines for the toy to write, each with a seed of its own."""
    toy = ToyBackend()
    before, after = await toy.tokenize("Text:"), await toy.tokenize("\nMood:")
    lead = await toy.tokenize("Mood: good\nText:")
    return [Job(label, lead, before, after, (7, number)) for number, label in enumerate(labels)]


async def test_a_line_costs_at_most_20_calls_and_one_to_be_read_and_nothing_the_second_time() -> None:
    client = await make_client()
    judge = Reference(await start_ids(), Verbalizer.from_words(WORDS, GROUPS))
    lines = await client.write(await jobs(0, 1, 1), judge)
    assert [line.label for line in lines] == [0, 1, 1]
    assert len({line.ids for line in lines}) == 3
    spent = client.scorer.budget.spent.scored
    assert 3 * 4 <= spent <= 3 * 21
    assert await client.write(await jobs(0, 1, 1), judge) == lines
    assert client.scorer.budget.spent.scored == spent
    assert await (await make_client("other", key=3)).write(await jobs(0, 1, 1), judge) == lines
    toy = ToyBackend()
    for line, job in zip(lines, await jobs(0, 1, 1), strict=True):
        whole = (await start_ids()) + job.before + line.ids + job.after
        logprobs = (await toy.score([Prompt(whole)], LABEL_IDS)).logprobs[0]
        assert line.confidence == pytest.approx(logprobs[line.label], abs=1e-5)


async def test_a_budget_that_ends_while_lines_are_written_gives_those_that_are_done() -> None:
    judge = Reference(await start_ids(), Verbalizer.from_words(WORDS, GROUPS))
    client = await make_client()
    lines = await client.write(await jobs(0, 1, 1, 0), judge)
    whole = client.scorer.budget.spent.scored
    for limit in (0, 1, whole // 2, whole - 1):
        short = await make_client(limits=Limits(scored=limit))
        found = await short.write(await jobs(0, 1, 1, 0), judge)
        assert len(found) < 4 and found == lines[: len(found)]
        assert short.scorer.budget.spent.scored <= limit


async def test_lines_are_written_for_the_labels_in_turn() -> None:
    judge = Reference(await start_ids(), Verbalizer.from_words(WORDS, GROUPS))
    given = [replace(job, seed=(7, number % 3)) for number, job in enumerate(await jobs(0, 0, 0, 1, 1, 1))]
    whole = await make_client()
    lines = await whole.write(given, judge)
    assert [line.label for line in lines] == [0, 1, 0, 1, 0, 1]
    short = await make_client(limits=Limits(scored=whole.scorer.budget.spent.scored // 2))
    found = await short.write(given, judge)
    assert {line.label for line in found} == {0, 1} and len(found) < 6


async def test_at_most_500_pairs_are_sent_for_the_word_list() -> None:
    client = await make_client(train=60)
    pairs = await client.word_sums(await start_ids())
    assert len(pairs) <= 500
    assert [value for _, value in pairs] == sorted((value for _, value in pairs), reverse=True)
    assert client.scorer.budget.spent.scored == 60


class Narrow(ToyBackend):
    """Nine words can be named at a time, and lists hold no more than twelve."""

    @property
    def info(self) -> BackendInfo:
        return replace(super().info, max_words=9)

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        return await super().top_words(prompts, min(k, 12))


async def test_words_are_asked_for_by_name_as_many_at_a_time_as_the_server_takes() -> None:
    client, prompt = await make_client(backend=Narrow(), train=30), await start_ids()
    sums = dict(await client.word_sums(prompt))
    listed = [token for token in sums if token not in WORDS[:2]]
    pairs = dict(await client.word_sums(prompt, WORDS[:2], 20))
    assert sorted(pairs) == sorted(listed[:20]) and list(pairs) != listed[:20]
    assert client.scorer.budget.spent.scored == 30 * (1 + 3)
    texts, asked = client.parts[0], (*WORDS[:2], *listed[14:20])  # the last words, beside the label words
    rows = (await client.scorer.backend.score([t.with_prompt(prompt) for t in texts.texts], asked)).logprobs
    told = np.array([pairs[token] for token in listed[14:20]])
    assert told == pytest.approx(30 * rows[:, 2:].var(axis=0), rel=1e-5)


@dataclass
class TableBackend(ToyBackend):
    """Probabilities of the first label word by token ids; of the second, the rest."""

    table: Table = field(default_factory=dict)

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        first = np.array([self.table[prompt.ids] for prompt in prompts])
        scores = await super().score(prompts, words)
        return replace(scores, logprobs=np.log(np.stack([first, 1.0 - first], axis=1)))


def text(number: int, own: int = 500) -> EncodedText:
    """One token that tells the texts apart, one of the text's own, one of the template's."""
    return EncodedText((), (number, own, 7), (1,))


async def search_loss(
    table: Table, labels: list[int], reference: Reference, prompt: Ids, plan: Plan = PLAN
) -> float:
    """The loss that a client with texts 0, 1, ... tells when every candidate is `prompt`."""
    client = table_client(TableBackend(table=table), [text(i) for i in range(len(labels))], labels)
    searched = await client.search(BROADCAST, OnePrompt(prompt), plan, reference)
    return searched.update.loss


async def test_the_loss_of_label_words_alone_is_the_mean_cross_entropy() -> None:
    table: Table = {(5, 0, 500, 7): 0.5, (5, 1, 500, 7): 0.75, (5, 2, 500, 7): 0.125}
    loss = await search_loss(table, [0, 1, 0], Reference((), PLAIN), (5,))
    assert loss == pytest.approx((1 + 2 + 3) * LN2 / 3, rel=1e-6)


async def test_equation_7_is_the_mean_of_ratios_of_losses_with_and_without_disturbed_texts() -> None:
    clean: Table = {(5, 0, 500, 7): 0.5, (5, 1, 500, 7): 0.75, (5, 2, 500, 7): 0.125}  # losses 1, 2, 3 ln 2
    clouded: Table = {(5, 0, 0, 7): 0.25, (5, 1, 0, 7): 0.5, (5, 2, 0, 7): 0.25}  # losses 2, 1, 2 ln 2
    plan = replace(PLAN, perturb=1.0, vocabulary=(0,))  # every token of a text becomes token 0
    loss = await search_loss(clean | clouded, [0, 1, 0], Reference((), PLAIN), (5,), plan)
    assert loss == pytest.approx((1 / 2 + 2 / 1 + 3 / 2) / 3, rel=1e-6)


async def test_equation_7_stays_finite_where_a_disturbed_text_has_no_loss() -> None:
    table: Table = {(5, 0, 500, 7): 0.5, (5, 0, 0, 7): 1.0 - 1e-12}
    plan = replace(PLAN, perturb=1.0, vocabulary=(0,))
    assert math.isfinite(await search_loss(table, [0], Reference((), PLAIN), (5,), plan))


async def test_disturbed_texts_keep_their_length_the_template_and_are_drawn_anew_each_round() -> None:
    toy = ToyBackend()
    client = await make_client(backend=toy, train=6)
    plan = replace(PLAN, iterations=1, perturb=0.3, vocabulary=tuple(range(256)))
    prompt = await start_ids()
    asked: list[set[Ids]] = []
    for number in range(2):
        toy.answered.clear()
        await client.search(replace(BROADCAST, round=number), OnePrompt(prompt), plan, FIVE)
        asked.append({ids for ids, _ in toy.answered})
    own = {t.with_prompt(prompt).ids: t for t in client._train.texts}
    disturbed = asked[0] - set(own)
    assert len(disturbed) == 6
    template = len(prompt) + len(await toy.tokenize("Text:"))
    for ids in disturbed:
        assert any(_alike(original, ids, template) for original in own if len(original) == len(ids))
    assert not disturbed & asked[1]


def _alike(original: Ids, disturbed: Ids, template: int) -> bool:
    """Whether what stands around the text is the same, and a token of the text itself still is."""
    own = original[template:-2], disturbed[template:-2]
    around = original[:template] == disturbed[:template] and original[-2:] == disturbed[-2:]
    return around and any(a == b for a, b in zip(*own, strict=True))


ANCHOR: Table = {(3, 0, 500, 7): 0.5, (3, 1, 500, 7): 0.75, (3, 2, 500, 7): 0.125}
REFERENCE = Reference((3,), BIASED)


def reference_loss() -> float:
    """By hand: logits are half the log-probabilities and a quarter of a nat for the first label."""
    total = 0.0
    for label, p in zip((0, 1, 0), ANCHOR.values(), strict=True):
        odds = 0.5 * (math.log(p) - math.log(1 - p)) + 0.5
        total += math.log1p(math.exp(-odds if label == 0 else odds))
    return total / 3


async def test_a_candidate_equal_to_the_reference_has_exactly_the_reference_s_loss() -> None:
    assert await search_loss(ANCHOR, [0, 1, 0], REFERENCE, (3,)) == pytest.approx(reference_loss(), rel=1e-6)
    client = table_client(TableBackend(table=ANCHOR), [text(i) for i in range(3)], [0, 1, 0])
    rows = await client.scorer.score((3,), [text(i) for i in range(3)])
    plain = cross_entropy(BIASED.logits(rows), np.array([0, 1, 0])).mean()
    assert await search_loss(ANCHOR, [0, 1, 0], REFERENCE, (3,)) == pytest.approx(float(plain), abs=1e-15)


async def test_a_prompt_that_moves_all_texts_alike_gains_nothing_from_it() -> None:
    def pushed(p: float) -> float:
        """The same odds, four times as high."""
        return 4 * p / (4 * p + 1 - p)

    table: Table = ANCHOR | {(4, *ids[1:]): pushed(p) for ids, p in ANCHOR.items()}
    assert await search_loss(table, [0, 1, 0], REFERENCE, (4,)) == pytest.approx(reference_loss(), rel=1e-5)
    # With label words alone nothing would be fitted again, so the push counts.
    plain = await search_loss(table, [0, 1, 0], Reference((3,), PLAIN), (4,))
    assert plain != pytest.approx(await search_loss(table, [0, 1, 0], Reference((3,), PLAIN), (3,)), rel=1e-2)


async def test_the_same_broadcast_gives_the_same_update_and_another_client_or_round_another() -> None:
    prompt = await start_ids()
    reference = Reference(prompt, Verbalizer.from_words(WORDS, GROUPS))
    space = WordSpace()

    async def search(key: int = 0, number: int = 0) -> tuple[float, ...]:
        client = await make_client(key=key)
        searched = await client.search(replace(BROADCAST, round=number), space, PLAN, reference)
        return (*searched.update.mean, *searched.update.step_sizes, searched.update.loss)

    assert await search() == await search()
    assert await search() != await search(key=1)
    assert await search() != await search(number=1)


async def test_a_search_improves_on_where_it_began() -> None:
    client = await make_client()
    reference = Reference(await start_ids(), Verbalizer.from_words(WORDS, GROUPS))
    plan = replace(PLAN, population=8, iterations=4)
    space = WordSpace()
    searched = await client.search(BROADCAST, space, plan, reference)
    begun, best = [
        (await client.evaluate(space.decode(z), reference.verbalizer, "train")).mean_loss
        for z in (BROADCAST.mean, await client.proposal())
    ]
    assert best < begun
    assert 0 < searched.distinct <= 1
    assert len(searched.update.step_sizes) == 4
    assert searched.update.n == 12


async def test_a_minibatch_is_the_same_for_a_generation_s_candidates_and_another_for_the_next() -> None:
    toy = Listening()
    client = await make_client(backend=toy, train=12)
    plan = Plan(population=4, iterations=3, minibatch=5)
    await client.search(BROADCAST, Unseen(), plan, FIVE)
    assert [len(batch) for batch in toy.batches] == [5] * 13  # three generations of four, and the mean
    generations = [set(toy.batches[i : i + 4]) for i in (0, 4, 8)]
    assert all(len(generation) == 1 for generation in generations)
    assert len(set.union(*generations)) > 1


@dataclass
class Listening(ToyBackend):
    """Remembers what stood after the first token in each request."""

    batches: list[frozenset[Ids]] = field(default_factory=list)

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        self.batches.append(frozenset(prompt.ids[1:] for prompt in prompts))
        return await super().score(prompts, words)


@dataclass
class Unseen:
    """Every prompt is a new one, of one token."""

    numbers: Iterator[int] = field(default_factory=count)
    dimension: int = 2
    identity: dict[str, object] = field(default_factory=dict)

    def decode(self, z: Floats) -> Ids:
        return (next(self.numbers),)


@pytest.mark.parametrize("limit", [12, 30, 60])
async def test_a_client_whose_budget_ends_stops_early_with_what_it_has(limit: int) -> None:
    client = await make_client(limits=Limits(scored=limit), train=12)
    plan = replace(PLAN, population=6, iterations=10)
    searched = await client.search(BROADCAST, WordSpace(), plan, FIVE)
    assert searched.spent
    assert limit - 12 < client.scorer.budget.spent.scored <= limit
    assert searched.update.scored == client.scorer.budget.spent.scored
    assert math.isfinite(searched.update.loss) and searched.update.loss < 100
    decode_update(encode_update(searched.update))
    assert (await client.proposal()).shape == searched.update.mean.shape == (2,)


async def test_a_search_that_cannot_begin_says_so_and_has_no_cost() -> None:
    client = await make_client(limits=Limits(scored=11), train=12)
    searched = await client.search(BROADCAST, WordSpace(), PLAN, FIVE)
    assert searched.spent and searched.update.scored == 0
    np.testing.assert_array_equal(searched.update.mean, BROADCAST.mean)


async def test_messages_of_a_round_with_500_coordinates_are_at_most_4096_bytes() -> None:
    client = await make_client("x" * 128, train=4)
    state = GlobalState.first(np.full(500, 0.125), 1.0)
    plan = replace(PLAN, iterations=1)
    broadcast = Broadcast(0, state.mean, 1.0)
    searched = await client.search(broadcast, WordSpace(), plan, FIVE)
    assert searched.update.mean.shape == (500,)
    assert len(encode_state(state)) <= 4096
    assert len(encode_update(searched.update)) <= 4096
    many = replace(searched.update, step_sizes=(1.0,) * 40, round=2**40, n=2**40, scored=2**40)
    assert len(encode_update(many)) <= 4096


def test_the_toy_texts_differ() -> None:
    """The checks above rely on it."""
    assert len({row.text for row in make_examples(60, 0)}) == 60
