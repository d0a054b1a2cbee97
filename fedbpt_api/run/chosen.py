"""What becomes of the prompt that was chosen: how it is read from then on, and its file."""

from __future__ import annotations

from collections.abc import Mapping

from fedbpt_api.fanning import side_by_side
from fedbpt_api.prompts.space import Asked, Ensemble, Ids, members_of
from fedbpt_api.prompts.tuned import TunedPrompt
from fedbpt_api.run.assess import Assessor
from fedbpt_api.run.assessment import Assessment
from fedbpt_api.scoring.backend import Soft
from fedbpt_api.verbalizer import Kind, Reading, Verbalizer
from fedbpt_api.verbalizer.committee import alone, together


async def refit(assessor: Assessor, chosen: Assessment) -> Reading:
    """How a prompt that has been chosen is read: development texts may train it now.

    No call is needed: their scores are paid for.
    """
    if assessor.with_noise or chosen.fixed or not chosen.dev_sums.n:
        return chosen.verbalizer
    kind = assessor.settings.verbalizer.kind
    members = members_of(chosen.prompt)
    return together(await side_by_side([_refitted(assessor, chosen, member, kind) for member in members]))


async def fallback(assessor: Assessor, chosen: Assessment) -> Verbalizer:
    """Label words with a bias, for servers that do not answer for all words; for several prompts' mean."""
    if assessor.with_noise:
        return alone(chosen.verbalizer)
    return await _refitted(assessor, chosen, chosen.prompt, "bias")


async def _refitted(assessor: Assessor, chosen: Assessment, prompt: Asked, kind: Kind) -> Verbalizer:
    dev = bool(chosen.dev_sums.n)
    groups, names = assessor.parties.groups, chosen.clients if dev else chosen.train
    fits = await assessor.ask(lambda client: client.fit(prompt, groups, with_dev=dev), names)
    return (await assessor.fitted(list(fits.got.values()), kind))[0]


def artefact(
    assessor: Assessor, best: Assessment, space: Mapping[str, object], fallback: Verbalizer | None
) -> TunedPrompt:
    """The prompt as the file that `predict` and `eval` work from.

    Args:
        assessor: Knows the members of prompts that answer together.
        best: The prompt.
        space: Identity of the space that was searched; empty where none was.
        fallback: As from the function of this name; None while the run goes on.
    """
    parties, info, centre = assessor.parties, assessor.parties.info, assessor.centre
    ids, soft, more = best.prompt, None, tuple[tuple[str, Ids], ...]()
    text = best.text
    if isinstance(ids, Ensemble):
        parts = [assessor.known[member] for member in ids.members]
        ids, text = ids.members[0], parts[0].text
        more = tuple((a.text, a.prompt) for a in parts[1:] if isinstance(a.prompt, tuple))
    elif isinstance(ids, Soft):
        assert centre is not None and isinstance(centre.prompt, tuple) and best.z is not None
        ids, soft = centre.prompt, {**space, "z": best.z.tolist()}
    return TunedPrompt(
        text=text,
        ids=ids,
        joined=more,
        template=parties.task.template,
        label_words=parties.task.label_words,
        word_texts=tuple(parties.word_texts.get(token, "") for token in best.verbalizer.words),
        verbalizer=best.verbalizer,
        model={"kind": info.kind, "name": info.model, "fingerprint": info.fingerprint},
        space=space,
        scores=best.scores,
        fallback=fallback,
        soft=soft,
    )
