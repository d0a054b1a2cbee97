"""llama.cpp, embedded in this process (the default) or an external server by URL.

Embedded: exact log-probabilities from the full vocabulary, nothing listens on any port, and a score
depends on its own tokens only (see `llama_c`). By URL: llama.cpp's HTTP server, with the equal-bias
way of reading label probabilities (the same bias on all named tokens, probabilities after sampling),
which is exact relative to the named tokens; the mass of the named tokens is not known there.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.scoring.backend import Backend, BackendInfo, Prompt, Scores, TokenTable, Usage
from fedbpt_backends import models
from fedbpt_backends.llama_c import LlamaModel, find_library
from fedbpt_backends.llama_http import LlamaServer

R = TypeVar("R")


async def open_backend(
    *,
    model: str = "smollm2-135m-instruct",
    base_url: str | None = None,
    library: str | None = None,
    context: int = 1024,
    slots: int = 4,
    threads: int | None = None,
) -> Backend:
    """Open llama.cpp.

    Args:
        model: A known model's name or the path of a GGUF file. Not used with `base_url`.
        base_url: An external llama.cpp server, such as ``http://127.0.0.1:8080``.
        library: A ``libllama`` of your own to embed instead of the wheel's (one built for this
            machine's processor is about twice as fast).
        context: Longest input in tokens.
        slots: How many stems (shared leading tokens) stay evaluated; with the example before the
            prompt, as many as there are examples, at most 256.
        threads: Processor threads; all cores where not given.
    """
    for key, value in (("context", context), ("slots", slots), ("threads", threads or 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"backend.{key}: expected a whole number above 0, got {value!r}")
    if base_url is not None:
        return await LlamaServer.connect(base_url, context)
    if not 1 <= slots <= 256:
        raise ConfigError(f"backend.slots: {slots} is not between 1 and 256", "4 is enough for most runs")
    return await EmbeddedLlama.load(
        models.find(model), library, context=context, slots=slots, threads=threads or os.cpu_count() or 1
    )


class EmbeddedLlama:
    """A GGUF model in this process, evaluated on one worker thread."""

    def __init__(self, path: Path, library: str | None) -> None:
        self._path = path
        self._library = library
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="llamacpp")
        self._llama: LlamaModel | None = None
        self._info: BackendInfo | None = None
        self._table: TokenTable | None = None
        self._closing = False

    @classmethod
    async def load(
        cls, path: Path, library: str | None, *, context: int, slots: int, threads: int
    ) -> EmbeddedLlama:
        self = cls(path, library)
        try:
            load = partial(LlamaModel, path, library=library, context=context, slots=slots, threads=threads)
            llama = self._llama = await self._run(load)
            digest: str = await self._run(partial(_sha256, path))
        except BaseException:
            await self.aclose()
            raise
        self._info = BackendInfo(
            kind="llamacpp",
            model=path.name,
            fingerprint=digest[:16],
            context=llama.context,
            details={"sha256": digest, "library": find_library(library).name, "way": "full vocabulary"},
        )
        return self

    @property
    def info(self) -> BackendInfo:
        if self._info is None:
            raise BackendError("the embedded model is not open")
        return self._info

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return self._open.tokenize(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return b"".join(self._open.piece(token) for token in ids).decode("utf-8", "replace")

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        return await self._run(partial(self._score, tuple(prompts), np.asarray(words, dtype=np.intp)))

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        return await self._run(partial(self._top_words, tuple(prompts), k))

    async def token_table(self) -> TokenTable | None:
        if self._table is None:
            self._table = await self._run(self._read_table)
        return self._table

    async def aclose(self) -> None:
        self._closing = True
        llama, self._llama = self._llama, None
        if llama is not None:
            await asyncio.wrap_future(self._worker.submit(llama.close))
        self._worker.shutdown(wait=True)

    # On the worker thread -----------------------------------------------------------------

    def _score(self, prompts: tuple[Prompt, ...], words: npt.NDArray[np.intp]) -> Scores:
        if not all(0 <= word < self._open.n_vocab for word in words):
            raise BackendError("a named word is not a token of this model", "was it made for another model?")
        rows, mass, cached = np.empty((len(prompts), len(words))), np.empty(len(prompts)), 0
        for i, (full, reused) in enumerate(self._evaluate(prompts)):
            mass[i] = np.exp(full[words]).sum()
            rows[i] = full[words] - np.log(mass[i])
            cached += reused
        return Scores(rows, np.ones(rows.shape, dtype=np.bool_), mass, _usage(prompts, cached))

    def _top_words(self, prompts: tuple[Prompt, ...], k: int) -> tuple[list[dict[int, float]], Usage]:
        lists, cached = [], 0
        for full, reused in self._evaluate(prompts):
            best = np.argsort(-full, kind="stable")[:k]
            lists.append({int(token): float(full[token]) for token in sorted(best)})
            cached += reused
        return lists, _usage(prompts, cached)

    def _evaluate(self, prompts: tuple[Prompt, ...]) -> list[tuple[npt.NDArray[np.float64], int]]:
        longest = max((len(p.ids) for p in prompts), default=0)
        if longest > self._open.context:
            raise BackendError(
                f"an input has {longest} tokens, the context holds {self._open.context}",
                "raise [backend] context or shorten the texts",
            )
        answers = []
        for answer in self._open.logprobs([(p.ids, p.shared) for p in prompts]):
            if self._closing:
                raise BackendError("the embedded model was closed while it was scoring")
            answers.append(answer)
        return answers

    def _read_table(self) -> TokenTable:
        from gguf import GGUFReader, quants  # slow to import and needed here only

        llama = self._open
        tensor = next((t for t in GGUFReader(self._path).tensors if t.name == "token_embd.weight"), None)
        if tensor is None:
            raise BackendError(f"{self._path} has no embedding table")
        table = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        texts = tuple(llama.piece(i).decode("utf-8", "replace") for i in range(llama.n_vocab))
        return TokenTable(texts, table)

    @property
    def _open(self) -> LlamaModel:
        if self._llama is None:
            raise BackendError("the embedded model is closed")
        return self._llama

    async def _run(self, work: Callable[[], R]) -> R:
        if self._closing:
            raise BackendError("the embedded model is closed")
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


def _usage(prompts: tuple[Prompt, ...], cached: int) -> Usage:
    return Usage(len(prompts), sum(len(p.ids) for p in prompts), cached, len(prompts))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
