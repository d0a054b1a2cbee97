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
from fedbpt_backends.llama_c import LlamaContext, LlamaModel, find_library
from fedbpt_backends.llama_http import LlamaServer, refuse_vectors

R = TypeVar("R")


async def open_backend(
    *,
    model: str = "smollm2-135m-instruct",
    base_url: str | None = None,
    library: str | None = None,
    context: int = 1024,
    slots: int = 4,
    threads: int | None = None,
    exact: bool = False,
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
        threads: Processor threads, each on inputs of its own; all cores where not given.
        exact: With `base_url`: inputs one at a time and each evaluated whole, so that a score does not depend
            on what was asked before. The embedded model's never do.
    """
    for key, value in (("context", context), ("slots", slots), ("threads", threads or 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"backend.{key}: expected a whole number above 0, got {value!r}")
    if base_url is not None:
        return await LlamaServer.connect(base_url, context, exact=exact)
    if not 1 <= slots <= 256:
        raise ConfigError(f"backend.slots: {slots} is not between 1 and 256", "4 is enough for most runs")
    return await EmbeddedLlama.load(
        models.find(model), library, context=context, slots=slots, workers=threads or os.cpu_count() or 1
    )


class EmbeddedLlama:
    """A GGUF model in this process: one context and one thread a processor core.

    The threads work on different inputs, so none waits for another, and a busy machine slows the run
    down no more than it must.
    """

    def __init__(self, path: Path, library: str | None, workers: int) -> None:
        self._path = path
        self._library = library
        self._workers = [ThreadPoolExecutor(1, f"llamacpp-{i}") for i in range(workers)]
        self._llama: LlamaModel | None = None
        self._contexts: list[LlamaContext] = []
        self._info: BackendInfo | None = None
        self._table: TokenTable | None = None
        self._closing = False

    @classmethod
    async def load(
        cls, path: Path, library: str | None, *, context: int, slots: int, workers: int
    ) -> EmbeddedLlama:
        self = cls(path, library, workers)
        try:
            digest: str = await self._run(partial(self._load, context, slots))
        except BaseException:
            await self.aclose()
            raise
        self._info = BackendInfo(
            kind="llamacpp",
            model=path.name,
            fingerprint=digest[:16],
            context=self._contexts[0].context,
            details={"sha256": digest, "library": find_library(library).name, "way": "full vocabulary"},
            parallel=2,  # one is being prepared while the other is evaluated
            generated=0,
        )
        return self

    @property
    def info(self) -> BackendInfo:
        if self._info is None:
            raise BackendError("the embedded model is not open")
        return self._info

    @property
    def notice(self) -> str:
        return ""

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return self._open.tokenize(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        if not all(0 <= token < self._open.n_vocab for token in ids):
            raise BackendError(
                "there is no such token in this model", "was the prompt made for another model?"
            )
        return b"".join(self._open.piece(token) for token in ids).decode("utf-8", "replace")

    async def score(self, prompts: Sequence[Prompt], words: Sequence[int]) -> Scores:
        chosen = np.asarray(words, dtype=np.intp)
        if not all(0 <= word < self._open.n_vocab for word in words):
            raise BackendError("a named word is not a token of this model", "was it made for another model?")
        parts = await self._share(prompts, lambda full: full[chosen])
        rows = np.array([row for row, _ in parts]).reshape(len(prompts), len(words))
        mass = np.exp(rows).sum(axis=1)
        rows -= np.log(mass)[:, None]
        usage = _usage(prompts, sum(reused for _, reused in parts))
        return Scores(rows, np.ones(rows.shape, dtype=np.bool_), mass, usage)

    async def top_words(self, prompts: Sequence[Prompt], k: int) -> tuple[list[dict[int, float]], Usage]:
        def best(full: npt.NDArray[np.float64]) -> dict[int, float]:
            return {int(token): float(full[token]) for token in np.argsort(-full, kind="stable")[:k]}

        parts = await self._share(prompts, best)
        return [words for words, _ in parts], _usage(prompts, sum(reused for _, reused in parts))

    async def token_table(self) -> TokenTable | None:
        if self._table is None:
            self._table = await self._run(self._read_table)
        return self._table

    async def aclose(self) -> None:
        self._closing = True
        await asyncio.to_thread(self._free)

    async def _share(
        self, prompts: Sequence[Prompt], read: Callable[[npt.NDArray[np.float64]], R]
    ) -> list[tuple[R, int]]:
        """Evaluate inputs on all workers, each a run of neighbours; what `read` takes, and tokens re-used."""
        llama = self._open
        longest, room = max((len(p.ids) for p in prompts), default=0), self.info.context
        if longest > room:
            raise BackendError(
                f"an input has {longest} tokens, the context holds {room}",
                "raise [backend] context or shorten the texts",
            )
        refuse_vectors(prompts)
        for prompt in prompts:
            llama.check(prompt.ids)
        size = -(-len(prompts) // len(self._workers)) or 1
        parts = [prompts[begin : begin + size] for begin in range(0, len(prompts), size)]
        # A request of one input must not always meet the same worker; which one follows from its ids alone.
        first = sum(prompts[0].ids) if 0 < len(parts) < len(self._workers) else 0
        workers = [(first + i) % len(self._workers) for i in range(len(parts))]
        jobs = [
            self._run(partial(self._evaluate, w, p, read), w) for w, p in zip(workers, parts, strict=True)
        ]
        answers = await asyncio.gather(*jobs)
        return [answer for part in answers for answer in part]

    # On the worker threads ----------------------------------------------------------------

    def _load(self, context: int, slots: int) -> str:
        llama = self._llama = LlamaModel(self._path, self._library)
        for _ in self._workers:
            self._contexts.append(LlamaContext(llama, context=context, slots=slots))
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _evaluate(
        self, worker: int, prompts: Sequence[Prompt], read: Callable[[npt.NDArray[np.float64]], R]
    ) -> list[tuple[R, int]]:
        answers = []
        for full, reused in self._contexts[worker].logprobs([(p.ids, p.shared) for p in prompts]):
            if self._closing:
                raise BackendError("the embedded model was closed while it was scoring")
            answers.append((read(full), reused))
        return answers

    def _free(self) -> None:
        """Wait for the workers, then give contexts and weights back."""
        for worker in self._workers:
            worker.shutdown(wait=True)
        while self._contexts:
            self._contexts.pop().close()
        llama, self._llama = self._llama, None
        if llama is not None:
            llama.close()

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

    async def _run(self, work: Callable[[], R], worker: int = 0) -> R:
        if self._closing:
            raise BackendError("the embedded model is closed")
        return await asyncio.get_running_loop().run_in_executor(self._workers[worker], work)


def _usage(prompts: Sequence[Prompt], cached: int) -> Usage:
    return Usage(len(prompts), sum(len(p.ids) for p in prompts), cached, len(prompts))
