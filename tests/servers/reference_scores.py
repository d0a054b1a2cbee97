"""Run by vLLM's interpreter: next-token log-probabilities by transformers, from the same weights.

Reads {"folder", "prompts": [[ids]], "words": [ids]} as JSON and writes [[log-probability]].
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    asked = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=torch.float32)
    rows = []
    with torch.no_grad():
        for ids in asked["prompts"]:
            logits = model(torch.tensor([ids])).logits[0, -1]
            rows.append(torch.log_softmax(logits, -1)[asked["words"]].tolist())
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
