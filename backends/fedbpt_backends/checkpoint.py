"""Vocabulary and embedding table from a model's own files (the folder that transformers and vLLM read).

safetensors is a length, a JSON header and raw numbers; tokenizer.json is JSON. Both are read directly,
so no framework is needed and only the embedding table's bytes are touched.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import TokenTable

_EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "embed_tokens.weight", "wte.weight")
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def read_table(folder: Path) -> TokenTable:
    """Texts [V] and embeddings [V, D] (float32) of the model in `folder`.

    Raises:
        BackendError: A file is missing or of another form.
    """
    try:
        table = _embeddings(folder)
        texts = _texts(folder, len(table))
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise BackendError(
            f"{folder} is not a model folder that can be read ({type(error).__name__}: {error})",
            "it needs tokenizer.json and *.safetensors; correct [backend] weights",
        ) from error
    return TokenTable(texts, table)


def fingerprint(folder: Path) -> str:
    """A short hash of the model's configuration and of the embedding table's first rows."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    digest.update(_embeddings(folder)[:256].tobytes())
    return digest.hexdigest()[:16]


def _embeddings(folder: Path) -> npt.NDArray[np.float32]:
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError(f"{path.name} is cut off or no safetensors file")
            header = orjson.loads(file.read(length))
        name = next((n for n in header if n.endswith(_EMBEDDINGS)), None)
        if name is None:
            continue
        begin, end = header[name]["data_offsets"]
        kind = header[name]["dtype"]
        if kind not in _TYPES:
            raise ValueError(f"embeddings of type {kind}, expected one of {', '.join(_TYPES)}")
        count = (end - begin) // _TYPES[kind].itemsize
        raw = np.fromfile(path, _TYPES[kind], count, offset=8 + length + begin)
        if kind == "BF16":  # the upper half of a float32
            raw = (raw.astype("<u4") << 16).view("<f4")
        return np.ascontiguousarray(raw.astype(np.float32).reshape(header[name]["shape"]))
    raise ValueError(f"no embedding table (one of {', '.join(_EMBEDDINGS)}) in *.safetensors")


def _texts(folder: Path, size: int) -> tuple[str, ...]:
    """The text of every token id; empty where the table is padded."""
    tokenizer = orjson.loads((folder / "tokenizer.json").read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    pairs = (
        vocabulary.items()
        if isinstance(vocabulary, dict)
        else ((p, i) for i, (p, _) in enumerate(vocabulary))
    )
    texts = [""] * size
    sentencepiece = "▁" in str(tokenizer.get("decoder")) or "▁" in str(tokenizer.get("pre_tokenizer"))
    for piece, number in pairs:
        if number < size:
            texts[number] = piece.replace("▁", " ") if sentencepiece else _unbyte(piece)
    for added in tokenizer.get("added_tokens", ()):
        if added["id"] < size:
            texts[added["id"]] = added["content"]
    return tuple(texts)


def _unbyte(piece: str) -> str:
    """A byte-level token as text (GPT-2's table of stand-ins for bytes, read backwards)."""
    table = _bytes()
    return bytes(table[c] for c in piece if c in table).decode("utf-8", "replace")


@cache
def _bytes() -> dict[str, int]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}
