"""Is the server kept busy? Rates as ratios, taken in turns against the same server in one run.

    python benchmarks/throughput.py generation vllm --url http://127.0.0.1:8001
    python benchmarks/throughput.py generation llamacpp
    python benchmarks/throughput.py generation llamacpp --url http://127.0.0.1:8080
    python benchmarks/throughput.py prefix vllm --url http://127.0.0.1:8001
    python benchmarks/throughput.py prefix llamacpp --url http://127.0.0.1:8080
    python benchmarks/throughput.py client --scored 1000000

`generation`: scored examples a second of a CMA-ES generation (8 candidates on 32 texts, through the
Scorer) against a bare load generator that sends the same kind of token-id requests at its best
concurrency. `prefix`: of the tokens that could be re-used (vLLM: in whole cache blocks; llama.cpp: by
each slot), the share that was, by the server's own counters. `padding`: scored examples a second with
prompts that fill whole blocks against those that do not. `client`: processor time that this package takes
for a scored example on a server that answers at once, and how memory grows.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import orjson
import typer

from fedbpt_api.prompts.padding import evaluated, missing
from fedbpt_api.scoring.backend import Backend, Prompt
from fedbpt_api.scoring.budget import Budget
from fedbpt_api.scoring.encode import EncodedText, Encoder
from fedbpt_api.scoring.journal import Journal
from fedbpt_api.scoring.registry import open_backend
from fedbpt_api.scoring.scorer import Scorer
from fedbpt_api.task import Example, LabelWords, Template

app = typer.Typer(add_completion=False)
WORDS = LabelWords(("negative", "positive"), ((" negative",), (" positive",)))
TEMPLATE = Template.parse("Review: {text}\nSentiment:")
CANDIDATES, TEXTS, TURNS = 8, 32, 3
JSON = {"Content-Type": "application/json"}
WORDLIST = "the film was a long and quiet story about two people who never meet but know each other"
Ids = tuple[int, ...]
Timed = Callable[[Sequence[Ids]], Awaitable[None]]


def texts(n: int) -> list[Example]:
    """Reviews of 12 to 30 words that nobody wrote."""
    rng = np.random.default_rng(1)
    words = WORDLIST.split()
    return [Example(" ".join(rng.choice(words, rng.integers(12, 31)))) for _ in range(n)]


class Fresh:
    """Prompts that were never sent before, so that nothing is known or cached."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens, self._rng = list(tokens), np.random.default_rng(time.time_ns())

    def prompts(self, n: int, length: int = 24) -> list[Ids]:
        return [tuple(int(t) for t in self._rng.choice(self._tokens, length)) for _ in range(n)]


async def prepared(backend: Backend) -> tuple[list[EncodedText], Ids, Fresh]:
    encoded = await Encoder(backend, TEMPLATE, WORDS).texts(texts(TEXTS))
    words = [(await backend.tokenize(group[0]))[0] for group in WORDS.words]
    vocabulary = sorted({t for text in encoded for t in text.after})
    return list(encoded), tuple(words), Fresh(vocabulary)


async def rates(fresh: Fresh, ours: Timed, bare: dict[str, Timed]) -> None:
    """Take turns, print medians and the ratio to the best bare one."""
    seconds = await in_turns(fresh, {"ours": ours, **bare})
    found = medians(seconds)
    best = max(found[name] for name in bare)
    low, high = (CANDIDATES * TEXTS / pick(seconds["ours"]) for pick in (max, min))
    print(f"ours / best bare: {found['ours'] / best:.3f}   (ours from {low:.1f} to {high:.1f})")


async def in_turns(fresh: Fresh, works: Mapping[str, Timed], length: int = 24) -> dict[str, list[float]]:
    """Seconds that each took for a generation, in each turn."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(TURNS + 1):
        for name, work in works.items():
            prompts = fresh.prompts(CANDIDATES, length)
            began = time.perf_counter()
            await work(prompts)
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - began)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Scored examples a second, printed."""
    found = {name: CANDIDATES * TEXTS / statistics.median(values) for name, values in seconds.items()}
    for name, rate in found.items():
        print(f"{name:<32} {rate:8.1f} scored examples/s")
    return found


async def through_scorer(
    backend: Backend, words: Ids, encoded: list[EncodedText], prompts: Sequence[Ids]
) -> int:
    """Score all; tokens that the server says it had in its cache."""
    scorer = Scorer(backend, Budget())
    scorer.use_words(words)
    await asyncio.gather(*(scorer.score(prompt, encoded) for prompt in prompts))
    return scorer.budget.spent.cached_tokens


@app.command()
def generation(
    kind: Annotated[str, typer.Argument(help="vllm or llamacpp.")],
    url: Annotated[str | None, typer.Option(help="The server; llama.cpp embedded without one.")] = None,
) -> None:
    """A tuning generation against a bare load generator."""
    asyncio.run(_generation(kind, url))


