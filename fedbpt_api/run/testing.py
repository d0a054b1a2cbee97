"""The final test: the test texts are read once, after the search, by every contestant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedbpt_api.errors import FedbptError, QuotaError, RunFolderError
from fedbpt_api.federation.party import Party
from fedbpt_api.federation.tally import Contestant, Tally
from fedbpt_api.prompts.space import members_of
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.result import TestReport
from fedbpt_api.run.stats import report
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.task import Task
from fedbpt_api.verbalizer import Verbalizer


async def contestants_of(assessor: Assessor, tuned: Verbalizer, bias: Verbalizer) -> list[Contestant]:
    """Rows of the test: each compared prompt plain, with bias and weighted; then the tuned one.

    Where the search knew label words alone, the tuned prompt has a row with a fitted bias too.

    The tuned prompt's verbalizer saw development texts too; so that nobody takes that for the
    prompt's merit, the starting prompt has a row with the same advantage.
    """
    parties, settings = assessor.parties, assessor.settings
    words = Verbalizer.from_words(parties.words, parties.groups)
    rows: list[Contestant] = []
    compared = settings.prompts[: {"none": 0, "start": 1, "all": None}[settings.test.compare]]
    for number, text in enumerate(compared, start=1):
        ids = await parties.backend.tokenize(text)
        if ids not in assessor.known:
            continue  # the budget ended before it was judged
        name = "start" if number == 1 else f"prompt {number}"
        judged = assessor.known[ids]
        fits = await assessor.sides(ids, judged.train)
        bias, _ = await assessor.fitted(list(fits.got.values()), "bias")
        rows += [
            Contestant(name, ids, words),
            Contestant(f"{name}+bias", ids, bias),
            Contestant(f"{name}+weighted", ids, judged.verbalizer),
        ]
        if number == 1 and judged.dev_sums.n:
            rows.append(Contestant(f"{name}+weighted+dev", ids, await assessor.refit(judged)))
    found = assessor.best()
    if settings.verbalizer.kind == "words" and not found.fixed:
        rows.append(Contestant("tuned+bias", found.prompt, bias))
    return [*rows, Contestant("tuned", found.prompt, tuned)]


async def final_test(
    parties: Parties,
    task: Task,
    contestants: Sequence[Contestant],
    progress: Callable[[int, int], None],
    timeout: float | None = None,
) -> TestReport | None:
    """Accuracies of all contestants and of the majority label, per client and together.

    The cost is counted apart from the search's, in each client's `tested`. A client that fails, or takes more
    than `timeout` seconds for a prompt, is left out and named in `parties.warnings`; None if all are.

    Raises:
        QuotaError, RunFolderError: No more can be paid for, or kept on disk.
    """
    labels = list(task.label_words.labels)
    asked = {member for c in contestants for member in members_of(c.prompt)}
    tested = [client for client in parties.clients if client.n_test]
    total, done = sum(client.n_test for client in tested) * len(asked), 0
    common = _majority(parties.clients, len(labels))
    tallies: dict[str, Tally] = {}

    def more(answers: int) -> None:
        nonlocal done
        done += answers
        progress(done, total)

    for client in tested:
        try:
            tallies[client.name] = await client.test(contestants, common, more, timeout)
        except (QuotaError, RunFolderError):
            raise  # the run ends, and can go on
        except (FedbptError, TimeoutError, BudgetSpent) as error:  # the last one in a replay of such a run
            parties.warnings.append(f"{client.name} is missing from the test: {error or 'no answer in time'}")
    return report(labels, tallies) if tallies else None


def _majority(clients: Sequence[Party], labels: int) -> int:
    """The label that is most frequent in all training texts; the first of them in case of a tie."""
    counts = np.zeros(labels, dtype=np.int64)
    for client in clients:
        counts[: len(client.label_counts)] += client.label_counts
    return int(counts.argmax())
