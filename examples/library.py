"""Tune a prompt from Python: two shops, a handful of texts each, a budget of a few hundred examples.

Run it with: python examples/library.py [RUN_FOLDER]
"""

from __future__ import annotations

import asyncio
import sys

from fedbpt_api import ClientData, Example, Finished, LabelWords, RoundDone, Task, Template, stream

GOOD = [
    "Arrived a day early and works perfectly.",
    "Best kettle I have ever owned!",
    "Friendly service, I will order again.",
    "Exactly as described, my kids love it.",
    "Great value and very well made.",
    "The staff went out of their way to help.",
    "Beautiful colours and so soft.",
    "Five stars, would recommend to anyone.",
]
BAD = [
    "Broke after two days and nobody answers my mails.",
    "The parcel was empty. Unbelievable.",
    "Cheap plastic, smells awful.",
    "Never again, a complete waste of money.",
    "It arrived late and in the wrong size.",
    "The refund still has not come.",
    "Loud, slow and ugly.",
    "The worst purchase of the year.",
]


def shop(name: str, good: list[str], bad: list[str]) -> ClientData:
    """A client: half of its texts to train on, half to choose by."""
    rows = [Example(text, "good") for text in good] + [Example(text, "bad") for text in bad]
    return ClientData(name, train=tuple(rows[::2]), dev=tuple(rows[1::2]))


async def main(run_dir: str | None) -> None:
    task = Task(
        Template.parse("Customer: {text}\nThe customer is"),
        LabelWords.from_mapping({"good": [" happy", " satisfied"], "bad": [" angry", " disappointed"]}),
        (shop("north", GOOD[:4], BAD[:4]), shop("south", GOOD[4:], BAD[4:])),
    )
    settings = {
        "prompts": ["Is the customer content?\n", ""],
        "template": task.template.source,
        "labels": {"good": " happy", "bad": " angry"},
        "budget": {"scored": 300},
        "search": {"popsize": 4, "iterations": 1, "positions": 2},
        "verbalizer": {"kind": "bias"},
    }
    async for event in stream(settings, task=task, run_dir=run_dir):
        if isinstance(event, RoundDone):
            print(f"round {event.record.round}: development accuracy {event.record.best_dev_accuracy:.2f}")
        elif isinstance(event, Finished):
            print(f"tuned prompt: {event.result.prompt!r}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
