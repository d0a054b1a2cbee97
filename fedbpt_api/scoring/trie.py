"""Label words as token ids, and those that begin alike told apart step by step.

Where all words begin differently, the first token of each stands for it: one input a text. Words such as
" very good" and " very bad" are read down a trie of their tokens: the root is asked for all first tokens, and
for every beginning that words share, text + beginning is asked for the tokens that tell them apart. The
probabilities along the way are multiplied, as in decoding that is constrained to the words. For a shared
beginning that is one more input, most of which a server's prefix cache holds; nothing is asked beyond need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.scoring.backend import Backend, BackendInfo, PartlyAnswered, Prompt, Scores, TokenTable, Usage
from fedbpt_api.scoring.encode import Ids
from fedbpt_api.task import LabelWords


@dataclass(frozen=True, slots=True)
class Node:
    """A place where words part: one of the inputs that a text's answer takes.

    Attributes:
        path: Token ids that stand behind the text's own there; none at the root.
        tokens: The K tokens that are asked for, each once.
        columns: Numbers of the words that pass here.
        ways: For each of these, which of the K tokens it goes on with.
    """

    path: Ids
    tokens: Ids
    columns: tuple[int, ...]
    ways: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelTrie:
    """The label words of a task as one model's token ids.

    Attributes:
        label_words: Labels and their words.
        ids: Token ids of every word, label by label; no word's ids are the beginning of another's.
    """

    label_words: LabelWords
    ids: tuple[Ids, ...]

    @property
    def tokens(self) -> Ids:
        """What stands for each word: its first token, or the number -1 - i where word i shares that."""
        shared = self.shared
        return tuple(-1 - i if ids[0] in shared else ids[0] for i, ids in enumerate(self.ids))

    @property
    def groups(self) -> tuple[Ids, ...]:
        """For each label the columns of its words."""
        count = iter(range(len(self.ids)))
        return tuple(tuple(next(count) for _ in words) for words in self.label_words.words)

    @property
    def shared(self) -> frozenset[int]:
        """First tokens of several words."""
        return frozenset(token for token, n in Counter(ids[0] for ids in self.ids).items() if n > 1)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The inputs that a text's answer takes, the root first."""
        return _nodes([self.path(token) for token in self.tokens])

    def path(self, token: int) -> Ids:
        """Token ids of what `token` stands for: a word's, or itself.

        Raises:
            BackendError: No word has that number.
        """
        if token >= 0:
            return (token,)
        if -token > len(self.ids):
            raise BackendError(f"there is no label word {-token}", "was this prompt made for another task?")
        return self.ids[-1 - token]

    def over(self, backend: Backend) -> Backend:
        """A backend that answers for `tokens`: the same one, where no words begin alike."""
        return TrieBackend(backend, self) if self.shared else backend


class TrieBackend:
    """A backend in front of another one, which answers for words that begin alike too.

    Every step of a word is an input of its own, and so a scored example.

    Args:
        backend: Who answers; closed with this one.
        trie: The label words in its tokens.
    """

    def __init__(self, backend: Backend, trie: LabelTrie) -> None:
        self._backend, self._trie = backend, trie
        inputs = tuple(len(node.path) for node in trie.nodes)
        self._info = replace(backend.info, inputs=inputs, context=backend.info.context - max(inputs))
        self._known: tuple[Ids, tuple[Node, ...]] = ((), ())  # the words asked for last, and their nodes

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def notice(self) -> str:
        return self._backend.notice

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return await self._backend.tokenize(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self._backend.detokenize([token for i in ids for token in self._trie.path(i)])

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        """As `Backend.score`; words that begin alike are compared with each other where they part.

        Raises:
            PartlyAnswered: A later step failed.
        """
        shape = (len(prompts), len(words))
        rows, whole, exact, usage = np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=np.bool_), Usage()
        for node in self._nodes(tuple(words)):
            asked = [replace(prompt, ids=prompt.ids + node.path) for prompt in prompts]
            try:
                found = await self._backend.score(asked, node.tokens)
            except BackendError as error:
                if usage == Usage():
                    raise
                raise PartlyAnswered(error, usage) from error
            columns, ways = list(node.columns), list(node.ways)
            with np.errstate(divide="ignore"):
                whole[:, columns] += (found.logprobs + np.log(found.mass)[:, None])[:, ways]
            rows[:, columns] += found.logprobs[:, ways]
            exact[:, columns] &= found.exact[:, ways]
            usage = usage + found.usage
        rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
        return Scores(np.minimum(rows, 0.0), exact, np.exp(whole).sum(axis=1), usage)

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        return await self._backend.top_words(prompts, k)

    async def token_table(self) -> TokenTable | None:
        return await self._backend.token_table()

    async def aclose(self) -> None:
        await self._backend.aclose()

    def _nodes(self, words: Ids) -> tuple[Node, ...]:
        if self._known[0] != words:
            self._known = words, _nodes([self._trie.path(word) for word in words])
        return self._known[1]


