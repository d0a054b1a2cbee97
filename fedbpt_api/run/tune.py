"""The main job: from a task and settings to a tuned prompt, with everything paid for on disk.

Phases: word list; the search of the method that the settings name (`fedbpt_api.methods`), which judges
prompts; the best prompt by held-out loss; and, once, the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedbpt_api.fanning import side_by_side
from fedbpt_api.federation.runtime import Round
from fedbpt_api.methods.loops import LOOPS
from fedbpt_api.methods.searching import Searching, Stop
from fedbpt_api.prompts.codebook import Codebook, codebook_for
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run import present
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.chosen import artefact, fallback, refit
from fedbpt_api.run.config import Settings
from fedbpt_api.run.enclosed import opener_of
from fedbpt_api.run.ensemble import average_best, choose_ensemble
from fedbpt_api.run.events import Assessed, Event, Finished, Noted, RoundDone, Status, Testing, Warned
from fedbpt_api.run.folder import RunFolder
from fedbpt_api.run.inputs import Inputs
from fedbpt_api.run.lateness import LateRecords
from fedbpt_api.run.layout import settle_layout
from fedbpt_api.run.meter import Meter, client_record
from fedbpt_api.run.parties import Keep, Parties, PartiesOpener, versions
from fedbpt_api.run.private import released, told
from fedbpt_api.run.result import RoundRecord, RunResult
from fedbpt_api.run.suspects import leave_out_suspects
from fedbpt_api.run.testing import compared, contestants_of, final_test
from fedbpt_api.run.words import choose_words
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.scorer import Stopped
from fedbpt_api.task import Task
from fedbpt_api.verbalizer import Verbalizer

_WATCH = 30.0  # seconds between looks at how the servers are


class Tuner:
    """One run. Holds no global state: two tuners in one process do not disturb each other.

    Args:
        settings: Checked settings.
        task: Texts, template and label words.
        folder: Where everything is kept; None keeps nothing.
        on_event: Called with each event, in order.
        keep: Where answers are kept and found, if that is not the folder: for a replay.
        opener: Opens the parties; those of this process, if it is not given.

    Raises:
        RunFolderError: The folder holds a run already or cannot be written.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        folder: Path | RunFolder | None = None,
        on_event: Callable[[Event], None] | None = None,
        keep: Keep | None = None,
        opener: PartiesOpener | None = None,
    ) -> None:
        self._opener = opener or opener_of(settings)
        self.settings = settings
        self.task = task
        if isinstance(folder, Path):
            folder = RunFolder.begin(folder, settings, Inputs.of(task))
        self._folder = folder
        self._keep = keep or Keep(folder.path if folder is not None else None)
        self._listener = on_event
        self._stopping = False
        self._phase = "opening"
        self._tested = (0, 0)
        self._warned = 0
        self._assessor: Assessor | None = None
        self._searching: Searching | None = None
        self._fallback: Verbalizer | None = None
        self._rounds: list[RoundRecord] = []
        self._lateness = LateRecords(self._keep.folder, folder.path if folder is not None else None)

    def stop(self) -> None:
        """End the run soon: what was sent is received, the best prompt so far is saved."""
        self._stopping = True

    @property
    def stopping(self) -> bool:
        """Whether it has been asked to end."""
        return self._stopping

    @property
    def status(self) -> Status:
        """Where the run stands, for progress displays."""
        if self._assessor is None:
            return Status(self._phase, 0, 0, self.settings.budget.scored, 0.0, 0.0, {})
        parties = self._assessor.parties
        budget = parties.budget
        return Status(
            phase=self._phase,
            round=max(len(self._rounds) - 1, 0),
            scored=budget.spent.scored,
            left=budget.left(),
            seconds=budget.seconds,
            rate=budget.spent.scored / budget.seconds if budget.seconds > 0 else 0.0,
            clients={c.name: c.budget.spent.scored for c in parties.clients},
            tested=self._tested,
            notice=parties.notice,
            money=present.money_of(budget.money, budget.limits.money, parties.currency),
        )

    async def run(self) -> RunResult:
        """Tune and test.

        Raises:
            ConfigError: Something does not fit this model; nothing has been scored.
            FedbptError: The backend or too many clients failed; the best prompt so far is on disk.
        """
        parties: Parties | None = None
        watching: asyncio.Task[None] | None = None
        try:
            parties = await self._opener(self.settings, self.task, lambda: self._stopping, self._keep)
            self._assessor = self._judge(parties)
            if self._folder is not None:
                self._folder.start()
                self._folder.write_versions(versions(parties.info))
            self._tell(parties.started(self.settings.budget.scored))
            if promised := told(self.settings, parties.count):
                self._tell(Noted(promised))
            self._warn(parties)
            if parties.answered and self._keep.ended is None:
                self._tell(Noted(f"{parties.answered:,} scored examples are paid for already and on disk"))
            watching = asyncio.create_task(self._watch(parties))
            stopped = await self._tune(parties, self._assessor)
            if stopped != "cancelled":
                parties.go_on(None)
            return await self._finish(parties, self._assessor, stopped)
        finally:
            if watching is not None:
                watching.cancel()
            try:
                if self._phase not in ("test", "done"):  # there the final one is saved already
                    self._save_best()
            finally:
                if parties is not None:
                    await parties.aclose()
                    self._warn(parties)
                self._lateness.close()
                if self._folder is not None:
                    self._folder.close()

    # Phases ---------------------------------------------------------------------------------

    async def _tune(self, parties: Parties, assessor: Assessor) -> Stop:
        parties.start()
        clock = Meter(parties)

        def note(clock: Meter, shown: Assessment, merged: Round | None, sigma: float) -> None:
            self._add_round(self._record(clock, shown, merged, sigma))
            self._save_best()

        try:
            if layout := await settle_layout(parties, self.settings):
                self.settings = assessor.settings = layout.settings
                self._tell(Noted(layout.why))
            self._phase = "words"
            await choose_words(parties, assessor)
            self._searching = Searching(
                assessor,
                self.task,
                clock,
                lambda: self._words_of_search(parties),
                note,
                self._show_phase,
                lambda: self._stopping,
                self._lateness,
            )
            return await LOOPS[self.settings.search.algorithm](self._searching)
        except (BudgetSpent, Stopped) as end:
            if assessor.known and not self._rounds:  # it ended among the starting prompts
                self._add_round(self._record(clock, assessor.best(), None, self.settings.search.sigma))
            return "budget" if isinstance(end, BudgetSpent) else "cancelled"

    async def _words_of_search(self, parties: Parties) -> Codebook:
        return await parties.facts.remember(
            "codebook",
            lambda: codebook_for(parties.backend, self.settings.search.coordinates),
            Codebook.to_dict,
            Codebook.from_dict,
        )

    async def _finish(self, parties: Parties, assessor: Assessor, stopped: Stop) -> RunResult:
        """Save the tuned prompt; then read the test texts, once."""
        suspected = assessor.ended = True
        while suspected:
            found = await self._together(parties, assessor)
            testing = stopped != "cancelled" and any(client.n_test for client in parties.clients)
            work: list[Coroutine[Any, Any, Any]] = [fallback(assessor, found), refit(assessor, found)]
            work += [compared(assessor)] if testing else []
            # Who lied in what it was asked since the first time is found here, before the test.
            work = [leave_out_suspects(assessor, found), *work]
            suspected, bias, verbalizer, *others = await side_by_side(work)
        self._fallback = bias
        best = replace(found, verbalizer=verbalizer)
        self._save(best)
        result = RunResult(
            folder=str(self._folder.path) if self._folder else None,
            prompt=best.text,
            start=self.settings.prompts[0],
            stopped=stopped,
            rounds=tuple(self._rounds),
            spent=parties.spent(),
            test=None,
            currency=parties.currency,
            privacy=self._privacy(parties),
        )
        if testing:
            self._phase = "test"
            self._tell(Testing(sum(client.n_test for client in parties.clients)))
            contestants = contestants_of(assessor, others[0], verbalizer, bias)
            try:
                timeout = self.settings.federation.timeout
                report = await final_test(parties, self.task, contestants, self._count_tested, timeout)
                result = replace(result, test=report)
            except Stopped:
                result = replace(result, stopped="cancelled")
            result = replace(result, spent=parties.spent(), privacy=self._privacy(parties))
        self._phase = "done"
        self._warn(parties)
        if self._folder is not None:
            self._folder.write_result(result, self._artefact(best), self.settings)
        self._tell(Finished(result))
        return result

    async def _together(self, parties: Parties, assessor: Assessor) -> Assessment:
        """The best prompt, or the best that answer together: no call is needed to find them."""
        clock, most = Meter(parties), self.settings.search.ensemble
        if self.settings.privacy.mode == "gaussian":
            found = await average_best(assessor, most)
        elif self.settings.search.choice == "held-out":
            found = assessor.best()
        else:
            found = await choose_ensemble(assessor, most)
        if assessor.chosen is not None:
            self._add_round(self._record(clock, found, None, self._rounds[-1].sigma))
        return found

    async def _watch(self, parties: Parties) -> None:
        """Warn while a server is slow or in trouble, so that a silent run can be told from a busy one."""
        while True:
            await asyncio.sleep(_WATCH)
            if parties.notice:
                self._tell(Warned(parties.notice))

    def _judge(self, parties: Parties) -> Assessor:
        """Who judges prompts; an estimate does it otherwise."""
        return Assessor(parties, self.settings, self._tell)

    def _privacy(self, parties: Parties) -> str:
        """What was spent of privacy."""
        return told(self.settings, parties.count, released(self.settings, parties.everyone))

    # Small parts ----------------------------------------------------------------------------

    def _record(self, clock: Meter, shown: Assessment, merged: Round | None, sigma: float) -> RoundRecord:
        assert self._assessor is not None
        best = self._assessor.best()
        used = clock.used()
        parties = self._assessor.parties
        searched = merged.searched.values() if merged else ()
        return RoundRecord(
            round=len(self._rounds),
            dev_loss=shown.dev_sums.mean_loss,
            dev_accuracy=shown.dev_sums.accuracy,
            best_dev_loss=best.dev_sums.mean_loss,
            best_dev_accuracy=best.dev_sums.accuracy,
            sigma=sigma,
            distinct=float(np.mean([s.distinct for s in searched])) if searched else 1.0,
            scored=used.scored,
            tokens=used.prompt_tokens,
            seconds=clock.seconds(),
            bytes_up=merged.bytes_up * len(searched) if merged else 0,
            bytes_down=merged.bytes_down * len(searched) if merged else 0,
            clients=tuple(
                client_record(c, clock, shown, merged, parties.left_out.get(c.name, ""))
                for c in parties.everyone
            ),
            prompt=best.text,
        )

    def _add_round(self, record: RoundRecord) -> None:
        self._rounds.append(record)
        if self._folder is not None:
            self._folder.append_round(record)
        self._tell(RoundDone(record))
        if self._assessor is not None:
            self._warn(self._assessor.parties)

    def _artefact(self, best: Assessment) -> TunedPrompt:
        assert self._assessor is not None
        space = self._searching.space.identity if self._searching and self._searching.space else {}
        return artefact(self._assessor, best, space, self._fallback)

    def _save_best(self) -> None:
        if self._assessor is not None and self._assessor.known:
            self._save(self._assessor.best())

    def _save(self, best: Assessment) -> None:
        if self._folder is not None:
            self._folder.write_prompt(self._artefact(best))

    def _warn(self, parties: Parties) -> None:
        """Tell the warnings that have not been told."""
        while self._warned < len(parties.warnings):
            self._warned += 1
            self._tell(Warned(parties.warnings[self._warned - 1]))

    def _show_phase(self, phase: str) -> None:
        self._phase = phase

    def _count_tested(self, done: int, total: int) -> None:
        self._tested = (done, total)

    def _tell(self, event: Event) -> None:
        if self._folder is not None and isinstance(event, Assessed):
            self._folder.append_prompt(event)
        if self._listener is not None:
            self._listener(event)
