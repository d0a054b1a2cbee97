"""Edits of the first prompt without any language model, after GrIPS (Prasad et al. 2023, arXiv 2203.07281).

Greedy search (their algorithm 1): in every iteration m candidates are made from the best prompt so far, each
by one edit of a phrase chosen at random; all are judged, and the best takes its place if it is better. Edits:
delete a phrase, swap two, add back one that was deleted, and, where GrIPS paraphrases with a second language
model, replace a word by a near one of the model's own vocabulary. A phrase is a run of words between
punctuation, of at most four words (GrIPS takes a parser's constituents).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from fedbpt_api.methods.searching import Searching, Stop
from fedbpt_api.prompts.codebook import Codebook
from fedbpt_api.run.assess import START
from fedbpt_api.scoring.budget import BudgetSpent

_CANDIDATES = 5  # GrIPS's m
_PATIENCE = 8  # iterations without a better prompt after which it ends (GrIPS: 2)
_PURPOSE = 62
_NEAR = 12  # words near a word, of which one takes its place
_PHRASE = re.compile(r"(?:\S+\s*){1,4}?(?:(?<=[.,;:!?\n])\s*|(?=$))|(?:\S+\s*){4}")


async def search(run: Searching) -> Stop:
    """Judge the first prompt, then edit it until the budget ends or nothing better is found."""
    run.phase("starting prompts")
    assessor, backend = run.assessor, run.parties.backend
    best = await assessor.assess(run.parties.start_ids, START)
    run.note(run.begun, best, None, 0.0)
    run.phase("search")
    codebook = await run.codebook()
    rng = np.random.default_rng((run.settings.seed, _PURPOSE))
    parts, deleted = phrases(run.settings.prompts[0]), list[str]()
    stale = 0
    while stale < _PATIENCE:
        clock, ended, made = run.meter(), False, list[tuple[list[str], str | None]]()
        for _ in range(_CANDIDATES):
            edited, gone = edit(parts, deleted, codebook, rng)
            made.append((edited, gone))
        better = None
        for edited, gone in made:
            try:
                found = await assessor.assess(await backend.tokenize("".join(edited)), "edit")
            except BudgetSpent:
                ended = True
                break
            if found.beats(best):
                best, better = found, (edited, gone)
        if better is not None:
            parts = better[0]
            deleted += [better[1]] if better[1] is not None else []
        stale = 0 if better is not None else stale + 1
        run.note(clock, best, None, 0.0)
        if ended:
            return "budget"
    return "cap"


def phrases(text: str) -> list[str]:
    """Pieces of at most four words that end at punctuation; together they are the text."""
    found, end = [], 0
    for match in _PHRASE.finditer(text):
        if match.group():
            found.append(text[end : match.end()])
            end = match.end()
    return [*found, text[end:]] if end < len(text) else found


def edit(
    parts: Sequence[str], deleted: Sequence[str], codebook: Codebook, rng: np.random.Generator
) -> tuple[list[str], str | None]:
    """One random edit: the edited phrases, and the one that was deleted, if one was."""
    edited = list(parts)
    words = [(i, m) for i, part in enumerate(parts) for m in re.finditer(r"[A-Za-z]+", part)]
    possible = [
        *(["delete"] if edited else []),
        *(["swap"] if len(edited) > 1 else []),
        *(["add"] if deleted else []),
        *(["replace"] if words else []),
    ]
    if not possible:
        return edited, None
    kind = possible[int(rng.integers(len(possible)))]
    if kind == "delete":
        return edited, edited.pop(int(rng.integers(len(edited))))
    if kind == "swap":
        i, j = rng.choice(len(edited), 2, replace=False)
        edited[i], edited[j] = edited[j], edited[i]
    elif kind == "add":
        edited.insert(int(rng.integers(len(edited) + 1)), deleted[int(rng.integers(len(deleted)))])
    else:
        i, match = words[int(rng.integers(len(words)))]
        near = neighbours(codebook, match.group())
        word = near[int(rng.integers(len(near)))] if near else match.group()
        edited[i] = edited[i][: match.start()] + word + edited[i][match.end() :]
    return edited, None


def neighbours(codebook: Codebook, word: str) -> list[str]:
    """The words nearest to a word in the codebook's coordinates; none for one that it does not have."""
    texts = {text.strip(): row for row, text in enumerate(codebook.texts)}
    row = texts.get(word, texts.get(word.lower()))
    if row is None:
        return []
    _, nearest = codebook.tree.query(codebook.coordinates[row], k=min(_NEAR + 1, len(codebook.texts)))
    return [codebook.texts[int(i)].strip() for i in np.atleast_1d(nearest) if int(i) != row]