async def label_trie(backend: Backend, label_words: LabelWords) -> LabelTrie:
    """Token ids of all label words.

    Raises:
        ConfigError: Words that are no token at all, or the same tokens as another one or the beginning of it;
            words that begin alike where the server cannot be asked how a begun answer goes on.
    """
    model = backend.info.model
    owners, ids = _owners(label_words), [await backend.tokenize(word) for word in _words(label_words)]
    problems: list[str] = []
    whole = False  # whether a word is the beginning of another
    for i, (owner, mine) in enumerate(zip(owners, ids, strict=True)):
        if not mine:
            problems.append(f"{owner} is no token for {model}")
        for other, its in zip(owners[:i], ids[:i], strict=True):
            if mine == its != ():
                problems.append(f"{owner} is the same for {model} as {other}")
                break
            short, long = sorted(((mine, owner), (its, other)), key=lambda pair: len(pair[0]))
            if short[0] and long[0][: len(short[0])] == short[0]:
                whole = True
                problems.append(f"{long[1]} begins with all of {short[1]} for {model}")
                break
    if problems:
        mark = ", or end both with the same mark, such as ' very.' and ' very good.'" if whole else ""
        raise ConfigError(
            problems, f"take another word, usually a short common one with a blank before it{mark}"
        )
    trie = LabelTrie(label_words, tuple(ids))
    if trie.shared and not backend.info.continues:
        alike = [owner for owner, token in zip(owners, trie.tokens, strict=True) if token < 0]
        raise ConfigError(
            [
                f"{owner} begins as other words do, and {model} cannot be asked on from there"
                for owner in alike
            ],
            "take words that begin differently, or a server that lets an answer be begun: completions, or a "
            "chat with prefill",
        )
    return trie


async def remarks(backend: Backend, trie: LabelTrie) -> list[str]:
    """For every label word of several tokens a sentence that says how it is read, and what that costs."""
    found = []
    steps = Counter(column for node in trie.nodes for column in node.columns)
    for column, (owner, ids, token) in enumerate(
        zip(_owners(trie.label_words), trie.ids, trie.tokens, strict=True)
    ):
        if len(ids) > 1:
            pieces = [repr(await backend.detokenize([i])) for i in ids]
            how = f"its first one, {pieces[0]}, stands for it"
            if token < 0:
                how = f"others begin with {pieces[0]} too, so it is read in {steps[column]} steps"
            found.append(
                f"{owner} is {len(ids)} tokens for {backend.info.model} ({' + '.join(pieces)}); {how}"
            )
    if trie.shared:
        found.append(
            f"some label words begin alike: each text takes {len(trie.nodes)} inputs instead of 1, "
            "and each is a scored example"
        )
    if len(trie.nodes[0].tokens) == 1:
        lead = await backend.detokenize(trie.nodes[1].path)
        found.append(
            f"all label words begin with {lead!r}: at the template's end it would save an input a text"
        )
    return found


def _words(label_words: LabelWords) -> list[str]:
    return [word for words in label_words.words for word in words]


def _owners(label_words: LabelWords) -> list[str]:
    """Every word with its label, as messages name it."""
    pairs = zip(label_words.labels, label_words.words, strict=True)
    return [f"labels.{label}: {word!r}" for label, words in pairs for word in words]


def _nodes(paths: Sequence[Ids]) -> tuple[Node, ...]:
    """Where words part: the root, and every longer beginning that several of them have before they differ.

    A word that ends where others go on is not asked for any further: only among label words is that refused.
    """
    found: list[Node] = []
    waiting: list[tuple[Ids, list[int]]] = [((), list(range(len(paths))))]
    for path, columns in waiting:  # grows meanwhile
        branches: dict[int, list[int]] = {}
        for column in columns:
            branches.setdefault(paths[column][len(path)], []).append(column)
        tokens = tuple(branches)
        ways = tuple(tokens.index(paths[column][len(path)]) for column in columns)
        found.append(Node(path, tokens, tuple(columns), ways))
        for group in branches.values():
            longer = [column for column in group if len(paths[column]) > len(path) + 1]
            if len(longer) > 1:
                waiting.append((_common([paths[column] for column in longer]), longer))
    return tuple(found)


def _common(paths: Sequence[Ids]) -> Ids:
    """What all of them begin with."""
    steps = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*paths, strict=False))
    return tuple(tokens[0] for tokens in steps)
