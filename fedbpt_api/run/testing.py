"""The final test: the test texts are read once, after the search, by every contestant."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from fedbpt_api.errors import FedbptError, QuorumError, QuotaError, RunFolderError
from fedbpt_api.fanning import side_by_side
from fedbpt_api.federation.party import Party
from fedbpt_api.federation.tally import Contestant, Tally
from fedbpt_api.prompts.space import members_of
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.chosen import refit
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.result import TestReport
from fedbpt_api.run.stats import report
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.task import Task
from fedbpt_api.verbalizer import Reading, Verbalizer


async def compared(assessor: Assessor) -> list[Contestant]:
    """Rows of the test beside the tuned prompt's: each compared prompt plain, with bias and weighted.

    The tuned prompt's verbalizer saw development texts too; so that nobody takes that for the
    prompt's merit, the starting prompt has a row with the same advantage.
    """
    parties, settings = assessor.parties, assessor.settings
    words = Verbalizer.from_words(parties.words, parties.groups)
    texts = settings.prompts[: {"none": 0, "start": 1, "all": None}[settings.test.compare]]

    async def rows(number: int, text: str) -> list[Contestant]:
        ids = await parties.backend.tokenize(text)
        if ids not in assessor.known:
            return []  # the budget ended before it was judged
        name, judged = "start" if number == 1 else f"prompt {number}", assessor.known[ids]
        if settings.privacy.mode == "gaussian":  # its bias is known; nothing more may be asked
            return [Contestant(name, ids, words), Contestant(f"{name}+bias", ids, judged.verbalizer)]
        work: list[Coroutine[Any, Any, Any]] = [assessor.fit(ids, "bias", judged.train)]
        work += [refit(assessor, judged)] if number == 1 and judged.dev_sums.n else []
        (bias, _), *refitted = await side_by_side(work)
        return [
            Contestant(name, ids, words),
            Contestant(f"{name}+bias", ids, bias),
            Contestant(f"{name}+weighted", ids, judged.verbalizer),
            *(Contestant(f"{name}+weighted+dev", ids, more) for more in refitted),
        ]

    found = await side_by_side([rows(number, text) for number, text in enumerate(texts, start=1)])
    return [row for group in found for row in group]


def contestants_of(
    assessor: Assessor, others: Sequence[Contestant], tuned: Reading, bias: Verbalizer
) -> list[Contestant]:
    """All rows of the test: those of `compared`, then the tuned prompt's.

    Where the search knew label words alone, the tuned prompt has a row with a fitted bias too.
    """
    found, rows = assessor.best(), list(others)
    if assessor.settings.verbalizer.kind == "words" and not found.fixed:
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
        QuorumError: All parties behind a network are left out; they are asked when the run is started again.
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

    async def test(client: Party) -> None:
        try:
            tallies[client.name] = await client.test(contestants, common, more, timeout)
        except (QuotaError, RunFolderError):
            raise  # the run ends, and can go on
        except (FedbptError, TimeoutError, BudgetSpent) as error:  # the last one in a replay of such a run
            parties.warnings.append(
                f"{client.name} is missing from the test: {str(error) or 'no answer in time'}"
            )

    if parties.apart:
        await side_by_side([test(client) for client in tested])
    else:
        for client in tested:
            await test(client)
    if tested and parties.apart and not tallies:
        raise QuorumError("nobody has answered the test", "see what the parties say, then start again")
    parties.go_on([client.name for client in tested if client.name not in tallies])
    tallies = {client.name: tallies[client.name] for client in tested if client.name in tallies}
    return report(labels, tallies) if tallies else None


def _majority(clients: Sequence[Party], labels: int) -> int:
    """The label that is most frequent in all training texts; the first of them in case of a tie."""
    counts = np.zeros(labels, dtype=np.int64)
    for client in clients:
        counts[: len(client.label_counts)] += client.label_counts
    return int(counts.argmax())
