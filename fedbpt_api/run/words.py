"""Which words a verbalizer may read: the label words, then those that vary most over the training texts."""

from __future__ import annotations

from typing import Final

from fedbpt_api.prompts.space import Ids
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.parties import Parties
from fedbpt_api.verbalizer import WordSums, encode, merge_words
from fedbpt_api.verbalizer.words import MAX_PAIRS, bounded, questions

_CHOICE: Final = 2  # times as many words as are chosen are asked for by name first
_SHARE: Final = 0.2  # of the budget that this may take at most


async def choose_words(parties: Parties, assessor: Assessor) -> None:
    """Have every client ask for the same T named words from now on, label words first.

    Raises:
        BudgetSpent: The training texts do not fit into the budget.
        QuorumError: Too few clients answered.
    """
    verbalizer = assessor.settings.verbalizer
    wanted = min(verbalizer.words, parties.info.max_words)
    words = parties.label_tokens
    if verbalizer.kind == "weighted" and wanted > len(words):
        answers = await assessor.ask(lambda c: c.word_sums(parties.start_ids, words))
        if named := _named(parties, words, wanted):
            answers = await assessor.ask(lambda c: c.word_sums(parties.start_ids, words, named))
        begun = parties.trie.shared  # what these tell, the label words that begin with them tell
        texts = {client.name: client.n_train for client in parties.clients if client.name in answers.got}
        got = [pairs for _, pairs in sorted(bounded(answers.got, texts).items())]
        lists = [tuple(pair for pair in pairs if pair[0] not in begun) for pairs in got]
        every = len(words) + sum(map(len, lists))
        words = merge_words(lists, words, every if parties.reached else wanted)
        if parties.reached:
            words = await _of_this_model(parties, words, wanted)
        parties.count_bytes({n: len(encode(WordSums.of(p))) for n, p in answers.got.items()}, {})
    await parties.use_words(words)


def most_named(wanted: int, words: int) -> int:
    """How many of the words that vary most by the lists are asked for by name, where all allow it.

    Args:
        wanted: T, how many are to be read.
        words: Label words among them.
    """
    return min(_CHOICE * (wanted - words), MAX_PAIRS)


def _named(parties: Parties, words: Ids, wanted: int) -> int:
    """The same for these parties, whose lists have been paid for.

    None where it would take too much of a budget, or where a server answers by a list whatever is named.
    """
    named, cost = most_named(wanted, len(words)), 0
    for client in parties.clients:
        if not client.info.complete or client.info.max_words <= len(words):
            return 0
        own = client.n_train * questions(named, len(words), client.info.max_words)
        if client.budget.used(own) > _SHARE:
            return 0
        cost += own
    return named if parties.budget.used(cost) <= _SHARE else 0


async def _of_this_model(parties: Parties, ranked: Ids, wanted: int) -> Ids:
    """The first so many words that are tokens at all: the server's model is asked for their texts."""
    found: list[int] = []
    for token in ranked:
        if len(found) < wanted and await parties.known((token,)):
            found.append(token)
    return tuple(found)