async def _generation(kind: str, url: str | None) -> None:
    backend = await open_backend(kind, log_folder=None, known=None, **({"base_url": url} if url else {}))
    encoded, words, fresh = await prepared(backend)

    async def ours(prompts: Sequence[Ids]) -> None:
        await through_scorer(backend, words, encoded, prompts)

    bare: dict[str, Timed] = {}
    if kind == "vllm":
        assert url is not None
        for concurrency, size in ((8, 16), (4, 32), (4, 64), (2, 128)):
            bare[f"bare, {concurrency} x {size}"] = _bare_vllm(
                url, backend.info.model, encoded, words, concurrency, size
            )
    elif url is None:
        bare["bare, a thread a core"] = _bare_embedded(backend, encoded)
    else:
        for concurrency in (2, 4):
            bare[f"bare, {concurrency} at once"] = _bare_llama(url, encoded, words, concurrency)
    await rates(fresh, ours, bare)
    await backend.aclose()


def _bare_vllm(
    url: str, model: str, encoded: list[EncodedText], words: Ids, concurrency: int, size: int
) -> Timed:
    async def work(prompts: Sequence[Ids]) -> None:
        inputs = [text.with_prompt(p).ids for p in prompts for text in encoded]
        lists = [inputs[i : i + size] for i in range(0, len(inputs), size)]
        fields = {"model": model, "max_tokens": 1, "temperature": 0.0, "logprobs": 1}
        fields |= {"logprob_token_ids": list(words), "return_tokens_as_token_ids": True}
        gate = asyncio.Semaphore(concurrency)
        async with httpx.AsyncClient(timeout=300, headers=JSON) as client:

            async def one(part: list[Ids]) -> None:
                async with gate:
                    body = orjson.dumps({**fields, "prompt": part})
                    answer = await client.post(f"{url}/v1/completions", content=body)
                    answer.raise_for_status()
                    orjson.loads(answer.content)

            await asyncio.gather(*(one(part) for part in lists))

    return work


def _bare_llama(url: str, encoded: list[EncodedText], words: Ids, concurrency: int) -> Timed:
    async def work(prompts: Sequence[Ids]) -> None:
        fields: dict[str, Any] = {
            "n_predict": 1, "cache_prompt": True, "n_probs": len(words), "post_sampling_probs": True,
            "samplers": ["temperature"], "temperature": 1.0, "logit_bias": [[w, 50.0] for w in words],
            "response_fields": ["completion_probabilities"],
        }  # fmt: skip
        gate = asyncio.Semaphore(concurrency)
        async with httpx.AsyncClient(timeout=300, headers=JSON) as client:

            async def one(ids: Ids) -> None:
                async with gate:
                    body = orjson.dumps({**fields, "prompt": ids})
                    (await client.post(f"{url}/completion", content=body)).raise_for_status()

            await asyncio.gather(*(one(t.with_prompt(p).ids) for p in prompts for t in encoded))

    return work


