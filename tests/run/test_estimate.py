"""Estimates: never below what a run takes where they say "at most", near it where they say "likely"."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbpt_api.api import run_sync
from fedbpt_api.errors import ConfigError, FedbptError
from fedbpt_api.run.config import build_settings
from fedbpt_api.run.estimate import estimate
from fedbpt_api.run.estimate_view import compared, plain_estimate
from fedbpt_api.run.folder import read_estimate
from fedbpt_api.run.foreseen import Estimate, Figures
from fedbpt_api.run.prices import price_of
from fedbpt_api.run.schema import PriceSettings
from fedbpt_api.run.tune import Tuner
from fedbpt_api.scoring.backend import BackendInfo
from toy import ALIKE, ToyBackend, Toys, make_task
from toy_runs import fedbpt, installed_toys, make_settings, make_values, run_toy, scored, write_config

PRICE: dict[str, object] = {"input": 100.0, "cached": 10.0, "output": 400.0}


def _table(toml: str, path: Path) -> PriceSettings:
    path.write_text(toml, encoding="utf-8")
    return PriceSettings(file=path)


@settings(max_examples=20)
@given(
    limit=st.none() | st.integers(60, 900),
    tokens=st.none() | st.integers(3000, 20_000),
    money=st.none() | st.floats(0.3, 2.0),
    own=st.none() | st.integers(60, 200),
    form=st.sampled_from(["words", "auto", "demonstrations"]),
    kind=st.sampled_from(["bias", "weighted"]),
    perturb=st.sampled_from([0.0, 0.2]),
    minibatch=st.none() | st.integers(2, 4),
    alike=st.booleans(),
    model=st.integers(0, 5),
    noise=st.sampled_from([0.0, 0.05]),
    block=st.sampled_from([1, 16]),
)
def test_a_run_never_takes_more_than_it_was_said_to_take_at_most(**drawn: object) -> None:
    task = make_task(2, train=5, dev=3, test=2)
    task = replace(task, label_words=ALIKE) if drawn["alike"] else task
    changes: dict[str, object] = {
        "budget": {
            "scored": drawn["limit"],
            "tokens": drawn["tokens"],
            "money": drawn["money"],
            "seconds": 999,
        },
        "price": PRICE,
        "clients.0.budget": {"scored": drawn["own"]},
        "verbalizer.kind": drawn["kind"],
        "search.rounds": 2,
        "search.form": drawn["form"],
        "search.perturb": drawn["perturb"],
        "search.minibatch": drawn["minibatch"],
        "prompt_padding": "auto",
        "prompt_place": "auto",
    }
    with installed_toys() as toys:
        toy = toys["toy"]
        toy.__init__(seed=drawn["model"], noise=drawn["noise"], block=drawn["block"])  # type: ignore[misc]
        checked = make_settings(task, changes)
        tuner = Tuner(checked, task)
        try:
            made = run_sync(lambda: estimate(checked, task, probes=0))
            assert toy.scored == 0 == toy.requests
            result = run_sync(tuner.run)
        except FedbptError as error:
            assert "budget" in str(error)
            return
    most = {figures.client: figures for figures in made.most}
    for name, spent in result.spent.items():
        _bounded(most[name], spent)
    keys = ("scored", "prompt_tokens", "requests", "money")
    _bounded(most["*"], {key: sum(counts[key] for counts in result.spent.values()) for key in keys})
    for figures in (made.total, made.low, made.high):
        _bounded(most["*"], {key: getattr(figures, key) for key in keys})


@pytest.mark.parametrize("algorithm", ["prompts", "rounds", "random", "in-context", "edits"])
async def test_the_most_holds_for_every_search_and_beside_a_noisy_server(toys: Toys, algorithm: str) -> None:
    toys.opened["toy"], toys.opened["own"] = ToyBackend(noise=0.5, ripple=1.5), ToyBackend(ripple=1.5)
    changes: dict[str, object] = {
        "budget.scored": 10_000,
        "search.rounds": 2,
        "search.algorithm": algorithm,
        "search.minibatch": 2,
        "verbalizer.kind": "bias",
        "clients.1.backend": {"kind": "toy", "name": "own"},
    }
    task = make_task(2, train=10, dev=40, test=2)
    made = await estimate(make_settings(task, changes), task, probes=0)
    result = await run_toy(task, changes)
    most = {figures.client: figures.scored for figures in made.most}
    assert all(counts["scored"] <= most[name] for name, counts in result.spent.items())
    assert scored(result) <= most["*"]


async def test_the_most_counts_the_questions_for_words(toys: Toys) -> None:
    task = make_task(2, train=60, dev=1)
    changes: dict[str, object] = {
        "budget": {"seconds": 1e6}, "verbalizer.kind": "weighted", "verbalizer.words": 128,
        "search.rounds": 1, "search.minibatch": 1, "search.popsize": 3,
    }  # fmt: skip
    made = await estimate(make_settings(task, changes), task, probes=0)
    result = await run_toy(task, changes)
    assert scored(result) <= made.most[-1].scored


def _bounded(most: Figures, spent: dict[str, int | float]) -> None:
    assert spent["scored"] <= most.scored
    assert spent["prompt_tokens"] <= most.prompt_tokens
    assert spent["requests"] <= most.requests
    assert most.money is not None and spent["money"] <= most.money + 1e-12


async def test_the_likely_figures_are_near_what_the_run_takes(toys: Toys) -> None:
    task = make_task()
    changes: dict[str, object] = {"budget.scored": 900, "search.rounds": None}
    made = await estimate(make_settings(task, changes), task, probes=0)
    assert toys["toy"].requests == 0
    result = await run_toy(task, changes)
    assert made.total.scored == pytest.approx(scored(result), rel=0.1)
    tokens = sum(counts["prompt_tokens"] for counts in result.spent.values())
    assert made.total.prompt_tokens == pytest.approx(tokens, rel=0.15)
    assert made.low.prompt_tokens <= made.total.prompt_tokens <= made.high.prompt_tokens


async def test_parts_add_up_and_the_record_reads_back(toys: Toys) -> None:
    task = make_task()
    made = await estimate(make_settings(task, {"price": PRICE}), task, probes=0)
    for key in ("scored", "prompt_tokens", "cached_tokens", "duplicates", "bytes_up"):
        assert sum(getattr(c, key) for c in made.clients) == getattr(made.total, key)
    assert sum(rows[-1].scored for rows in made.rounds) == made.total.scored
    assert sum(rows[0].prompt_tokens for rows in made.rounds) == made.clients[0].prompt_tokens
    assert [row.client for row in made.rounds[0]] == ["client0", "client1", "client2", "*"]
    figures = made.total
    expected = (
        (figures.prompt_tokens - figures.cached_tokens) * 100
        + figures.cached_tokens * 10
        + figures.scored * 400
    )
    assert figures.money == pytest.approx(expected / 1e6)
    assert made.total.seconds is None and made.probes == 0
    assert Estimate.from_dict(json.loads(json.dumps(made.to_dict()))) == made


async def test_the_same_settings_give_the_same_estimate(toys: Toys) -> None:
    task = make_task()
    checked = make_settings(task, {"search.form": "auto"})
    assert await estimate(checked, task, 0) == await estimate(checked, task, 0)


async def test_a_few_requests_tell_the_time_and_are_counted(toys: Toys) -> None:
    task = make_task()
    made = await estimate(make_settings(task), task, probes=8)
    assert made.probes == toys["toy"].scored == 8
    assert made.total.seconds is not None and made.total.seconds > 0
    assert made.test[-1].seconds is not None
    assert "8 requests" in plain_estimate(made)


async def test_time_alone_needs_a_few_requests(toys: Toys) -> None:
    task = make_task()
    checked = make_settings(task, {"budget": {"seconds": 1.0}, "search.rounds": None})
    with pytest.raises(ConfigError, match=r"budget\.seconds"):
        await estimate(checked, task, probes=0)
    assert toys["toy"].requests == 0


async def test_money_ends_a_run_and_is_never_passed(toys: Toys) -> None:
    changes: dict[str, object] = {"budget": {"money": 1.0}, "price": PRICE, "search.rounds": None}
    result = await run_toy(make_task(), changes)
    paid = sum(counts["money"] for counts in result.spent.values())
    assert result.stopped == "budget" and 0.9 < paid <= 1.0
    assert result.currency == "USD" and all(counts["test_money"] > 0 for counts in result.spent.values())


async def test_money_alone_bounds_what_a_run_takes(toys: Toys) -> None:
    task = make_task()
    changes: dict[str, object] = {"budget": {"money": 1.0}, "price": PRICE, "search.rounds": None}
    made = await estimate(make_settings(task, changes), task, probes=0)
    result = await run_toy(task, changes)
    spent = {key: sum(c[key] for c in result.spent.values()) for key in result.spent["client0"]}
    _bounded(made.most[-1], spent)
    assert made.most[-1].money == 1.0
    assert made.total.money == pytest.approx(spent["money"], rel=0.1)


async def test_a_client_s_own_money_is_kept_to(toys: Toys) -> None:
    changes: dict[str, object] = {"clients.1.budget": {"money": 0.4}, "price": PRICE, "search.rounds": 4}
    result = await run_toy(make_task(), changes)
    assert result.spent["client1"]["money"] <= 0.4 < result.spent["client0"]["money"]


async def test_without_a_price_money_is_unknown(toys: Toys) -> None:
    task = make_task()
    made = await estimate(make_settings(task), task, probes=0)
    text = plain_estimate(made)
    assert made.total.money is None and made.currency == ""
    assert "Money is unknown" in text and "unknown" in text and "USD" not in text
    result = await run_toy(task)
    assert result.currency == "" and all("money" not in counts for counts in result.spent.values())


def test_prices_come_from_a_file_by_the_model_s_name(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    info = BackendInfo("toy", "small", "f", 10, generated=0)
    price = price_of(_table("input = 1.5\noutput = 2", path), info)
    assert price is not None and (price.input, price.cached, price.generated) == (price.input, price.input, 0)
    tables = (
        '["small"]\ninput = 1\ncached = 0.1\noutput = 2\ncurrency = "EUR"\n["large"]\ninput = 9\noutput = 9'
    )
    price = price_of(_table(tables, path), info)
    assert price is not None and price.currency == "EUR" and float(price.cached) == 0.1
    price = price_of(PriceSettings(file=path, model="large"), info)
    assert price is not None and price.input == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input = 1", "output: this key is missing"),
        ("input = ", "cannot be read"),
        ('["other"]\ninput = 1\noutput = 1', "no table for the model 'small'"),
        ("input = 1\ncached = 2\noutput = 1", "cached: expected at most input"),
        ("input = 1\noutput = -1", "output: expected a number greater"),
    ],
)
def test_a_wrong_file_of_prices_is_a_clear_error(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        price_of(_table(text, tmp_path / "p.toml"), BackendInfo("toy", "small", "f", 10))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"budget.money": 1.0}, r"budget.money: nothing says what tokens cost; give price.input"),
        ({"clients.1.budget": {"money": 1.0}}, r"clients.1.budget.money: nothing says"),
        ({"price": {"input": 1.0}}, r"price.output: this key is missing"),
        ({"price": {"input": 1.0, "output": 1.0, "cached": 2.0}}, r"price.cached: expected at most input"),
        ({"price": {"file": "p.toml", "input": 1.0}}, r"price: expected either file or input, got both"),
        ({"price": {"input": 1.0, "output": 1.0, "model": "m"}}, r"price.model: it chooses a table"),
        (
            {"price": PRICE, "clients.0.backend": {"kind": "toy", "name": "b"}, "budget.money": 1.0},
            r"give clients.0.price.input",
        ),
        (
            {"price": PRICE, "clients.0.price": {"input": 1, "output": 1, "currency": "EUR"}},
            r"price.currency: expected one currency, got EUR, USD",
        ),
    ],
)
def test_contradictions_about_money_are_told(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_settings(make_values(make_task(), changes), files=False)
    [problem] = raised.value.problems
    assert expected in problem


def test_a_file_of_prices_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"price.file: no file .*gone.toml"):
        build_settings(make_values(make_task(), {"price": {"file": "gone.toml"}}), base=tmp_path)


def test_the_command_and_the_dry_run_say_the_same_and_spend_nothing(toys: Toys, tmp_path: Path) -> None:
    config = write_config(tmp_path, make_task())
    shown = fedbpt("estimate", config, "--no-probe")
    dry = fedbpt("tune", config, "--dry-run", "--run-dir", tmp_path / "run")
    assert shown.exit_code == dry.exit_code == 0
    assert shown.stdout == dry.stdout
    assert "Prompt tokens" in shown.stdout and "client2" in shown.stdout and "unknown" in shown.stdout
    assert toys["toy"].requests == 0 and not (tmp_path / "run").exists()


def test_the_command_gives_json_with_prices_set_there(toys: Toys, tmp_path: Path) -> None:
    config = write_config(tmp_path, make_task())
    prices = ("--set", "price.input=1", "--set", "price.output=2")
    shown = fedbpt("estimate", config, "--json", *prices)
    made = Estimate.from_dict(json.loads(shown.stdout))
    assert shown.exit_code == 0 and made.currency == "USD" and made.total.money and made.probes == 8


def test_the_report_sets_the_estimate_beside_what_was_spent(toys: Toys, tmp_path: Path) -> None:
    config, folder = write_config(tmp_path, make_task()), tmp_path / "run"
    done = fedbpt("tune", config, "--estimate", "--run-dir", folder, "--json")
    assert done.exit_code == 0
    made = read_estimate(folder)
    assert made is not None
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Estimated and spent" in page and f"{made.total.prompt_tokens:,}" in page
    assert "unknown" in page


async def test_the_error_of_an_estimate_is_of_what_was_spent(toys: Toys) -> None:
    task = make_task()
    made = await estimate(make_settings(task), task, probes=0)
    result = await run_toy(task)
    rows = {row.name: row for row in compared(made, result)}
    off = 100 * (made.total.scored / scored(result) - 1)
    assert rows["Scored examples"].error == f"{off:+.1f}%"
    assert rows["Money"].estimated == rows["Money"].spent == "unknown"
    assert "Seconds" not in rows


def test_progress_and_tables_say_what_was_paid(toys: Toys, tmp_path: Path) -> None:
    config = write_config(tmp_path, make_task(), {"price": PRICE, "budget.money": 5.5})
    done = fedbpt("tune", config, "--run-dir", tmp_path / "run")
    assert done.exit_code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_bytes())
    paid = sum(counts["money"] + counts["test_money"] for counts in result["spent"].values())
    searched = sum(counts["money"] for counts in result["spent"].values())
    assert f"money {searched:.4f} of 5.5 USD" in done.stdout
    assert f"{paid:.4f} USD" in done.stdout
    assert f"{paid:.4f} USD" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


async def test_made_up_answers_never_reach_the_shared_store(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBPT_CACHE", str(tmp_path / "cache"))
    task = make_task()
    await estimate(make_settings(task, {"cache": {"scores": True}}), task, probes=0)
    assert not list((tmp_path / "cache").rglob("*.sqlite"))
