"""Where the search starts: the user's prompts, and prompts with made-up examples.

The examples are lines that the model wrote for each label (`prompts.written`); a few are written, those are
kept whose label the model itself recognises best, and every draw combines one of each label. Where a model
cannot write (its server gives no lists of words), random words of the codebook take their place, and people
are told.

All of them are assessed; they stay in the race to the end, and the best is the centre of the search.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

from fedbpt_api.fanning import side_by_side
from fedbpt_api.federation.local_search import Reference
from fedbpt_api.federation.runtime import ask_all
from fedbpt_api.prompts.codebook import Codebook, framed, words_after
from fedbpt_api.prompts.soft import SoftSpace
from fedbpt_api.prompts.space import PromptSpace
from fedbpt_api.prompts.written import Job, Line, in_turn
from fedbpt_api.run.assess import START, Assessor
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.run.draws import Draws, Shown
from fedbpt_api.run.events import Noted
from fedbpt_api.run.parties import Parties
from fedbpt_api.run.suspects import leave_out_suspects
from fedbpt_api.scoring.budget import BudgetSpent
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.task import Example
from fedbpt_api.verbalizer.committee import alone

_WRITING = 0.1  # of the scored examples that writing lines may take
_LINES, _LINE = 24, 13  # lines for a label at most, and what writing one costs about


class Origin(NamedTuple):
    """Where a search starts: its centre, the space around it, and more draws, where the model writes."""

    centre: Assessment
    space: PromptSpace
    draws: Draws | None


async def choose_origin(assessor: Assessor, codebook: Codebook) -> Origin:
    """Assess the starting prompts and choose the centre of the search, with the space around it.

    Raises:
        BudgetSpent: Not even the starting prompt fits into the budget.
    """
    settings, backend = assessor.settings, assessor.parties.backend
    prompts = list(dict.fromkeys(settings.prompts))
    await assessor.assess_all([(await backend.tokenize(text), None, START) for text in prompts])
    draws = await _made_up(assessor, codebook)
    spaces = draws.spaces if draws else {}
    best = assessor.best()
    if settings.search.form == "demonstrations" and spaces:
        best = min((assessor.known[ids] for ids in spaces), key=lambda a: (a.loss, a.train_loss))
    if settings.search.space == "soft":
        return Origin(*await _vectors(assessor), None)
    space = spaces.get(best.prompt)
    if space is None:
        space = await words_after(backend, codebook, best.text, settings.search.positions)
    return Origin(best, space, draws)


async def _made_up(assessor: Assessor, codebook: Codebook) -> Draws | None:
    """Assess prompts with made-up examples, as many as their share of the budget allows; None if none."""
    settings = assessor.settings
    shown = () if settings.search.form == "words" else await shown_examples(assessor)
    forced = settings.search.form == "demonstrations"
    share = settings.search.opening
    writing = bool(shown) and (forced or assessor.affords(1, share, _writing(assessor, len(shown))))
    # The lines take long, and the cross-scoring asks no model: side by side they take no longer than the
    # lines.
    work: list[Coroutine[Any, Any, Any]] = [_written(assessor, shown)] if writing else []
    written: Any
    written, *_ = await side_by_side([*work, leave_out_suspects(assessor, assessor.best())])
    if not writing or written is None:
        return None
    here = {client.name for client in assessor.parties.clients}
    lines = _convincing({name: found for name, found in written.items() if name in here}, len(shown))
    labels = assessor.parties.task.label_words.labels
    lacking = [label for label, found in zip(labels, lines, strict=True) if not found]
    if lacking:
        why = f"the model has written nothing for {', '.join(map(repr, lacking))}"
        assessor.tell(Noted(f"examples are random words: {why}"))
    draws = Draws(assessor, codebook, shown, lines)
    await draws.judge(share, forced=forced)
    return draws


async def _vectors(assessor: Assessor) -> tuple[Assessment, PromptSpace]:
    """The best prompt that has a token, and the space of continuous prompts around its embeddings."""
    settings, parties = assessor.settings, assessor.parties
    longer = [a for a in assessor.known.values() if isinstance(a.prompt, tuple) and a.prompt]
    best = reduce(lambda found, new: new if new.beats(found) else found, longer) if longer else None
    if best is None:  # the budget ended before one with a token was judged
        raise BudgetSpent("scored examples")
    origin, search = best.prompt, settings.search
    assert isinstance(origin, tuple)

    async def around() -> SoftSpace:
        table = await parties.backend.token_table()
        assert table is not None  # checked when the run was opened
        return SoftSpace.around(
            origin,
            table,
            dimension=search.dimensions,
            alpha=search.alpha,
            sigma=search.sigma,
            seed=settings.seed,
        )

    name = f"soft space around {','.join(map(str, origin))}"
    return best, await parties.facts.remember(name, around, SoftSpace.to_dict, SoftSpace.from_dict)


def _line(parties: Parties) -> int:
    """Scored examples that a line takes about: its tokens, and reading it once."""
    return _LINE + len(parties.info.inputs)


def _writing(assessor: Assessor, labels: int) -> int:
    """Scored examples that writing lines may take in all."""
    limits, most = assessor.parties.budget.limits, _LINES * labels * _line(assessor.parties)
    if limits.scored is not None:
        return min(int(_WRITING * limits.scored), most)
    few = limits.tokens is not None or limits.seconds is not None  # what a line costs is not known
    return most // 4 if few else most


async def written_lines(assessor: Assessor, shown: Sequence[Shown]) -> list[list[Line]]:
    """For each label the lines that clients had the model write, the most convincing half."""
    return _convincing(await _written(assessor, shown) or {}, len(shown))


async def _written(assessor: Assessor, shown: Sequence[Shown]) -> Mapping[str, Sequence[Line]] | None:
    """The lines that each client had the model write; None where the run's budget ended.

    The work is dealt to the clients in turn, to each at most a small share of its own budget.
    """
    parties, seed = assessor.parties, assessor.settings.seed
    cost = _line(parties)
    each = _writing(assessor, len(shown)) // (len(shown) * cost)
    jobs: list[Job] = []
    about = framed(assessor.settings.prompts[0])
    for label, (before, after, word) in enumerate(shown):
        lead = (await parties.backend.detokenize(after + word)).strip() + "\n"
        ids = await parties.backend.tokenize(about + lead) + before
        jobs += [Job(label, ids, before, after, (seed, label, number)) for number in range(each)]
    start = assessor.known[parties.start_ids]
    judge = Reference(start.prompt, alone(start.verbalizer))
    dealt: dict[str, list[Job]] = {}
    for number, client in enumerate(parties.clients):
        own = client.budget.limits.scored
        most = None if own is None else int(_WRITING * own / cost)
        # Whoever deals on (`Together`) deals label by label; a party takes the labels in turn itself.
        own_jobs = jobs[number :: len(parties.clients)]
        dealt[client.name] = own_jobs if most is None else in_turn(own_jobs)[:most]
    timeout = assessor.settings.federation.timeout
    # In this process so many questions follow each other; elsewhere they are one.
    longest = 1 if parties.apart else max(1, max(map(len, dealt.values())) * cost)
    try:
        answers = await ask_all(
            parties.clients, lambda c: c.write(dealt[c.name], judge), timeout and timeout * longest
        )
    except BudgetSpent:
        return None
    parties.go_on_without(answers.missing, answers.refused)
    if not parties.reached:
        return answers.got
    return {n: [line for line in found if await parties.known(line.ids)] for n, found in answers.got.items()}


def _convincing(written: Mapping[str, Sequence[Line]], labels: int) -> list[list[Line]]:
    """For each label the half of its lines whose label the model recognises best."""
    lines = [line for name in sorted(written) for line in written[name]]
    lines.sort(key=lambda line: (-line.confidence, line.ids))
    by_label = [list(dict.fromkeys(line for line in lines if line.label == k)) for k in range(labels)]
    return [found[: (len(found) + 1) // 2] for found in by_label]


async def shown_examples(assessor: Assessor) -> tuple[Shown, ...]:
    """For each label how its made-up example looks.

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
    words = [await parties.backend.tokenize(group[0]) for group in parties.task.label_words.words]
    return tuple(Shown(before, after, word) for word in words)
