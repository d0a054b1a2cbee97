"""What a run takes at most, whatever the model answers: sums of every step's largest cost, and the limits."""

from __future__ import annotations

import math
from dataclasses import replace

from fedbpt_api.federation.client import Client
from fedbpt_api.methods.drawing import A_ROUND
from fedbpt_api.run.assess import QUIET
from fedbpt_api.run.config import Settings
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.words import most_named
from fedbpt_api.scoring.backend import Usage
from fedbpt_api.scoring.budget import Limits
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.price import Price
from fedbpt_api.task import Example
from fedbpt_api.verbalizer import questions

_LINES, _LINE = 24, 20  # of `origins`: lines a label, tokens of a line
_SLACK = 4  # tokens that joining pieces may add to each


async def ceilings(parties: Parties, settings: Settings) -> dict[str, Usage | None]:
    """For each client what it takes at most, the test apart; None where time alone ends the run."""
    prompt = await _longest_prompt(parties, settings)
    return {client.name: _of(client, parties, settings, prompt) for client in parties.local}


def within(usage: Usage, limits: Limits) -> Usage:
    """The same under limits."""
    scored = usage.scored if limits.scored is None else min(usage.scored, limits.scored)
    tokens = usage.prompt_tokens if limits.tokens is None else min(usage.prompt_tokens, limits.tokens)
    return Usage(scored, tokens, 0, min(usage.requests, scored))


def _of(client: Client, parties: Parties, settings: Settings, prompt: int) -> Usage | None:
    """One client's; under its own limits and the run's."""
    info, search = client.info, settings.search
    inputs = len(info.inputs)
    noisy = any(
        other.info.noise > QUIET for other in parties.clients
    )  # then development texts are scored twice
    dev = client.n_dev * (2 if noisy else 1)
    judged = (client.n_train + dev) * inputs
    before = len(settings.prompts) * judged
    if settings.verbalizer.kind == "weighted":
        words, wanted = len(parties.label_tokens), min(settings.verbalizer.words, parties.info.max_words)
        before += client.n_train
        if info.max_words > words < wanted:
            before += client.n_train * questions(most_named(wanted, words), words, info.max_words)
    if settings.prompt_place == "auto":
        before += 2 * client.cost
    if settings.prompt_padding != "off":
        before += judged
    if search.form != "words":
        labels = len(parties.task.label_words.labels)
        before += search.draws * judged + labels * _LINES * (_LINE + inputs)
    batch = min(client.n_train, search.minibatch or client.n_train) * inputs
    views = 2 if search.perturb else 1
    tries = (search.popsize * search.iterations + 1) * views + search.iterations + 1  # and the centre's
    each = tries * batch + (1 + search.proposals) * judged
    longest = min(client.longest + prompt + max(info.inputs), info.context + max(info.inputs))
    price = client.budget.price
    limits = [_with_money(budget.limits, price) for budget in (client.budget, parties.budget)]
    bounds = [n for limit in limits for n in (limit.scored, limit.tokens) if n is not None]
    if search.algorithm in ("random", "in-context"):
        each = A_ROUND * judged
    # An input has a token at least, so a limit of tokens bounds inputs too. Edits are not made in rounds.
    if search.rounds is not None and search.algorithm != "edits":
        bounds.append(before + search.rounds * each)
    if not bounds:
        return None
    scored = min(bounds)
    usage = Usage(scored, scored * longest, 0, scored)
    return within(within(usage, limits[0]), limits[1])


def _with_money(limits: Limits, price: Price | None) -> Limits:
    """Limits whose tokens are those that the money can buy at most, from a cache."""
    if limits.money is None or price is None or not (cheapest := min(price.input, price.cached)):
        return limits
    bought = int(limits.money * 1_000_000 / cheapest)
    return replace(limits, tokens=bought if limits.tokens is None else min(bought, limits.tokens))


async def _longest_prompt(parties: Parties, settings: Settings) -> int:
    """Tokens of the longest prompt that the search can make."""
    backend, search = parties.backend, settings.search
    own = max([len(await backend.tokenize(text)) for text in settings.prompts])
    if search.algorithm == "in-context":  # as many examples as the model has room for
        return parties.room
    most = own + search.positions + 2 * _SLACK
    if search.form != "words":
        encoder = Encoder(backend, parties.task.template, parties.task.label_words)
        (frame,) = await encoder.texts([Example("x", text_b="x")])
        words = [len(await backend.tokenize(w)) for w in (g[0] for g in parties.task.label_words.words)]
        most += sum(len(frame) + word + 2 * _LINE + _SLACK for word in words)
    block = math.lcm(*(client.info.block for client in parties.clients))
    return most + (block if settings.prompt_padding != "off" else 0)
