"""In-context examples: the clients' own training texts, labelled, put before the text (Brown et al. 2020).

Not private: the texts of some clients go to the model, and to every party, with the prompt. It is here to be
compared with. Draws of 1, 2, 4, 8, ... examples a label, up to what fits, are judged on development texts (of
a client without any, on the half of its training texts that no example is taken from), so that a text is
never judged with itself in the prompt; the best is the run's.
"""

from __future__ import annotations

import itertools

import numpy as np

from fedbpt_api.methods.drawing import A_ROUND, Plan, judge_draws
from fedbpt_api.methods.searching import Searching, Stop
from fedbpt_api.prompts.space import Ids
from fedbpt_api.run.assess import START
from fedbpt_api.task import Example

_PURPOSE = 63
_MOST = 16  # examples a label
_PATIENCE = 50  # draws in a row that do not fit


async def search(run: Searching) -> Stop:
    """Judge the first prompt, then draws of examples until the budget ends."""
    run.phase("starting prompts")
    pool = _given_up(run)
    assessor = run.assessor
    await assessor.assess(run.parties.start_ids, START)
    run.note(run.begun, assessor.best(), None, 0.0)
    run.phase("search")
    rng = np.random.default_rng((run.settings.seed, _PURPOSE))
    fewest = min(map(len, pool))
    sizes = [n for n in (1, 2, 4, 8, _MOST) if n <= fewest] or [fewest]
    turn = itertools.cycle(sizes)

    async def draw() -> tuple[Ids, None]:
        return await _drawn(run, pool, next(turn), rng), None

    return await judge_draws(run, draw, Plan("examples of the clients", A_ROUND, _PATIENCE))


def _given_up(run: Searching) -> list[list[Example]]:
    """For each label the texts that may be shown; clients keep the others alone, for judging."""
    labels = run.task.label_words.labels
    shown: list[Example] = []
    for place, client in enumerate(run.parties.local):
        data = next(d for d in run.task.clients if d.name == client.name)
        run.parties.clients[place], rows = client.withheld()
        shown += [data.train[row] for row in rows]
    return [[e for e in shown if e.label == label] for label in labels]


async def _drawn(run: Searching, pool: list[list[Example]], each: int, rng: np.random.Generator) -> Ids:
    """The first prompt and `each` examples of every label, in a random order."""
    task = run.parties.task
    chosen = [
        (example, label)
        for label, rows in enumerate(pool)
        for example in (rows[int(i)] for i in rng.choice(len(rows), min(each, len(rows)), replace=False))
    ]
    text = run.settings.prompts[0].rstrip("\n")
    text += "\n" if text else ""
    for place in rng.permutation(len(chosen)):
        example, label = chosen[int(place)]
        text += task.template.fill(example, "") + task.label_words.words[label][0] + "\n\n"
    return await run.parties.backend.tokenize(text)
