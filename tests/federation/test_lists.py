"""A client on a server with short lists: its fit, its sums and its search know which values are bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedbpt_api.federation.client import Client
from fedbpt_api.federation.local_search import Reference
from fedbpt_api.federation.messages import Broadcast
from fedbpt_api.prompts.space import Ids
from fedbpt_api.scoring.backend import Prompt, Scores
from fedbpt_api.verbalizer import Verbalizer
from fedbpt_api.verbalizer.messages import AskMoments, Moments
from fedbpt_api.verbalizer.verbalizer import MARGIN
from toy import ToyBackend
from toy_clients import GROUPS, PLAN, WORDS, Listing, OnePrompt, make_client, start_ids

T = len(WORDS)
WEIGHTED = Verbalizer(
    words=WORDS,
    groups=GROUPS,
    scale=0.5,
    bias=np.array([0.25, -0.25]),
    weights=np.linspace(-1.0, 1.0, 2 * T).reshape(2, T),
    mean=np.full(T, -2.0),
    spread=np.linspace(0.5, 1.5, T),
    kind="weighted",
    margin=MARGIN,
)
BROADCAST = Broadcast(0, np.zeros(2), 1.0)


async def search_loss(client: Client, verbalizer: Verbalizer = WEIGHTED, moved: bool = True) -> float:
    """The loss that a search tells of a prompt; with another one as its reference, or itself."""
    prompt = await start_ids()
    reference = Reference(prompt[:2] if moved else prompt, verbalizer)
    return (await client.search(BROADCAST, OnePrompt(prompt), PLAN, reference)).update.loss


async def test_a_fit_counts_the_bounds() -> None:
    for backend, bounds in ((Listing(), 12 * (T - 3)), (ToyBackend(), 0)):
        fit = await (await make_client(backend=backend)).fit(await start_ids(), GROUPS)
        moments = fit.reply(AskMoments(True))
        assert isinstance(moments, Moments) and moments.bounded == bounds


async def test_sums_and_search_do_not_depend_on_what_bounds_are() -> None:
    """The label words are in the toy's lists."""
    sums, losses = [], []
    for slack in (0.0, 0.125, 3.0):
        client = await make_client(backend=Listing(slack=slack))
        _, exact = await client.scorer.scores(await start_ids(), client._train.texts)
        assert exact[:, :2].all() and not exact.all()
        sums.append(await client.evaluate(await start_ids(), WEIGHTED))
        losses.append(await search_loss(client))
    assert [s.loss for s in sums] == pytest.approx([sums[0].loss] * 3, rel=1e-5)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    unaware = replace(WEIGHTED, margin=None)
    client = await make_client(backend=Listing(slack=3.0))
    assert abs((await client.evaluate(await start_ids(), unaware)).loss - sums[0].loss) > 0.01
    assert abs(await search_loss(client, unaware) - losses[0]) > 0.01


async def test_a_prompt_that_is_its_own_reference_has_its_own_loss() -> None:
    client = await make_client(backend=Listing())
    own = await client.evaluate(await start_ids(), WEIGHTED, "train")
    assert await search_loss(client, moved=False) == pytest.approx(own.mean_loss, rel=1e-6)


@dataclass
class OneSided(Listing):
    """Lists are short for one prompt and hold every word for all others; or the other way round."""

    prompt: Ids = ()
    others: bool = False

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        own = prompts[0].ids[: len(self.prompt)] == self.prompt
        self.k = 3 if own != self.others else T
        return await super().score(prompts, words)


async def test_lists_on_one_side_alone_are_no_obstacle() -> None:
    """The reference's answers may hold bounds where the candidate's hold none, and the other way round."""
    candidate = await start_ids()
    backends = [OneSided(prompt=candidate), OneSided(prompt=candidate, others=True), Listing(), ToyBackend()]
    losses = [await search_loss(await make_client(backend=backend)) for backend in backends]
    assert np.isfinite(losses).all() and len(set(losses)) == 4


async def test_where_everything_is_exact_no_bit_changes() -> None:
    client = await make_client()
    unaware = replace(WEIGHTED, margin=None)
    assert await search_loss(client) == await search_loss(client, unaware)
    both = [await client.evaluate(await start_ids(), v) for v in (WEIGHTED, unaware)]
    assert both[0] == both[1]
