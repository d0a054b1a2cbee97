"""The final test: the test texts are read once, after the search, by every contestant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedbpt_api.errors import FedbptError, QuotaError, RunFolderError
from fedbpt_api.prompts.space import Asked, members_of
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.result import TestReport
from fedbpt_api.run.stats import compare, majority_label
from fedbpt_api.scoring.budget import Budget, BudgetSpent
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.task import ClientData, Task
from fedbpt_api.verbalizer import Verbalizer


@dataclass(frozen=True, slots=True)
class Contestant:
    """A prompt with a verbalizer, under the name it has in the table."""

    method: str
    prompt: Asked
    verbalizer: Verbalizer


async def final_test(
    parties: Parties,
    task: Task,
    contestants: Sequence[Contestant],
    progress: Callable[[int, int], None],
    timeout: float | None = None,
) -> TestReport | None:
    """Accuracies of all contestants and of the majority label, per client and together.

    The cost is counted apart from the search's, in `parties.tests`. A client that fails, or takes more
    than `timeout` seconds for a prompt, is left out and named in `parties.warnings`; None if all are.

    Raises:
        QuotaError, RunFolderError: No more can be paid for, or kept on disk.
    """
    labels = list(task.label_words.labels)
    prompts = list(dict.fromkeys(c.prompt for c in contestants))
    tested = [client for client in task.clients if client.test]
    asked = {member for prompt in prompts for member in members_of(prompt)}
    total, done = sum(len(client.test) for client in tested) * len(asked), 0
    truth: list[int] = []
    owners: list[str] = []
    predictions: dict[str, list[int]] = {c.method: [] for c in contestants}
    for client in tested:
        party = next(c for c in parties.clients if c.name == client.name)
        theirs = party.scorer
        budget = parties.tests.setdefault(client.name, Budget(price=theirs.budget.price))
        scorer = Scorer(theirs.backend, budget, parties.stopping, theirs.journal, theirs.shelf)
        scorer.use_words(party.scorer.words)
        encoded = await parties.encoders[client.name].labelled(client.test, "test")
        rows = {}
        seen: set[Asked] = set()
        try:
            for prompt in prompts:
                async with asyncio.timeout(timeout):
                    rows[prompt] = await scorer.scores(prompt, encoded.texts)
                new = set(members_of(prompt)) - seen
                seen |= new
                done += len(encoded) * len(new)
                progress(done, total)
        except (QuotaError, RunFolderError):
            raise  # the run ends, and can go on
        except (FedbptError, TimeoutError, BudgetSpent) as error:  # the last one in a replay of such a run
            parties.warnings.append(f"{client.name} is missing from the test: {error or 'no answer in time'}")
            continue
        finally:
            await scorer.aclose()
        truth += encoded.labels.tolist()
        owners += [client.name] * len(encoded)
        for c in contestants:
            predictions[c.method] += c.verbalizer.logits(*rows[c.prompt]).argmax(axis=1).tolist()
    if not truth:
        return None
    common = _majority(task.clients, labels)
    predictions["majority"] = [common] * len(truth)
    return compare(
        labels,
        np.array(truth, dtype=np.int64),
        {method: np.array(p, dtype=np.int64) for method, p in predictions.items()},
        np.array(owners),
    )


def _majority(clients: Sequence[ClientData], labels: list[str]) -> int:
    """The label that is most frequent in all training texts."""
    known = [labels.index(e.label) for client in clients for e in client.train if e.label is not None]
    return majority_label(np.array(known, dtype=np.int64), len(labels))
