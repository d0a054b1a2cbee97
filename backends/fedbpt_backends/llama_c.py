"""llama.cpp inside this process: the few C functions that exact, repeatable scoring needs.

The shared library is the one in the ``xllamacpp`` wheel, or any ``libllama`` built for this very
processor. Each input is evaluated by itself after its stem (the leading tokens that it shares with
other inputs) has been evaluated once and kept in the KV cache. So a score is a function of the
token ids and the stem's length alone: not of what was asked before, nor of what is asked beside it.

The parameter structs grow from release to release. They are passed here as oversized blobs that the
library fills with its own defaults; only the four leading fields of the context's, stable for years
and checked on load, are changed.
"""

from __future__ import annotations

import ctypes as c
import importlib.util
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedbpt_api.errors import BackendError

_BATCH = 512  # tokens a decode call; also the physical batch, so that a stem is cut the same way always
_KNOWN_DEFAULTS = (512, 2048, 512, 1)  # n_ctx, n_batch, n_ubatch, n_seq_max


class _Blob(c.Structure):
    _fields_ = [("words", c.c_uint32 * 256)]


class _Batch(c.Structure):
    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


_LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_quiet = _LOG(lambda level, text, data: None)  # must outlive every call into the library

_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "llama_log_set": (None, [_LOG, c.c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_Blob, []),
    "llama_context_default_params": (_Blob, []),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, _Blob]),
    "llama_model_free": (None, [c.c_void_p]),
    "llama_model_n_ctx_train": (c.c_int32, [c.c_void_p]),
    "llama_init_from_model": (c.c_void_p, [c.c_void_p, _Blob]),
    "llama_free": (None, [c.c_void_p]),
    "llama_set_n_threads": (None, [c.c_void_p, c.c_int32, c.c_int32]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_vocab_n_tokens": (c.c_int32, [c.c_void_p]),
    "llama_tokenize": (
        c.c_int32,
        [c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool],
    ),
    "llama_token_to_piece": (
        c.c_int32,
        [c.c_void_p, c.c_int32, c.c_char_p, c.c_int32, c.c_int32, c.c_bool],
    ),
    "llama_batch_init": (_Batch, [c.c_int32, c.c_int32, c.c_int32]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (c.c_int32, [c.c_void_p, _Batch]),
    "llama_get_logits_ith": (c.POINTER(c.c_float), [c.c_void_p, c.c_int32]),
    "llama_get_memory": (c.c_void_p, [c.c_void_p]),
    "llama_memory_seq_rm": (c.c_bool, [c.c_void_p, c.c_int32, c.c_int32, c.c_int32]),
}


def find_library(path: str | None) -> Path:
    """The given libllama, or the one inside the installed ``xllamacpp`` wheel."""
    if path:
        return Path(path).expanduser()
    try:
        found = importlib.util.find_spec("xllamacpp.xllamacpp")
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise BackendError(
            "the embedded backend needs the package xllamacpp, which is not installed",
            "pip install 'fedbpt-api[embedded]'",
        )
    return Path(found.origin)


def _bind(path: Path) -> c.CDLL:
    for sibling in ("libggml-base.so", "libggml-base.dylib"):
        if (path.parent / sibling).exists():
            c.CDLL(str(path.parent / sibling), mode=c.RTLD_GLOBAL)
    try:
        lib = c.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise BackendError(
            f"{path} is not a usable llama.cpp library: {error}",
            "install the pinned wheel ('fedbpt-api[embedded]') or correct [backend] library",
        ) from error
    lib.llama_log_set(_quiet, None)
    lib.llama_backend_init()
    return lib


class LlamaModel:
    """A model's weights and vocabulary. Contexts share it."""

    def __init__(self, path: Path, library: str | None = None) -> None:
        self.lib = _bind(find_library(library))
        self.handle = self.lib.llama_model_load_from_file(
            str(path).encode(), self.lib.llama_model_default_params()
        )
        if not self.handle:
            raise BackendError(f"llama.cpp cannot load {path}", "is it a complete GGUF file?")
        self.n_ctx_train = int(self.lib.llama_model_n_ctx_train(self.handle))
        self._vocab = self.lib.llama_model_get_vocab(self.handle)
        self.n_vocab = int(self.lib.llama_vocab_n_tokens(self._vocab))

    def tokenize(self, text: str) -> tuple[int, ...]:
        data = text.encode()
        room = len(data) + 8
        out = (c.c_int32 * room)()
        n = self.lib.llama_tokenize(self._vocab, data, len(data), out, room, False, False)
        return tuple(out[:n])

    def piece(self, token: int) -> bytes:
        self.check((token,))
        buffer = c.create_string_buffer(512)
        n = self.lib.llama_token_to_piece(self._vocab, token, buffer, 512, 0, True)
        return buffer.raw[: max(n, 0)]

    def check(self, ids: Sequence[int]) -> None:
        """The library takes any number for a token id, and dies of a wrong one."""
        if not ids or not all(0 <= token < self.n_vocab for token in ids):
            raise BackendError(
                f"expected token ids from 0 to {self.n_vocab - 1}, got {list(ids)[:8]}",
                "were these ids made for another model?",
            )

    def close(self) -> None:
        """Free the weights; every context must be closed before."""
        if self.handle:
            self.lib.llama_model_free(self.handle)
            self.handle = None


class LlamaContext:
    """A KV cache over a model, evaluated by one thread at a time.

    Args:
        model: The weights.
        context: Longest input in tokens.
        slots: Stems that stay evaluated.
        threads: Threads that work on one input.
    """

    def __init__(self, model: LlamaModel, *, context: int, slots: int, threads: int = 1) -> None:
        self._lib, self._model = model.lib, model
        self.context = min(context, model.n_ctx_train)
        params = self._lib.llama_context_default_params()
        if tuple(params.words[:4]) != _KNOWN_DEFAULTS:
            raise BackendError(
                f"this llama.cpp library is laid out differently (defaults {tuple(params.words[:4])})",
                "install the xllamacpp version that fedbpt-api pins",
            )
        cells = -(-self.context // 256) * 256
        params.words[0], params.words[3] = cells * slots, slots
        params.words[1] = params.words[2] = _BATCH
        self._ctx = self._lib.llama_init_from_model(model.handle, params)
        if not self._ctx:
            raise BackendError("llama.cpp cannot make a context", "lower [backend] context or slots")
        self._lib.llama_set_n_threads(self._ctx, threads, threads)
        self._memory = self._lib.llama_get_memory(self._ctx)
        self._batch = self._lib.llama_batch_init(_BATCH, 0, 1)
        self._stems: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self._free = list(range(slots))

    def logprobs(
        self, inputs: Sequence[tuple[tuple[int, ...], int]]
    ) -> Iterator[tuple[npt.NDArray[np.float64], int]]:
        """For each (token ids, stem length): next-token log-probabilities [V] and tokens re-used."""
        for ids, shared in inputs:
            self._model.check(ids)
            stem = ids[: min(shared, len(ids) - 1)]
            try:
                slot, reused = self._place(stem)
                logits = self._decode(ids[len(stem) :], len(stem), slot, want=True)
            except BackendError:
                self._forget(stem)
                raise
            self._lib.llama_memory_seq_rm(self._memory, slot, len(stem), -1)
            shifted = logits - logits.max()
            yield shifted - np.log(np.exp(shifted).sum()), reused

    def _place(self, stem: tuple[int, ...]) -> tuple[int, int]:
        """The slot that holds `stem`, evaluated now if no slot does; and how many tokens that saved."""
        if stem in self._stems:
            self._stems.move_to_end(stem)
            return self._stems[stem], len(stem)
        slot = self._free.pop() if self._free else self._stems.popitem(last=False)[1]
        self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        self._stems[stem] = slot
        if stem:
            self._decode(stem, 0, slot, want=False)
        return slot, 0

    def _forget(self, stem: tuple[int, ...]) -> None:
        """Empty the slot of a stem that may be half evaluated."""
        slot = self._stems.pop(stem, None)
        if slot is not None:
            self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
            self._free.append(slot)

    def _decode(self, ids: tuple[int, ...], start: int, slot: int, *, want: bool) -> npt.NDArray[np.float64]:
        batch, last = self._batch, len(ids) - 1
        for begin in range(0, len(ids), _BATCH):
            part = ids[begin : begin + _BATCH]
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i] = token, start + begin + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, slot
                batch.logits[i] = want and begin + i == last
            batch.n_tokens = len(part)
            status = self._lib.llama_decode(self._ctx, batch)
            if status:
                raise BackendError(f"llama.cpp could not evaluate {len(ids)} tokens (status {status})")
        if not want:
            return np.empty(0)
        row = self._lib.llama_get_logits_ith(self._ctx, last % _BATCH)
        return np.ctypeslib.as_array(row, (self._model.n_vocab,)).astype(np.float64)

    def close(self) -> None:
        """Free the cache. May be called twice."""
        if self._ctx:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._ctx)
            self._ctx = None
