"""One of ten parties lies in each of six ways: the result is hardly worse than without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedbpt_api.aggregate.state import Update
from fedbpt_api.federation.client import Client
from fedbpt_api.federation.envelope import Envelope, opened, seal
from fedbpt_api.federation.exchange import Exchange
from fedbpt_api.federation.messages import decode_update, encode_update
from fedbpt_api.federation.responder import Responder
from fedbpt_api.run.result import RunResult
from fedbpt_api.task import Task
from toy import Toys, make_task
from toy_wires import run_between

Lie = Callable[[Update, dict[str, Update]], Update]
LIAR = "client4"
RNG = np.random.default_rng(0)


def another(update: Update, seen: dict[str, Update]) -> Update:
    """Somebody else's update of this round, under the liar's name."""
    found = [other for name, other in sorted(seen.items()) if name != LIAR and other.round == update.round]
    return replace(found[0], client=LIAR, n=update.n) if found else update


LIES: dict[str, Lie] = {
    "sign flip": lambda u, seen: replace(u, mean=-u.mean),
    "100 x norm": lambda u, seen: replace(u, mean=100 * u.mean),
    "always the lowest loss": lambda u, seen: replace(u, mean=u.mean + 3, loss=-1e30),
    "copied": another,
    "random": lambda u, seen: replace(u, mean=RNG.normal(size=u.mean.shape), loss=float(RNG.normal())),
}


def lying(lie: Lie | None, seen: dict[str, Update]) -> Callable[[Client], Exchange]:
    """The liar's updates are changed on their way; without a lie they become NaN."""

    def between(client: Client) -> Exchange:
        responder = Responder(client)

        async def exchange(data: bytes) -> bytes:
            answer = opened(await responder.answer(data))
            if answer.kind != "update":
                return seal(answer)
            seen[client.name] = update = decode_update(answer.body)
            body = answer.body
            if client.name == LIAR and lie is None:
                body = body[: -4 * len(update.mean)] + np.full(len(update.mean), np.nan, "<f4").tobytes()
            elif client.name == LIAR and lie is not None:
                body = encode_update(lie(update, seen))
            return seal(Envelope(answer.kind, answer.fields, body))

        return exchange

    return between


def accuracy(result: RunResult) -> float:
    """Pooled test accuracy of the tuned prompt, in points."""
    assert result.test is not None
    (row,) = (row for row in result.test.rows if row.client == "*" and row.method == "tuned")
    return 100 * row.accuracy


SETTINGS: dict[str, object] = {
    "budget.scored": 20_000,
    "search.choice": "committee",
    "search.ensemble": 3,
    "search.rounds": 4,
    "search.form": "auto",
    "search.opening": 0.2,
}


@pytest.mark.parametrize("lie", ["NaN", *LIES])
async def test_one_liar_of_ten_costs_less_than_a_point_and_a_half(toys: Toys, lie: str) -> None:
    task: Task = make_task(clients=10, test=20)
    others = replace(task, clients=tuple(c for c in task.clients if c.name != LIAR))
    without = await run_between(others, SETTINGS, lambda client: Responder(client).answer)
    with_it = await run_between(task, SETTINGS, lying(LIES.get(lie), {}))
    assert accuracy(with_it) >= accuracy(without) - 1.5
    notes = {client.note for r in with_it.rounds for client in r.clients if client.client == LIAR}
    if lie == "NaN":
        assert any("not finite" in note for note in notes)