def _bare_embedded(backend: Backend, encoded: list[EncodedText]) -> Timed:
    """llama.cpp's own evaluation on every core, nothing read from the answers."""
    contexts = backend._contexts  # type: ignore[attr-defined]

    def share(context: Any, inputs: list[Prompt]) -> None:
        for _ in context.logprobs([(p.ids, p.shared) for p in inputs]):
            pass

    async def work(prompts: Sequence[Ids]) -> None:
        inputs = [text.with_prompt(p) for p in prompts for text in encoded]
        half = -(-len(inputs) // len(contexts))
        with ThreadPoolExecutor(len(contexts)) as pool:
            parts = [inputs[i : i + half] for i in range(0, len(inputs), half)]
            loop = asyncio.get_running_loop()
            await asyncio.gather(
                *(loop.run_in_executor(pool, share, c, p) for c, p in zip(contexts, parts, strict=True))
            )

    return work


@app.command()
def prefix(
    kind: Annotated[str, typer.Argument(help="vllm or llamacpp.")],
    url: Annotated[str, typer.Option(help="The server; a vLLM with --block-size 32.")],
) -> None:
    """Re-use of shared prompts, by the server's own counters."""
    asyncio.run(_prefix(kind, url))


async def _prefix(kind: str, url: str) -> None:
    backend = await open_backend(kind, base_url=url)
    encoded, words, fresh = await prepared(backend)
    prompts = [p + q + r for p, q, r in zip(*(fresh.prompts(CANDIDATES) for _ in range(3)), strict=True)]
    # vLLM keeps whole blocks, for all requests; llama.cpp each token, for each slot.
    size, first = backend.info.block, 1 if kind == "vllm" else backend.info.batch
    before = await _hits(url) if kind == "vllm" else 0.0
    cached = await through_scorer(backend, words, encoded, prompts)
    hits = await _hits(url) - before if kind == "vllm" else float(cached)
    could = 0
    for prompt in prompts:
        inputs = [text.with_prompt(prompt) for text in encoded]
        could += sum(p.shared // size * size for p in inputs[first:])
    print(f"{CANDIDATES} prompts of {len(prompts[0])} tokens, {TEXTS} texts each, blocks of {size}")
    print(f"tokens that could be re-used: {could:,}; re-used: {hits:,.0f} ({hits / could:.1%})")
    await backend.aclose()


@app.command()
def padding(
    url: Annotated[str, typer.Option(help="A vLLM with prefix caching.")],
    shared: Annotated[int, typer.Option(help="Tokens that a prompt's inputs share.")] = 45,
) -> None:
    """What prompts that fill whole cache blocks bring."""
    asyncio.run(_padding(url, shared))


async def _padding(url: str, shared: int) -> None:
    backend = await open_backend("vllm", base_url=url)
    encoded, words, fresh = await prepared(backend)
    block, lead = backend.info.block, encoded[0].lead
    fill = missing(shared, block)

    async def plain(prompts: Sequence[Ids]) -> None:
        await through_scorer(backend, words, encoded, prompts)

    async def padded(prompts: Sequence[Ids]) -> None:
        fillers = fresh.prompts(len(prompts), fill)
        await plain([f + p for f, p in zip(fillers, prompts, strict=True)])

    own = statistics.mean(len(text) - lead for text in encoded)
    tokens = [evaluated(n, block, TEXTS) + own for n in (shared, shared + fill)]
    names = f"plain, {shared} tokens shared", f"padded to {shared + fill}"
    works = dict(zip(names, (plain, padded), strict=True))
    rate = medians(await in_turns(fresh, works, shared - lead))
    print(f"tokens evaluated for each text: {tokens[0]:.1f} plain, {tokens[1]:.1f} padded")
    print(f"padded / plain: {rate[names[1]] / rate[names[0]]:.3f}")
    await backend.aclose()


async def _hits(url: str) -> float:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    return sum(float(n) for n in re.findall(r"^vllm:prefix_cache_hits_total\{[^}]*\} (\S+)", text, re.M))


@app.command()
def client(
    scored: Annotated[int, typer.Option(help="Scored examples in all.")] = 200_000,
    words: Annotated[int, typer.Option(help="Named words.")] = 2,
) -> None:
    """Processor time for a scored example where the server takes none, and memory."""
    port = multiprocessing.Queue()  # type: ignore[var-annotated]
    server = multiprocessing.Process(target=_stub, args=(port, words), daemon=True)
    server.start()
    try:
        asyncio.run(_client(f"http://127.0.0.1:{port.get()}", scored, words))
    finally:
        server.terminate()


async def _client(url: str, scored: int, words: int) -> None:
    backend = await open_backend("vllm", base_url=url)
    rng = np.random.default_rng(0)
    encoded = [EncodedText((), tuple(int(i) for i in rng.integers(0, 40_000, 40))) for _ in range(TEXTS)]
    fresh = Fresh(range(1000))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "scores.journal", b"secret")
        scorer = Scorer(backend, Budget(), journal=journal)
        scorer.use_words(tuple(range(words)))
        done, step = 0, max(scored // 10, CANDIDATES * TEXTS)
        print(f"{words} named words, {TEXTS} texts a prompt, journal written")
        while done < scored:
            began, target = time.process_time(), done + step
            while done < target:
                prompts = fresh.prompts(CANDIDATES)
                await asyncio.gather(*(scorer.score(prompt, encoded) for prompt in prompts))
                done += CANDIDATES * TEXTS
            used = (time.process_time() - began) / step * 1e6
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{done:>9,} scored: {used:5.1f} microseconds each, {memory:6.0f} MiB", flush=True)
        journal.close()
    await backend.aclose()


def _stub(port: Any, words: int) -> None:
    """A server that says the same to everything, as soon as it has read the question."""
    values = {f"token_id:{i}": -6.0 - i / 1000 for i in range(5000)}
    top = {key: values[key] for key in list(values)[:words]}

    def answer(path: str, body: bytes) -> bytes:
        if path == "/v1/completions":
            asked = orjson.loads(body)
            prompts = asked["prompt"]
            n = len(prompts) if isinstance(prompts[0], list) else 1
            named = asked.get("logprob_token_ids")
            found = top
            if named != list(range(words)):
                few = named or range(min(asked["logprobs"], 200))
                found = {f"token_id:{i}": values[f"token_id:{i}"] for i in few}
            logprobs = {"top_logprobs": [found]}
            choices = [{"index": i, "text": "x", "logprobs": logprobs} for i in range(n)]
            usage = {"prompt_tokens": sum(map(len, prompts)) if n > 1 else len(prompts)}
            return orjson.dumps({"choices": choices, "usage": usage, "system_fingerprint": "stub"})
        known = {"/tokenize": {"tokens": list(range(12))}, "/version": {"version": "0"}}
        models = {"data": [{"id": "stub", "owned_by": "vllm", "max_model_len": 4096, "root": "nowhere"}]}
        return json.dumps(known.get(path, models)).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except asyncio.IncompleteReadError:
                writer.close()
                return
            found = re.search(r"content-length: (\d+)", head, re.I)
            body = await reader.readexactly(int(found[1])) if found else b""
            content = answer(head.split()[1], body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 24)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    app()
