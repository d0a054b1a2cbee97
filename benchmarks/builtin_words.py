"""Makes fedbpt_api/prompts/words.json: the word table for models whose embeddings cannot be had.

    python benchmarks/builtin_words.py

2,000 frequent words with 8 whitened principal coordinates of SmolLM2-135M-Instruct's embeddings
(Apache-2.0), rounded to three decimals. Needs the embedded model.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import orjson

import fedbpt_api.prompts
from fedbpt_api.prompts.codebook import from_table
from fedbpt_api.scoring.registry import open_backend

WORDS, COORDINATES = 2000, 8


async def main() -> None:
    backend = await open_backend("llamacpp")
    table = await backend.token_table()
    await backend.aclose()
    assert table is not None
    book = from_table(table, COORDINATES, "SmolLM2-135M-Instruct")
    data = {
        "source": f"built in, from {book.source}",
        "words": list(book.texts[:WORDS]),
        "coordinates": np.round(book.coordinates[:WORDS], 3).tolist(),
    }
    path = Path(fedbpt_api.prompts.__file__).parent / "words.json"
    path.write_bytes(orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE))
    print(f"wrote {path}: {WORDS} words, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    asyncio.run(main())
