"""Where the search starts: the user's prompts, and prompts with made-up examples of codebook words.

All of them are assessed; they stay in the race to the end, and the best is the centre of the search.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from fedbpt_api.prompts.codebook import Codebook, CodebookSpace, demonstrations, words_after
from fedbpt_api.prompts.space import Ids
from fedbpt_api.run.assess import START, Assessment, Assessor
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.task import Example

_SHARE = 0.4  # of the scored examples that the starting prompts may take
_MOST = 48  # draws of made-up examples


async def choose_origin(assessor: Assessor, codebook: Codebook) -> tuple[Assessment, CodebookSpace]:
    """Assess the starting prompts and choose the centre of the search, with the space around it.

    Raises:
        BudgetSpent: Not even the starting prompt fits into the budget.
    """
    settings, backend = assessor.settings, assessor.parties.backend
    prompts = list(dict.fromkeys(settings.prompts))
    for text in prompts:
        await assessor.assess(await backend.tokenize(text), START)
    spaces: dict[Ids, CodebookSpace] = {}
    shown = () if settings.search.form == "words" else await _shown(assessor)
    if shown:
        for draw, text in _draws(assessor, prompts, forced=settings.search.form == "demonstrations"):
            seed = settings.seed * 1000 + draw
            space = await demonstrations(backend, codebook, text, shown, settings.search.positions, seed)
            ids = space.decode(0.0 * space.anchors)
            try:
                await assessor.assess(ids, "made-up examples")
            except BudgetSpent:
                break
            spaces[ids] = space
    best = assessor.best()
    if settings.search.form == "demonstrations" and spaces:
        best = min((assessor.known[ids] for ids in spaces), key=lambda a: a.train_loss)
    if best.ids in spaces:
        return best, spaces[best.ids]
    return best, await words_after(backend, codebook, best.text, settings.search.positions)


def _draws(assessor: Assessor, prompts: list[str], *, forced: bool) -> Iterator[tuple[int, str]]:
    """Number and base prompt of each draw: one for every prompt, more while they are cheap."""
    budget = assessor.parties.budget
    for draw in count():
        limit = budget.limits.scored
        cheap = limit is None or budget.spent.scored + assessor.cost <= _SHARE * limit
        if draw >= _MOST or not (cheap or (forced and draw == 0)):
            return
        yield draw, prompts[draw % len(prompts)]


async def _shown(assessor: Assessor) -> tuple[tuple[Ids, Ids], ...]:
    """For each label the ids before and after its made-up text, as the template has them.

    Nothing where an example cannot stand before the text: pairs, and prompts after the text.
    """
    parties = assessor.parties
    encoder = Encoder(parties.backend, parties.task.template, parties.task.label_words)
    if parties.task.template.is_pair:
        return ()
    (example,) = await encoder.texts([Example("placeholder")])
    if example.example_first:
        return ()
    at = example.text[0] - len(example.before)
    before, after = example.after[:at], example.after[example.text[-1] - len(example.before) + 1 :]
    firsts = [parties.label_tokens[group[0]] for group in parties.groups]
    return tuple((before, (*after, word)) for word in firsts)
