"""Label words that begin alike: probabilities of constrained decoding, at a price that is known before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.scoring.backend import BackendInfo, Floats, Prompt, Scores, Soft, Usage
from fedbpt_api.scoring.budget import Budget, BudgetSpent, Limits
from fedbpt_api.scoring.encode import EncodedText, Encoder
from fedbpt_api.scoring.journal import Journal
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.scoring.trie import LabelTrie, label_trie, remarks
from fedbpt_api.task import LabelWords
from toy import IDS, PROMPT, TEMPLATE, TEXTS, ToyBackend, make_examples

MOODS = LabelWords(("bad", "good"), ((" very bad", " sad"), (" very good",)))
CITIES = LabelWords(
    ("a", "b", "c"), ((" new york city",), (" new york state", " home"), (" new land", " old", " xyz"))
)
OTHERS = (IDS[" day"], IDS[" night"])

PIECES = (" very", " new", " good", " bad", " old")
spelt = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)


def free(words: list[str]) -> list[str]:
    """Without those that go on from another."""
    return [w for w in words if not any(w != o and f"{w} ".startswith(f"{o} ") for o in words)]


several = st.lists(spelt, min_size=2, max_size=7, unique=True).map(free).filter(lambda words: len(words) > 1)


def labelled(words: Sequence[str]) -> LabelWords:
    """The first word is a label's, the others are another's."""
    return LabelWords(("first", "others"), ((words[0],), tuple(words[1:])))


def trie_of(words: LabelWords, backend: ToyBackend | None = None) -> LabelTrie:
    return asyncio.run(label_trie(backend or ToyBackend(), words))


def score(trie: LabelTrie, toy: ToyBackend, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
    return asyncio.run(trie.over(toy).score(prompts, words))


def constrained(toy: ToyBackend, start: tuple[int, ...], words: Sequence[tuple[int, ...]]) -> Floats:
    """Log-probabilities of words where every next token must be one that a word goes on with."""
    begun = list(dict.fromkeys(word[:at] for word in words for at in range(len(word))))
    asked = [Prompt(start + beginning) for beginning in begun]
    rows = asyncio.run(toy.score(asked, range(len(TEXTS)))).logprobs
    found = np.zeros(len(words))
    for i, word in enumerate(words):
        for at, token in enumerate(word):
            row = rows[begun.index(word[:at])]
            open_to = sorted({w[at] for w in words if w[:at] == word[:at]})
            found[i] += row[token] - np.logaddexp.reduce(row[open_to])
    return found


# Probabilities ----------------------------------------------------------------------------------


@given(several, st.lists(st.sampled_from(list(IDS.values())), max_size=5), st.integers(0, 3))
def test_words_have_the_probabilities_of_decoding_constrained_to_them(
    words: list[str], start: list[int], seed: int
) -> None:
    toy = ToyBackend(seed=seed)
    trie = trie_of(labelled(words))
    prompts = [Prompt((IDS["Text"], *start)), Prompt((IDS["Mood"], *start), 1)]
    scores = score(trie, toy, prompts, trie.tokens + OTHERS)
    for prompt, row in zip(prompts, scores.logprobs, strict=True):
        expected = constrained(ToyBackend(seed=seed), prompt.ids, [*trie.ids, *((i,) for i in OTHERS)])
        np.testing.assert_allclose(row, expected, atol=1e-9)
    assert scores.exact.all()


@given(several, st.randoms(use_true_random=False))
def test_the_order_of_words_does_not_matter(words: list[str], random: Random) -> None:
    found = []
    for order in (words, random.sample(words, len(words))):
        trie = trie_of(labelled(order))
        row = score(trie, ToyBackend(), [Prompt((IDS["Text"],))], trie.tokens).logprobs[0]
        found.append(dict(zip(order, row.tolist(), strict=True)))
        assert len(trie.nodes) == len(trie_of(labelled(words)).nodes)
    assert found[0] == pytest.approx(found[1])


def test_the_mass_is_that_of_all_words_to_the_place_where_they_differ() -> None:
    toy, start = ToyBackend(), (IDS["Text"], IDS[" good"])
    trie = trie_of(MOODS)
    scores = score(trie, toy, [Prompt(start)], trie.tokens)

    def of(ids: tuple[int, ...], token: int) -> float:
        return float(
            np.exp(asyncio.run(toy.score([Prompt(start + ids)], range(len(TEXTS)))).logprobs[0, token])
        )

    very, sad, good, bad = (IDS[f" {word}"] for word in ("very", "sad", "good", "bad"))
    expected = of((), sad) + of((), very) * (of((very,), good) + of((very,), bad))
    assert scores.mass[0] == pytest.approx(expected)


def test_vectors_stay_where_they_are() -> None:
    toy = ToyBackend(soft=True)
    trie = trie_of(MOODS)
    middle = (IDS[" great"], IDS[" book"])
    soft = Soft(asyncio.run(_table(toy))[list(middle)])
    ids = (IDS["Text"], IDS[" sad"], IDS["Mood"])
    plain = score(trie, toy, [Prompt(ids[:1] + middle + ids[1:], 3)], trie.tokens)
    found = score(trie, toy, [Prompt(ids, 3, soft, 1)], trie.tokens)
    np.testing.assert_array_equal(found.logprobs, plain.logprobs)


async def _table(toy: ToyBackend) -> Floats:
    table = await toy.token_table()
    assert table is not None
    return np.asarray(table.embeddings, dtype=np.float64)


class Listing(ToyBackend):
    """Lists only some tokens; the others are bounds. Knows no mass."""

    listed: frozenset[int] = frozenset()

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        scores = await super().score(prompts, words)
        exact = np.tile([word in self.listed for word in words], (len(prompts), 1))
        return replace(scores, exact=exact, mass=np.full(len(prompts), np.nan))


def test_a_word_is_exact_where_all_its_tokens_are() -> None:
    toy = Listing()
    toy.listed = frozenset(IDS[f" {word}"] for word in ("very", "good", "sad"))
    trie = trie_of(MOODS, toy)
    scores = score(trie, toy, [Prompt((IDS["Text"],))] * 2, (*trie.tokens, *OTHERS))
    assert scores.exact.tolist() == [[False, True, True, False, False]] * 2
    assert np.isnan(scores.mass).all() and (scores.logprobs <= 0).all()
    toy.listed -= {IDS[" very"]}
    assert not score(trie, toy, [Prompt((IDS["Text"],))], trie.tokens).exact[0, [0, 2]].any()


def test_a_shared_beginning_that_is_named_too_has_its_own_probability() -> None:
    """A run never names one, but a share of everything is no reason to fail."""
    trie = trie_of(MOODS)
    row = score(trie, ToyBackend(), [Prompt((IDS["Text"],))], (*trie.tokens, IDS[" very"])).logprobs[0]
    assert np.logaddexp(row[0], row[2]) == pytest.approx(row[3])
    assert np.logaddexp.reduce(row) == pytest.approx(0.0)


# Tokens and nodes -------------------------------------------------------------------------------


def test_words_that_begin_differently_are_stood_for_by_their_first_tokens_in_one_call() -> None:
    words = LabelWords(("n", "p", "o"), ((" bad", " awful"), ("xyz",), (" home", " day", " city hall")))
    toy = ToyBackend()
    trie = trie_of(words, toy)
    firsts = (" bad", " awful", "x", " home", " day", " city")
    assert trie.tokens == tuple(IDS.get(text, ord(text[0])) for text in firsts)
    assert trie.groups == ((0, 1), (2,), (3, 4, 5))
    assert trie.over(toy) is toy and len(trie.nodes) == 1 and not trie.shared


def test_only_words_that_begin_alike_get_numbers_of_their_own() -> None:
    trie = trie_of(CITIES)
    assert trie.tokens == (-1, -2, IDS[" home"], -4, IDS[" old"], ord(" "))
    assert trie.groups == ((0,), (1, 2), (3, 4, 5))
    assert trie.shared == {IDS[" new"]}


def test_only_places_where_words_part_are_asked_for() -> None:
    trie = trie_of(CITIES)
    root, new, york = trie.nodes
    assert (root.path, len(root.tokens)) == ((), 4)
    assert new.path == (IDS[" new"],) and new.tokens[1] == IDS[" land"]
    (spelling,) = {ids[1:-1] for ids in trie.ids if ids[-1] == IDS[" city"]}
    assert york.path == (IDS[" new"], *spelling)  # letter by letter, in one input
    assert york.tokens == (IDS[" city"], IDS[" state"])


def test_the_text_of_a_number_is_its_word_and_unknown_numbers_are_refused() -> None:
    trie = trie_of(CITIES)
    backend = trie.over(ToyBackend())
    texts = [asyncio.run(backend.detokenize([token])) for token in trie.tokens]
    assert texts == [" new york city", " new york state", " home", " new land", " old", " "]
    with pytest.raises(BackendError, match="no label word 7"):
        asyncio.run(backend.detokenize([-7]))


# Price ------------------------------------------------------------------------------------------


async def texts_of(n: int) -> tuple[EncodedText, ...]:
    return await Encoder(ToyBackend(), TEMPLATE, MOODS).texts(make_examples(n, 3))


async def scorer_of(toy: ToyBackend, limits: Limits, journal: Journal | None = None) -> Scorer:
    trie = await label_trie(toy, CITIES)
    scorer = Scorer(trie.over(toy), Budget(limits), journal=journal)
    scorer.use_words(trie.tokens + OTHERS)
    return scorer


@given(several, st.integers(1, 4))
def test_what_is_spent_is_what_was_foreseen(words: list[str], n: int) -> None:
    toy = ToyBackend()
    trie = trie_of(labelled(words))
    backend = trie.over(toy)
    prompt = (IDS[" great"], IDS[" book"])
    texts = asyncio.run(texts_of(n))
    used = asyncio.run(backend.score([text.with_prompt(prompt) for text in texts], trie.tokens)).usage
    inputs = backend.info.inputs
    tokens = sum(len(text) + len(prompt) + more for text in texts for more in inputs)
    assert (used.scored, used.prompt_tokens) == (n * len(inputs), tokens)
    assert used.scored == toy.scored
    assert backend.info == replace(toy.info, inputs=inputs, context=toy.info.context - max(inputs))


@given(st.integers(1, 40), st.none() | st.integers(1, 900))
async def test_a_budget_is_never_overshot_and_nothing_is_sent_that_does_not_fit(
    scored: int, tokens: int | None
) -> None:
    toy = ToyBackend()
    scorer = await scorer_of(toy, Limits(scored, tokens))
    texts = await texts_of(8)
    done = 0
    try:
        for text in texts:
            await scorer.score((IDS[" great"],), [text])
            done += 1
    except BudgetSpent:
        assert done < 8
    spent = scorer.budget.spent
    assert spent.scored == toy.scored == 3 * done <= scored
    assert tokens is None or spent.prompt_tokens <= tokens
    if tokens is None:
        assert done == min(8, scored // 3)


async def test_lists_of_words_cost_one_input_a_text() -> None:
    toy = ToyBackend()
    scorer = await scorer_of(toy, Limits(5))
    assert len(await scorer.top_words((), await texts_of(5), 9)) == 5
    assert scorer.budget.spent.scored == 5


async def test_a_second_score_is_free_and_the_journal_holds_one_answer_a_pair(tmp_path: Path) -> None:
    toy = ToyBackend()
    texts = await texts_of(6)
    journal = Journal(tmp_path / "scores.journal", b"secret")
    scorer = await scorer_of(toy, Limits(), journal)
    first = await scorer.score((IDS[" great"],), texts[:4])
    requests, size = toy.requests, (tmp_path / "scores.journal").stat().st_size
    again = await scorer.score((IDS[" great"],), (*texts[:4], *texts[:2]))
    np.testing.assert_array_equal(again, first[[0, 1, 2, 3, 0, 1]])
    assert (toy.requests, scorer.budget.duplicates) == (requests, 6)
    assert (tmp_path / "scores.journal").stat().st_size == size
    assert scorer.budget.spent.scored == 12
    journal.close()


@pytest.mark.parametrize(("number", "answered"), [(1, 0), (2, 4), (3, 8)])
async def test_what_was_answered_before_a_step_failed_is_counted(number: int, answered: int) -> None:
    toy = ToyBackend(fail_on=frozenset({number}))
    scorer = await scorer_of(toy, Limits(100))
    with pytest.raises(BackendError, match=f"fails at request {number}"):
        await scorer.score((), await texts_of(4))
    assert scorer.budget.spent.scored == toy.scored == answered
    assert scorer.budget.left() == 100 - answered


async def test_no_prompts_are_no_work() -> None:
    trie = await label_trie(ToyBackend(), CITIES)
    scores = await trie.over(ToyBackend()).score([], trie.tokens)
    assert scores.logprobs.shape == (0, 6) and scores.mass.shape == (0,)
    assert scores.usage.scored == 0


async def test_the_rest_is_the_other_backend_s() -> None:
    toy = ToyBackend()
    backend = (await label_trie(toy, CITIES)).over(toy)
    assert await backend.tokenize(PROMPT) == await toy.tokenize(PROMPT)
    assert await backend.detokenize(await toy.tokenize(PROMPT)) == PROMPT
    assert (await backend.top_words([Prompt((300,))], 3))[1] == Usage(1, 1, 0, 1)
    assert await backend.token_table() is not None and backend.notice == ""
    await backend.aclose()
    assert toy.closed == 1


# Words that cannot be used, and what people are told ----------------------------------------------


def test_every_label_word_that_cannot_be_used_is_named() -> None:
    words = LabelWords(
        ("n", "p", "o"),
        ((" bad", "big", " very good"), (" good", " bad"), (" very", "big", " home", " good day")),
    )
    with pytest.raises(ConfigError) as caught:
        trie_of(words)
    assert caught.value.problems == [
        "labels.p: ' bad' is the same for toy as labels.n: ' bad'",
        "labels.n: ' very good' begins with all of labels.o: ' very' for toy",
        "labels.o: 'big' is the same for toy as labels.n: 'big'",
        "labels.o: ' good day' begins with all of labels.p: ' good' for toy",
    ]
    assert "another word" in caught.value.hint and "same mark" in caught.value.hint
    with pytest.raises(ConfigError, match=r"labels.a: '' is no token for toy") as caught:
        trie_of(LabelWords(("a", "b"), (("",), (" good",))))
    assert "same mark" not in caught.value.hint


def test_the_mark_of_the_hint_helps() -> None:
    trie = trie_of(LabelWords(("n", "p"), ((" very.",), (" very good.",))))
    assert trie.tokens == (-1, -2) and len(trie.nodes) == 2


class Chat(ToyBackend):
    """Begins a new answer always."""

    @property
    def info(self) -> BackendInfo:
        return replace(super().info, continues=False)


def test_words_that_begin_alike_are_refused_where_an_answer_cannot_be_begun() -> None:
    with pytest.raises(ConfigError, match="cannot be asked on from there") as caught:
        trie_of(MOODS, Chat())
    assert [problem.split(" begins")[0] for problem in caught.value.problems] == [
        "labels.bad: ' very bad'",
        "labels.good: ' very good'",
    ]
    assert trie_of(LabelWords(("a", "b"), ((" very bad",), (" good",))), Chat()).tokens[0] == IDS[" very"]


async def test_people_are_told_how_words_are_read_and_what_it_costs() -> None:
    toy = ToyBackend()
    york, state, land, xyz, cost = await remarks(toy, await label_trie(toy, CITIES))
    assert york.startswith("labels.a: ' new york city' is ") and "it is read in 3 steps" in york
    assert "it is read in 3 steps" in state
    assert "labels.c: ' new land' is 2 tokens for toy (' new' + ' land')" in land
    assert "others begin with ' new' too, so it is read in 2 steps" in land
    assert "its first one, ' ', stands for it" in xyz
    assert "each text takes 3 inputs instead of 1" in cost
    one = LabelWords(("a", "b"), ((" very old city",), (" very old day",)))
    assert (
        "begin with ' very old': at the template's end"
        in (await remarks(toy, await label_trie(toy, one)))[-1]
    )
    plain = LabelWords(("a", "b"), ((" good",), (" bad",)))
    assert await remarks(toy, await label_trie(toy, plain)) == []
