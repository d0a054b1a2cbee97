"""An application that uses a tuned prompt: reads texts, prints each with its label and how sure it is.

Run it with: python examples/classify_app.py RUN_FOLDER < texts.txt
"""

from __future__ import annotations

import sys

from fedbpt_api import Classifier, Prediction, TunedPrompt, run_sync


async def classify(folder: str, texts: list[str]) -> list[Prediction]:
    async with await Classifier.open(TunedPrompt.load(folder)) as classifier:
        return await classifier.classify(texts)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/classify_app.py RUN_FOLDER < texts.txt")
    texts = [line.strip() for line in sys.stdin if line.strip()]
    for text, said in zip(texts, run_sync(lambda: classify(sys.argv[1], texts)), strict=True):
        print(f"{said.label:>10} {said.probabilities[said.label]:4.0%}  {text}")


if __name__ == "__main__":
    main()
