"""A run as it might come out: four clients, seven rounds, one of which lost a client."""

from __future__ import annotations

import numpy as np
import pytest

from fedbpt_api.federation.tally import Ints
from fedbpt_api.run.report import ReportInput
from fedbpt_api.run.result import ClientRecord, RoundRecord, RunResult, TestReport
from fedbpt_api.run.stats import compare

CLIENTS = ("airlines", "football", "phones", "cars")
LABELS = ("negative", "neutral", "positive")
START = "Decide whether the mood of the following tweet is negative, neutral or positive.\n"
TUNED = "Complaint desk  angry <grateful> [bold]either\nmeh & \n"


def _predict(rng: np.random.Generator, truth: Ints, skill: float) -> Ints:
    guess = rng.choice(3, p=(0.5, 0.4, 0.1), size=truth.shape)
    return np.where(rng.random(truth.shape) < skill, truth, guess)


@pytest.fixture(scope="session")
def report() -> TestReport:
    rng = np.random.default_rng(5)
    mixes = ((0.62, 0.21, 0.17), (0.30, 0.52, 0.18), (0.33, 0.54, 0.13), (0.15, 0.60, 0.25))
    truth = np.concatenate([rng.choice(3, p=mix, size=500) for mix in mixes])
    clients = np.repeat(np.array(CLIENTS), 500)
    weighted = _predict(rng, truth, 0.36)
    better = np.where(rng.random(truth.shape) < 0.24, truth, weighted)
    tuned = np.where((clients == "cars") & (rng.random(truth.shape) < 0.55), 0, better)
    predictions = {
        "majority": np.where(clients == "airlines", 0, 1),
        "start": rng.choice(3, p=(0.15, 0.25, 0.6), size=truth.shape),
        "start+bias": _predict(rng, truth, 0.1),
        "start+weighted": weighted,
        "tuned": tuned,
    }
    return compare(LABELS, truth, predictions, clients)


@pytest.fixture(scope="session")
def result(report: TestReport) -> RunResult:
    rng = np.random.default_rng(6)
    rounds: list[RoundRecord] = []
    for i in range(8):
        level = 0.86 + 0.22 * float(np.exp(-i / 2.5))
        lost = i == 4
        clients = tuple(
            ClientRecord(
                client=name,
                answered=not (lost and name == "phones"),
                loss=float("nan") if lost and name == "phones" else level - 0.05,
                dev_loss=level + 0.05 * k - 0.08 + float(rng.normal(0, 0.02)),
                dev_accuracy=float(round((1.3 - level + 0.03 * k) * 32) / 32 + rng.integers(-1, 2) / 32),
                scored=0 if lost and name == "phones" else 620 if i else 192,
                distinct=0.9,
                note="no answer within 60 s" if lost and name == "phones" else "",
                bytes_up=1_236 if i else 18_420,
                bytes_down=1_180 if i else 2_210,
            )
            for k, name in enumerate(CLIENTS)
        )
        loss = float(np.mean([c.dev_loss for c in clients]))
        accuracy = float(np.mean([c.dev_accuracy for c in clients]))
        last = rounds[-1] if rounds else None
        improved = last is None or loss < last.best_dev_loss
        rounds.append(
            RoundRecord(
                round=i,
                dev_loss=loss,
                dev_accuracy=accuracy,
                best_dev_loss=loss if last is None or improved else last.best_dev_loss,
                best_dev_accuracy=accuracy if last is None or improved else last.best_dev_accuracy,
                sigma=0.9**i,
                distinct=0.91,
                scored=sum(c.scored for c in clients),
                tokens=84_000,
                seconds=38.4,
                bytes_up=sum(c.bytes_up for c in clients),
                bytes_down=sum(c.bytes_down for c in clients),
                clients=clients,
                prompt=TUNED,
            )
        )
    spent: dict[str, dict[str, int | float]] = {
        name: {
            "scored": sum(c.scored for r in rounds for c in r.clients if c.client == name),
            "duplicates": 311 + k,
            "prompt_tokens": 168_000 + 1_000 * k,
            "cached_tokens": 120_400,
            "requests": 410,
            "test_scored": 1_500,
        }
        for k, name in enumerate(CLIENTS)
    }
    return RunResult("runs/tweets", TUNED, START, "budget", tuple(rounds), spent, report)


@pytest.fixture(scope="session")
def shown() -> ReportInput:
    return ReportInput(
        model="SmolLM2-135M-Instruct",
        template="Tweet: {text}\nSentiment:",
        label_words={"negative": [" negative", " bad"], "neutral": [" neutral"], "positive": [" positive"]},
        verbalizer="weighted over 128 words",
        settings={
            "seed": 0,
            "prompts": [START],
            "backend": {"kind": "llamacpp", "api_key": "sk-123", "url": "http://me:pw@host:8080/v1"},
            "budget": {"scored": 18_000, "tokens": None},
            "clients": [{"name": "airlines", "train": "/data/airlines.jsonl"}],
        },
        versions={"fedbpt_api": "0.1.0", "python": "3.11.9", "cma": "4.5.0"},
    )
