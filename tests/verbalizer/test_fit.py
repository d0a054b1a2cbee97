"""The fit: over clients it is the fit on pooled texts, as scipy finds it; what it chooses; what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from by_definition import discriminants
from scipy import optimize, special

from fedbpt_api.scoring.backend import Floats
from fedbpt_api.verbalizer import (
    ClientFit,
    FitError,
    FitReport,
    Kind,
    Verbalizer,
    decode,
    encode,
    fit,
    fit_over_clients,
)
from fedbpt_api.verbalizer.messages import AskMoments, AskSums, Begin, Cross, Moments, Sums, WordSums
from fedbpt_api.verbalizer.regression import Ints

KINDS: tuple[Kind, ...] = ("words", "bias", "weighted")


@dataclass(frozen=True)
class Texts:
    """Made-up texts: their log-probabilities of T words, and their labels."""

    rows: Floats
    labels: Ints
    groups: tuple[tuple[int, ...], ...]

    @property
    def words(self) -> tuple[int, ...]:
        return tuple(range(1000, 1000 + self.rows.shape[1]))


def made_up(n: int, labels: int, words: int, signal: float, clarity: float = 1.0, seed: int = 0) -> Texts:
    """Texts whose label words speak with `clarity` and whose other words with `signal`."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(labels, size=n).astype(np.intp)
    truth[:labels] = np.arange(labels)
    groups = tuple((j,) for j in range(labels))
    rows = rng.normal(size=(n, 12)) @ rng.normal(size=(12, words)) * 0.4 + rng.normal(size=(n, words)) * 0.3
    rows = rows + rng.normal(size=words) - 5
    rows[:, :labels] = rng.normal(size=(n, labels)) - 3
    rows[:, labels:] += signal * rng.normal(size=(labels, words - labels))[truth]
    rows[np.arange(n), truth] += clarity
    return Texts(rows, truth, groups)


def clients_of(texts: Texts, parts: Sequence[Ints]) -> list[ClientFit]:
    return [
        ClientFit(f"client {k}", texts.rows[i], texts.labels[i], texts.groups) for k, i in enumerate(parts)
    ]


