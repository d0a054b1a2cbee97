"""Prompt first or example first: which stands at the front is what a server's prefix cache can keep.

With the example first its tokens are evaluated once for all candidates, with the prompt first the
prompt's once for all examples; so the longer part belongs to the front. But it changes the task that
the model sees (measured: up to 6 points worse), so both are tried on held-out texts before the cheaper
one is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedbpt_api.errors import FedbptError, QuotaError, RunFolderError
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.runtime import ask_all
from fedbpt_api.run.config import Settings
from fedbpt_api.run.parties import Parties
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.encode import Ids
from fedbpt_api.task import Template
from fedbpt_api.verbalizer import fit_over_clients

_SHARE = 0.1  # of the budget that the trial may take


@dataclass(frozen=True, slots=True)
class Layout:
    """What was decided: settings to go on with, and why, in a sentence."""

    settings: Settings
    why: str


async def settle_layout(parties: Parties, settings: Settings) -> Layout | None:
    """Decide where the prompt stands, and rearrange the parties' texts if it is behind them.

    Returns:
        None where the user decided already.
    """
    if settings.prompt_place != "auto":
        return None
    first = replace_place(settings, "before")
    if "{prompt}" in settings.template:
        return Layout(first, "the template says where the prompt stands")
    texts = [length for client in parties.local for length in client.text_lengths]
    prompt, text = len(parties.start_ids), float(np.mean(texts))
    if text <= prompt:
        return Layout(first, f"prompt first: it is longer ({prompt} tokens) than the texts ({text:.0f})")
    cost = 2 * sum(client.cost for client in parties.clients)
    if parties.budget.used(cost) > _SHARE:
        return Layout(first, f"prompt first: trying both takes {cost} scored examples, too many here")
    behind = replace_place(settings, "after")
    try:
        ahead = await _loss(parties, parties.local, parties.start_ids)
        start = await parties.backend.tokenize(behind.prompts[0])
        moved = [client.moved() for client in parties.local]
        after = await _loss(parties, moved, start)
    except (QuotaError, RunFolderError):
        raise
    except (BudgetSpent, FedbptError) as error:
        return Layout(first, f"prompt first: the trial of both ended early ({error})")
    losses = f"held-out loss {after:.3f} with the example first, {ahead:.3f} with the prompt first"
    if after > ahead:
        return Layout(first, f"prompt first, though it costs more: {losses}")
    _rearrange(parties, moved, start, Template.parse(settings.template, "after"))
    return Layout(behind, f"example first, whose {text:.0f} tokens a cache can keep: {losses}")


def replace_place(settings: Settings, place: str) -> Settings:
    """Settings with the place decided; behind a text, prompts begin with their line break."""
    prompts = settings.prompts
    if place == "after":
        prompts = tuple("\n" + text.strip("\n") if text.strip() else "" for text in prompts)
    return settings.model_copy(update={"prompt_place": place, "prompts": prompts})


async def _loss(parties: Parties, clients: list[Client], prompt: Ids) -> float:
    """Held-out cross-entropy over all parties' texts, with the label words and a fitted bias."""
    for client in clients:
        client.use_words(parties.label_tokens)
    answers = await ask_all(clients, lambda c: c.fit(prompt, parties.groups, with_dev=True))
    if not answers.got:
        raise FedbptError("; ".join(answers.missing.values()))
    fits = [answers.got[name] for name in sorted(answers.got)]
    _, report = await fit_over_clients(fits, parties.label_tokens, parties.groups, kind="bias")
    return report.loss


def _rearrange(parties: Parties, clients: list[Client], start: Ids, template: Template) -> None:
    """Go on with the prompt behind the texts."""
    parties.clients[:] = clients
    parties.start_ids = start
    parties.task = replace(parties.task, template=template)
