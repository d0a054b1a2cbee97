r"""Label scoring against lm-evaluation-harness (`local-completions`) on the same vLLM: AG's four labels.

    FEDBPT_DATA=... python benchmarks/harness.py --url http://127.0.0.1:8001 --weights FOLDER \
        --lm-eval ENV/bin/lm_eval

The harness runs as a program of its own with several settings, on articles that no other run sends, so no
cache helps anybody. Its start-up is taken out by timing it on few and on many articles. Rates are
labelled articles a second; both sides must agree on most labels.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fedbpt_api.data import read_examples
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import Encoder
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.scoring.trie import label_trie
from fedbpt_api.task import Example, LabelWords, Template

LABELS = ("World", "Sports", "Business", "Sci-Tech")
WORDS = ("World", "Sports", "Business", "Tech")
TEMPLATE = "Article: {text}\nTopic:"
FEW = 16
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
output_type: multiple_choice
test_split: test
doc_to_text: "Article: {{{{text}}}}\\nTopic:"
doc_to_choice: {choices}
doc_to_target: target
target_delimiter: " "
metric_list:
  - metric: acc
"""


def main(
    url: Annotated[str, typer.Option(help="The vLLM.")],
    weights: Annotated[Path, typer.Option(help="The model's folder, for the harness's tokeniser.")],
    lm_eval: Annotated[Path, typer.Option(help="The lm_eval program of an environment with lm-eval[api].")],
    many: Annotated[int, typer.Option(help="Articles a measurement.")] = 200,
) -> None:
    data = os.environ.get("FEDBPT_DATA")
    if not data:
        sys.exit("set FEDBPT_DATA to the folder that holds agnews")
    rows = iter(list(read_examples(Path(data) / "agnews" / "test.jsonl")))
    ours = [asyncio.run(_ours(url, list(islice(rows, many)))) for _ in range(3)]
    print(
        f"ours: {np.median(ours):6.1f} articles/s ({', '.join(f'{rate:.1f}' for rate in ours)})", flush=True
    )
    best = 0.0
    for concurrency, batch in ((1, 1), (8, 1), (16, 1), (4, 16), (8, 32)):
        few, much = list(islice(rows, FEW)), list(islice(rows, many))
        seconds = [_harness(lm_eval, url, weights, part, concurrency, batch) for part in (few, much)]
        rate = (many - FEW) / max(seconds[1] - seconds[0], 1e-3)
        best = max(best, rate)
        print(f"lm-eval, {concurrency} at once, batches of {batch}: {rate:6.1f} articles/s", flush=True)
    print(f"ours / its best: {np.median(ours) / best:.2f}")


async def _ours(url: str, rows: list[Example]) -> float:
    """Articles a second, from texts to label probabilities."""
    words = LabelWords(LABELS, tuple((f" {word}",) for word in WORDS))
    served = await open_backend("vllm", base_url=url)
    trie = await label_trie(served, words)
    backend = trie.over(served)
    scorer = Scorer(backend, Budget())
    scorer.use_words(trie.tokens)
    began = time.perf_counter()
    texts = await Encoder(backend, Template.parse(TEMPLATE), words).texts(rows)
    said = (await scorer.score((), texts)).argmax(axis=1)
    seconds = time.perf_counter() - began
    await backend.aclose()
    right = np.mean([LABELS[i] == row.label for i, row in zip(said, rows, strict=True)])
    print(f"  (accuracy of the label words: {right:.3f})")
    return len(rows) / seconds


def _harness(program: Path, url: str, weights: Path, rows: list[Example], at_once: int, batch: int) -> float:
    """Seconds that the program takes."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        data.write_text(
            "".join(json.dumps({"text": r.text, "target": LABELS.index(str(r.label))}) + "\n" for r in rows)
        )
        task = TASK.format(name="ag_labels", rows=data, choices=json.dumps(WORDS))
        (Path(folder) / "ag_labels.yaml").write_text(task)
        arguments = [
            f"model=smollm2,base_url={url}/v1/completions,num_concurrent={at_once},tokenizer={weights}",
            "--tasks", "ag_labels", "--include_path", folder, "--batch_size", str(batch),
        ]  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(
            [program, "--model", "local-completions", "--model_args", *arguments],
            capture_output=True, text=True, check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder},
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        found = [line for line in done.stdout.splitlines() if "acc" in line]
        print(f"  ({found[0] if found else 'no accuracy'})")
        return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
