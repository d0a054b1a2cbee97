"""What a stretch of a run cost: the numbers of a round's record."""

from __future__ import annotations

from fedbpt_api.federation.party import Party
from fedbpt_api.federation.runtime import Round
from fedbpt_api.federation.tally import Sums
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.result import ClientRecord
from fedbpt_api.scoring.backend import Usage


class Meter:
    """What has been spent since it was made, overall and by client."""

    def __init__(self, parties: Parties) -> None:
        self._budget = parties.budget
        self._spent = parties.budget.spent
        self._stored = parties.budget.stored
        self._seconds = parties.budget.seconds
        self._by_client = {c.name: c.budget.spent.scored for c in parties.everyone}

    def used(self) -> Usage:
        return self._budget.spent - self._spent

    def answered(self) -> int:
        """Inputs whose answers were new to the run: scored, or found in the shared store."""
        return self.used().scored + self._budget.stored - self._stored

    def seconds(self) -> float:
        return self._budget.seconds - self._seconds

    def scored(self, client: Party) -> int:
        return client.budget.spent.scored - self._by_client[client.name]


def client_record(
    client: Party, clock: Meter, shown: Assessment, merged: Round | None, left_out: str = ""
) -> ClientRecord:
    """One client's part of a round's record; `left_out` says why it was left out of the run."""
    sums = shown.dev.get(client.name, Sums())
    searched = merged.searched.get(client.name) if merged else None
    note = merged.missing.get(client.name, "") if merged else ""
    if left_out:
        note = f"left out of the run: {left_out}"
    return ClientRecord(
        client=client.name,
        answered=(searched is not None or merged is None) and not note,
        loss=searched.update.loss if searched else float("nan"),
        dev_loss=sums.mean_loss,
        dev_accuracy=sums.accuracy,
        scored=clock.scored(client),
        distinct=searched.distinct if searched else 1.0,
        note=note,
        bytes_up=merged.bytes_up if merged and searched else 0,
        bytes_down=merged.bytes_down if merged and searched else 0,
    )
