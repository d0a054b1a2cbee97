"""Nothing private can be reached from what leaves a client: no text, no label, no score of a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedbpt_api.federation.client import Client
from fedbpt_api.federation.local_search import Reference
from fedbpt_api.federation.messages import Broadcast, decode_update, encode_update
from fedbpt_api.prompts.space import Ids
from fedbpt_api.prompts.written import Job
from fedbpt_api.verbalizer import ClientFit, Verbalizer, fit_over_clients
from fedbpt_api.verbalizer.messages import WordSums
from fedbpt_api.verbalizer.messages import decode as decode_fit
from fedbpt_api.verbalizer.messages import encode as encode_fit
from toy import ToyBackend, make_task
from toy_clients import (
    GROUPS,
    PLAN,
    WORDS,
    WordSpace,
    make_client,
    start_ids,
)

# No other length in what is sent is one of these: an axis of such a length would be one of texts.
N_TRAIN, N_DEV = 23, 19
BROADCAST = Broadcast(0, np.zeros(2), 1.0)
LABELS = ("negative", "positive")


class Wire:
    """A client of a fit that can be reached by messages only, and keeps what it sent."""

    def __init__(self, fit: ClientFit) -> None:
        self.name, self.n = fit.name, fit.n
        self._fit = fit
        self.sent: list[bytes] = []

    async def answer(self, message: bytes) -> bytes:
        self.sent.append(await self._fit.answer(message))
        return self.sent[-1]


@dataclass(frozen=True)
class Secrets:
    """What must not leave a client."""

    texts: tuple[str, ...]
    ids: tuple[Ids, ...]
    labels: tuple[tuple[int, ...], ...]
    scores: frozenset[float]
    sizes: tuple[int, ...] = (N_TRAIN, N_DEV, N_TRAIN + N_DEV)

    def found_in(self, thing: object) -> list[str]:
        """Descriptions of every secret that can be reached from `thing`."""
        found = []
        for leaf in reachable(thing):
            if isinstance(leaf, str):
                found += [f"text {text!r}" for text in self.texts if text in leaf]
            elif isinstance(leaf, bytes):
                found += self._in_bytes(leaf)
            elif isinstance(leaf, np.ndarray):
                found += [f"an array of shape {leaf.shape}"] * bool(set(leaf.shape) & set(self.sizes))
                found += self._in_numbers(leaf.ravel().tolist())
                found += self._in_bytes(leaf.tobytes())
            elif isinstance(leaf, tuple | list) and all(isinstance(x, int | float) for x in leaf):
                found += [f"{len(leaf)} numbers"] * (len(leaf) in self.sizes)
                found += self._in_numbers(list(leaf))
            elif isinstance(leaf, float):
                found += self._in_numbers([leaf])
        return found

    def _in_numbers(self, numbers: list[float]) -> list[str]:
        known = np.array(sorted(self.scores))
        at = np.clip(np.searchsorted(known, numbers), 1, len(known) - 1)
        near = np.minimum(np.abs(known[at] - numbers), np.abs(known[at - 1] - numbers))
        found = [f"score {x}" for x, d in zip(numbers, near, strict=True) if d <= 1e-9 * abs(x)]
        runs = [*self.ids, *self.labels]
        found += [f"ids or labels {run}" for run in runs if _contains(numbers, run)]
        return found

    def _in_bytes(self, data: bytes) -> list[str]:
        found = [f"text {text!r} as bytes" for text in self.texts if text.encode() in data]
        for run in (*self.ids, *self.labels):
            for kind in ("<i1", "<i2", "<i4", "<i8", "<f4", "<f8"):
                with np.errstate(over="ignore"):
                    packed = np.array(run).astype(kind).tobytes()
                found += [f"ids or labels {run} as {kind}"] * (packed in data)
            found += [f"ids or labels {run} as JSON"] * (",".join(map(str, run)).encode() in data)
        found += [f"score {x} as bytes" for x in self.scores if np.float64(x).tobytes() in data]
        return found


def _contains(numbers: list[float], run: tuple[int, ...]) -> bool:
    return any(numbers[i : i + len(run)] == list(run) for i in range(len(numbers) - len(run) + 1))


def reachable(thing: object, seen: set[int] | None = None) -> Iterator[object]:
    """Everything that can be got at from `thing`: items, attributes, what arrays are views of, closures."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type):
        return
    seen.add(id(thing))
    yield thing
    inner: list[object] = []
    if isinstance(thing, Mapping):
        inner += [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        inner += list(thing)
    elif isinstance(thing, np.ndarray):
        inner += [thing.base] + (thing.tolist() if thing.dtype == object else [])
    if dataclasses.is_dataclass(thing):
        inner += [getattr(thing, f.name) for f in dataclasses.fields(thing)]
    inner += list(getattr(thing, "__dict__", {}).values())
    inner += [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
    inner.append(getattr(thing, "__self__", None))
    for one in inner:
        yield from reachable(one, seen)


async def the_secrets(client: Client, prompts: list[Ids]) -> Secrets:
    """Texts, ids, labels and losses of a client of `make_client` with the sizes above."""
    data = make_task(1, N_TRAIN, N_DEV, 1).clients[0]
    toy = ToyBackend()
    rows = (*data.train, *data.dev)
    truth = [[LABELS.index(str(row.label)) for row in part] for part in (data.train, data.dev, rows)]
    encoded = [*client._train.texts, *client._dev.texts]
    words = Verbalizer.from_words(WORDS, GROUPS)
    scores: set[float] = set()
    for prompt in prompts:
        logprobs = (await toy.score([text.with_prompt(prompt) for text in encoded], WORDS)).logprobs
        narrow = logprobs.astype(np.float32).astype(np.float64)
        losses = words.losses(narrow, np.array(truth[2]))
        for values in (logprobs[:4], narrow[:4], losses, losses.astype(np.float32)):
            scores.update(values.ravel().tolist())
    return Secrets(
        texts=tuple(row.text for row in rows),
        ids=tuple([await toy.tokenize(f" {row.text}") for row in rows]),
        labels=tuple(tuple(part) for part in truth),
        scores=frozenset(scores),
    )


async def test_nothing_private_can_be_reached_from_anything_that_leaves_a_client() -> None:
    client = await make_client(train=N_TRAIN, dev=N_DEV)
    prompt = await start_ids()
    space = WordSpace()
    asked: list[Ids] = [prompt, space.decode(np.zeros(2))]
    leaves: list[object] = []

    pairs = await client.word_sums(prompt)
    named = await client.word_sums(prompt, WORDS[:2], 20)
    leaves += [pairs, encode_fit(WordSums.of(pairs)), named, encode_fit(WordSums.of(named))]
    judge = Reference(prompt, Verbalizer.from_words(WORDS, GROUPS))
    lead = (*prompt, *prompt)
    leaves += await client.write([Job(k, lead, lead, prompt, (0, k)) for k in (0, 1, 1)], judge)
    for kind in ("words", "bias", "weighted"):
        wire = Wire(await client.fit(prompt, GROUPS))
        verbalizer, report = await fit_over_clients([wire], WORDS, GROUPS, kind=kind)
        leaves += [verbalizer, report, *wire.sent, *map(decode_fit, wire.sent)]
    wire = Wire(await client.fit(prompt, GROUPS, with_dev=True))
    await fit_over_clients([wire], WORDS, GROUPS)
    leaves += [*wire.sent, *map(decode_fit, wire.sent)]
    for part in ("dev", "train"):
        leaves.append(await client.evaluate(prompt, verbalizer, part))
    for plan in (PLAN, replace(PLAN, perturb=0.3, vocabulary=tuple(range(300)), minibatch=7)):
        searched = await client.search(BROADCAST, space, plan, Reference(prompt, verbalizer))
        up = encode_update(searched.update)
        leaves += [searched, searched.update, up, decode_update(up)]

    secrets = await the_secrets(client, asked)
    assert len(leaves) > 43
    assert secrets.found_in(leaves) == []


async def test_the_search_for_secrets_finds_them_where_they_are() -> None:
    client = await make_client(train=N_TRAIN, dev=N_DEV)
    prompt = await start_ids()
    secrets = await the_secrets(client, [prompt])
    fit = await client.fit(prompt, GROUPS)
    sums = await client.evaluate(prompt, Verbalizer.from_words(WORDS, GROUPS))

    found = " ".join(secrets.found_in(client))
    assert "an array of shape (23,)" in found  # the labels
    assert "ids or labels" in found
    assert "score" in " ".join(secrets.found_in(fit))
    for leak in (
        {"note": f"lost {secrets.texts[3]}"},
        [secrets.texts[0].encode() + b"."],
        np.array([9, *secrets.ids[5], 9])[1:],
        np.array(secrets.labels[0]).astype("<i4").tobytes(),
        replace(sums, loss=next(iter(secrets.scores))),
        np.zeros((2, N_TRAIN))[:, 0],  # a view keeps what it is a view of
        lambda: fit,
    ):
        assert secrets.found_in(leak), leak