def parts_of(texts: Texts, kind: str) -> list[Ints]:
    every = np.random.default_rng(1).permutation(len(texts.labels))
    if kind == "one label each":
        return [np.flatnonzero(texts.labels == label) for label in range(len(texts.groups))]
    cuts = {"pooled": [], "uneven": [1, 2, 9, len(every) // 2], "one text each": range(1, len(every))}[kind]
    return [np.asarray(part, dtype=np.intp) for part in np.split(every, list(cuts))]


def by_scipy(texts: Texts, strength: float, keep: Ints | None = None) -> tuple[Floats, Floats]:
    """Label probabilities [n, C] of all texts, as new ones and as themselves, under the weighted model.

    The discriminants are those of all texts, and each text's own are taken without it; scale, biases and
    trust are fitted on `keep`. Written out, and left to scipy.
    """
    n, c = len(texts.labels), len(texts.groups)
    used = np.arange(n) if keep is None else keep
    logs = special.log_softmax(texts.rows, axis=1)
    summed = np.stack([special.logsumexp(logs[:, list(g)], axis=1) for g in texts.groups], axis=1)
    label_logs = special.log_softmax(summed, axis=1)
    label_logs = label_logs - label_logs.mean(axis=0)
    directions, offsets, held_out = discriminants(logs, texts.labels, strength, c)
    as_new = (logs - logs.mean(axis=0)) @ directions.T - offsets
    shares = np.log((np.bincount(texts.labels, minlength=c) + 0.5) / (n + c / 2))
    centre = np.concatenate([[0.0, 0.0], shares - shares.mean()])
    truth = np.eye(c)[texts.labels]

    def logits(theta: Floats, scores: Floats) -> Floats:
        return np.array(theta[0] * label_logs + theta[1] * scores + theta[2:])

    def objective(theta: Floats) -> tuple[float, Floats]:
        shares = special.log_softmax(logits(theta, held_out)[used], axis=1)
        errors = (np.exp(shares) - truth[used]) / len(used)
        away = theta - centre
        pull = np.concatenate([[30 / n, 2 / n], np.full(c, 30 / n)]) * away
        own = [(errors * label_logs[used]).sum(), (errors * held_out[used]).sum()]
        slope = np.concatenate([own, errors.sum(axis=0)])
        return float(-(shares * truth[used]).sum() / len(used) + pull @ away / 2), slope + pull

    done = optimize.minimize(
        objective, np.zeros(2 + c), jac=True, method="L-BFGS-B",
        options={"maxiter": 5000, "ftol": 1e-16, "gtol": 1e-10},
    )  # fmt: skip
    new, own = (special.softmax(logits(done.x, scores), axis=1) for scores in (as_new, held_out))
    return np.array(new), np.array(own)


async def over(texts: Texts, kind: str) -> tuple[Verbalizer, FitReport]:
    clients = clients_of(texts, parts_of(texts, kind))
    return await fit_over_clients(clients, texts.words, texts.groups)


@pytest.mark.parametrize("labels", [2, 3, 6])
@pytest.mark.parametrize("parts", ["pooled", "uneven", "one label each", "one text each"])
async def test_it_is_the_pooled_fit_that_scipy_finds(labels: int, parts: str) -> None:
    texts = made_up(90, labels, 64, signal=0.4, seed=labels)
    verbalizer, report = await over(texts, parts)
    assert report.kind == verbalizer.kind == "weighted"
    assert report.shrinkage is not None
    expected, _ = by_scipy(texts, report.shrinkage)
    assert np.abs(verbalizer.probabilities(texts.rows) - expected).max() < 1e-6
    pooled, alone = fit(texts.rows, texts.labels, texts.words, texts.groups)
    assert (alone.kind, alone.shrinkage, alone.n) == (report.kind, report.shrinkage, report.n)
    assert pooled.probabilities(texts.rows) == pytest.approx(expected, abs=1e-6)


def test_cross_validation_is_the_one_that_scipy_does() -> None:
    texts = made_up(90, 3, 64, signal=0.4)
    _, report = fit(texts.rows, texts.labels, texts.words, texts.groups)
    every = np.arange(len(texts.labels))
    for strength in (0.9, 0.6):
        losses = []
        for own in every:
            _, shares = by_scipy(texts, strength, np.delete(every, own))
            losses.append(-np.log(shares[own, texts.labels[own]]))
        assert report.losses[f"weighted {strength:g}"] == pytest.approx(np.mean(losses), abs=0.001)
    assert report.loss == min(report.losses.values())


async def test_a_bias_makes_the_label_shares_right_and_keeps_the_scale() -> None:
    texts = made_up(80, 3, 3, signal=0.0, clarity=2.0)
    texts.rows[:, 1] += 3.0
    clients = clients_of(texts, parts_of(texts, "uneven"))
    verbalizer, report = await fit_over_clients(clients, texts.words, texts.groups, kind="bias")
    assert list(report.losses) == ["words", "bias"]
    assert (verbalizer.kind, verbalizer.scale, report.shrinkage) == ("bias", 1.0, None)
    assert verbalizer.bias.sum() == pytest.approx(0.0, abs=1e-12)
    # At the optimum the expected counts miss the true ones by the penalty's pull alone.
    counts = verbalizer.probabilities(texts.rows).sum(axis=0) - np.bincount(texts.labels)
    assert counts == pytest.approx(-0.003 * 80 * verbalizer.bias, abs=1e-5)


@pytest.mark.parametrize(("n", "most"), [(32, 0.03), (64, 0.01)])
def test_it_switches_itself_off_where_words_say_nothing(n: int, most: float) -> None:
    off, lost = 0, []
    for seed in range(20):
        texts = made_up(1000 + n, 2, 128, signal=0.0, seed=seed)
        seen, unseen = slice(None, n), slice(n, None)
        verbalizer, report = fit(texts.rows[seen], texts.labels[seen], texts.words, texts.groups)
        off += report.shrinkage is None and not verbalizer.weights.any()
        plain = Verbalizer.from_words(texts.words, texts.groups)
        right = [
            v.logits(texts.rows[unseen]).argmax(axis=1) == texts.labels[unseen] for v in (plain, verbalizer)
        ]
        lost.append(right[0].mean() - right[1].mean())
    assert off >= 16
    assert np.mean(lost) < most


def test_labels_drawn_at_random_hardly_ever_get_weights() -> None:
    """Discriminants that would have to be turned round are not used, however well that fits these texts."""
    gained = []
    for seed in range(20):
        texts = made_up(64, 2, 128, signal=0.0, clarity=0.0, seed=seed)
        _, report = fit(texts.rows, texts.labels, texts.words, texts.groups)
        gained.append(report.losses["scale and bias"] - min(report.losses.values()))
    assert np.mean(gained) < 0.02 and max(gained) < 0.15


def test_texts_not_seen_are_classified_better_where_words_say_something() -> None:
    texts = made_up(1128, 3, 128, signal=0.25, clarity=0.5)
    texts.rows[:, 1] += 2.0
    seen, unseen = slice(None, 128), slice(128, None)
    accuracy, losses = {}, {}
    for kind in KINDS:
        verbalizer, _ = fit(texts.rows[seen], texts.labels[seen], texts.words, texts.groups, kind=kind)
        accuracy[kind] = (verbalizer.logits(texts.rows[unseen]).argmax(axis=1) == texts.labels[unseen]).mean()
        losses[kind] = verbalizer.losses(texts.rows[unseen], texts.labels[unseen]).mean()
    assert accuracy["weighted"] > accuracy["bias"] + 0.15
    assert losses["weighted"] < losses["bias"] < losses["words"]


@pytest.mark.parametrize("labels", [2, 3, 4, 6, 20, 28, 29, 100])
async def test_a_fit_is_12_exchanges_and_256_kilobytes_at_most(labels: int) -> None:
    texts = made_up(400, labels, 128, signal=0.3)
    clients = clients_of(texts, parts_of(texts, "uneven"))
    _, report = await fit_over_clients(clients, texts.words, texts.groups)
    assert report.exchanges <= 12
    assert report.residual <= 1e-6
    words = 8 * 500 + 100 + 4 * 128  # the word list, up and down
    for client in clients:
        assert report.bytes_up[client.name] + report.bytes_down[client.name] + words <= 256_000


async def test_bytes_are_those_of_the_messages() -> None:
    texts = made_up(40, 3, 20, signal=0.3)
    seen: dict[str, list[int]] = {"up": [], "down": []}

    class Counting:
        name, n = "counted", 40
        inner = clients_of(texts, parts_of(texts, "pooled"))[0]

        async def answer(self, message: bytes) -> bytes:
            reply = await self.inner.answer(message)
            seen["up"].append(len(reply))
            seen["down"].append(len(message))
            return reply

    _, report = await fit_over_clients([Counting()], texts.words, texts.groups)
    assert report.bytes_up == {"counted": sum(seen["up"])}
    assert report.bytes_down == {"counted": sum(seen["down"])}
    assert report.exchanges == len(seen["up"])


async def test_the_order_of_clients_changes_nothing() -> None:
    texts = made_up(60, 3, 30, signal=0.3)
    parts = parts_of(texts, "uneven")
    one, _ = await fit_over_clients(clients_of(texts, parts), texts.words, texts.groups)
    two, _ = await fit_over_clients(clients_of(texts, parts)[::-1], texts.words, texts.groups)
    assert one == two


@pytest.mark.parametrize("n", [1, 2, 3, 5])
async def test_a_handful_of_texts_is_enough(n: int) -> None:
    texts = made_up(8, 3, 20, signal=0.3)
    clients = clients_of(texts, [np.array([k], dtype=np.intp) for k in range(n)])
    verbalizer, report = await fit_over_clients(clients, texts.words, texts.groups)
    assert report.n == n
    assert np.isfinite(report.loss)
    assert verbalizer.probabilities(texts.rows).sum(axis=1) == pytest.approx(np.ones(8))


def test_texts_that_all_look_alike_get_no_weights() -> None:
    texts = made_up(40, 3, 20, signal=0.0)
    rows = np.repeat(texts.rows[:1], 40, axis=0)
    verbalizer, report = fit(rows, texts.labels, texts.words, texts.groups)
    assert list(report.losses) == ["words", "scale and bias"]
    counts = np.bincount(texts.labels)
    assert verbalizer.probabilities(rows[:1])[0] == pytest.approx(counts / 40, abs=0.02)


async def test_a_client_without_texts_adds_nothing() -> None:
    texts = made_up(40, 3, 20, signal=0.3)
    clients = clients_of(texts, parts_of(texts, "pooled"))
    empty = ClientFit("empty", np.zeros((0, 20)), np.zeros(0, dtype=np.intp), texts.groups)
    alone, _ = await fit_over_clients(clients, texts.words, texts.groups)
    both, _ = await fit_over_clients([*clients, empty], texts.words, texts.groups)
    assert both.probabilities(texts.rows) == pytest.approx(alone.probabilities(texts.rows), abs=1e-9)


async def test_label_words_alone_are_judged_too() -> None:
    texts = made_up(40, 3, 20, signal=0.0)
    clients = clients_of(texts, parts_of(texts, "uneven"))
    verbalizer, report = await fit_over_clients(clients, texts.words, texts.groups, kind="words")
    assert verbalizer == Verbalizer.from_words(texts.words, texts.groups)
    assert report.losses == {"words": pytest.approx(verbalizer.losses(texts.rows, texts.labels).mean())}
    assert report.exchanges == 1


def test_a_server_that_returns_only_label_words_gets_no_weights() -> None:
    texts = made_up(60, 3, 3, signal=0.0)
    _, report = fit(texts.rows, texts.labels, texts.words, texts.groups, kind="weighted")
    assert list(report.losses) == ["words", "scale and bias"]


@pytest.mark.parametrize(
    ("rows", "labels", "problem"),
    [
        (np.zeros((2, 3)), [0], "a label and 3 finite numbers"),
        (np.full((2, 3), np.nan), [0, 1], "a label and 3 finite numbers"),
        (np.zeros((2, 3)), [0, 2], r"labels within 0\.\.1"),
    ],
)
def test_texts_that_cannot_be_fitted_are_refused(rows: Floats, labels: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ClientFit("a", rows, np.array(labels, dtype=np.intp), ((0,), (1,)))


async def test_clients_need_names_of_their_own() -> None:
    client = ClientFit("a", np.zeros((1, 3)), np.zeros(1, dtype=np.intp), ((0,), (1,)))
    with pytest.raises(FitError, match="different names"):
        await fit_over_clients([client, client], (1, 2, 3), ((0,), (1,)))
    with pytest.raises(FitError, match="different names"):
        await fit_over_clients([], (1, 2, 3), ((0,), (1,)))


def test_a_client_refuses_what_a_server_does_not_ask() -> None:
    client = ClientFit("a", np.zeros((1, 3)), np.zeros(1, dtype=np.intp), ((0,), (1,)))
    none = np.zeros(0, dtype=np.int32)
    with pytest.raises(FitError, match="only clients send"):
        client.reply(WordSums(none, np.zeros(0)))
    every = np.zeros(1, dtype=np.intp)
    with pytest.raises(FitError, match="before it knew the designs"):
        client.reply(AskSums(every, np.zeros((1, 3))))
    with pytest.raises(FitError, match="2 labels and 3 words"):
        client.reply(
            Begin(np.ones(2), np.zeros(2), np.zeros((2, 4)), np.zeros(10), np.full(1, 0.5), np.zeros((2, 3)))
        )
    client.reply(Begin(np.ones(2), np.zeros(2), np.zeros((2, 0)), np.zeros(0), np.zeros(0), np.zeros((1, 3))))
    for models in (
        AskSums(every, np.zeros((1, 4))),
        AskSums(every + 1, np.zeros((1, 3))),
    ):
        with pytest.raises(FitError, match="do not fit its designs of 3"):
            client.reply(models)


@pytest.mark.parametrize(
    ("kind", "answer", "problem"),
    [
        (
            "weighted",
            Cross(1, np.zeros(1), np.zeros((1, 1)), np.zeros((0, 3))),
            "Cross, which is no answer to AskMoments",
        ),
        (
            "weighted",
            Moments(np.ones(2), np.zeros(2), np.zeros((2, 4)), np.zeros(10), 0),
            "other than 3 words",
        ),
        (
            "words",
            Sums(np.zeros(1), np.zeros(1), np.zeros(0)),
            "Sums, which is no answer to AskCross",
        ),
    ],
)
async def test_answers_that_do_not_fit_are_refused(
    kind: Kind, answer: Cross | Moments | Sums, problem: str
) -> None:
    class Odd:
        name, n = "odd", 2

        async def answer(self, message: bytes) -> bytes:
            assert isinstance(decode(message), AskMoments) or kind == "words"
            return encode(answer)

    with pytest.raises(FitError, match=problem) as refused:
        await fit_over_clients([Odd()], (1, 2, 3), ((0,), (1,)), kind=kind)
    assert refused.value.client == "odd"
