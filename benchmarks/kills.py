"""Runs that are killed again and again must end as if they had not been, and pay for nothing twice.

    python benchmarks/kills.py stub --kills 200
    python benchmarks/kills.py llamacpp --kills 20
    python benchmarks/kills.py restarts --kills 10
    python benchmarks/kills.py disk --kills 10

`stub`: ``fedbpt tune`` in a process of its own against a server that answers at once, killed with SIGKILL
when the server has a certain request in its hands, or inside the writing of a journal, with a part of the
record on disk. `llamacpp`: against a real llama.cpp server, after a random time. `restarts`: that server
is killed instead, and started again. `disk`: the disk (a tmpfs, which needs root) is full at a random
moment. After each the run goes on with ``fedbpt resume`` until it is struck again, or done; then prompt,
rounds and result are compared with those of an undisturbed run, and the server's count of answered
pairs (prompt, text) with its count for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import llama_server
from backends.fake_vllm import FakeVllm, Fault
from toy import make_task
from toy_runs import without_times, write_config

app = typer.Typer(add_completion=False)
SHORT = {"budget.scored": 2500, "search.rounds": 3}
COMPARED = ("rounds.jsonl", "prompts.jsonl", "prompt.json", "result.json")
LIMIT = 8  # requests that a client has under way at most (backend.concurrency)
CHILD = """
import os, signal, sys
from fedbpt_api.cli import app
from fedbpt_api.scoring import record_file
at, write, count = int(os.environ.get("DIE_AT", "0")), record_file.RecordFile._write, 0
def dying(self, data, *, sync):
    global count
    count += sync
    if count == at and sync:
        self._file.seek(self._whole)
        self._file.write(data[: len(data) * int(os.environ["DIE_SHARE"]) // 100])
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, data, sync=sync)
record_file.RecordFile._write = dying
app(sys.argv[1:])
"""


@dataclass
class Found:
    """What the kills came to.

    Attributes:
        kills: How often something was killed, or full.
        inside: Kills inside the writing of a journal.
        runs: Runs that came to their end.
        paid: Pairs answered for these runs beyond undisturbed ones'.
        under_way: The most that may have been lost: pairs under way at the kills.
        problems: What was not as it should be.
    """

    kills: int = 0
    inside: int = 0
    runs: int = 0
    paid: int = 0
    under_way: int = 0
    problems: list[str] = field(default_factory=list)

    def report(self) -> None:
        """Print it, and end with exit code 1 where anything was wrong."""
        print(f"{self.kills} strikes ({self.inside} inside a journal's write), {self.runs} runs to the end")
        most = f"under way when struck, at most: {self.under_way}"
        print(f"pairs answered beyond undisturbed runs: {self.paid}; {most}")
        for problem in self.problems:
            print("wrong:", problem)
        if self.problems:
            raise typer.Exit(1)
        print("prompts, rounds and results: the same each time")


@dataclass(frozen=True)
class Strike:
    """One attempt on a run's life.

    Attributes:
        environment: For the child.
        wait: Strikes while the child runs; its exit code.
        lost: Pairs that may be under way then.
        inside: Whether it is inside the writing of a journal.
        expected: Exit codes of a child that was struck.
        survived: Whether a child may get over it, and end as if nothing had been.
    """

    environment: Mapping[str, str]
    wait: Callable[[asyncio.subprocess.Process], Awaitable[int]]
    lost: int
    inside: bool = False
    expected: frozenset[int] = frozenset({-signal.SIGKILL})
    survived: bool = False


async def campaign(
    kills: int,
    folder: Path,
    changes: Mapping[str, object],
    answered: Callable[[], Awaitable[int]],
    strike: Callable[[int, float], Strike],
) -> Found:
    """Runs struck again and again until there were enough strikes.

    Args:
        kills: Strikes in all.
        folder: Where runs are kept.
        changes: Settings beside the toy task's.
        answered: The server's own count of answered pairs.
        strike: From the pairs and the seconds that an undisturbed run takes.
    """
    found = Found()
    config = write_config(folder, make_task(), changes)
    whole, began, before = folder / "whole", time.monotonic(), await answered()
    _judge(*await _communicate(await _child({}, "tune", config, "--run-dir", whole)), frozenset({0}), found)
    seconds, pairs = time.monotonic() - began, await answered() - before
    while found.kills < kills and not found.problems:
        run, before, lost = folder / f"run{found.runs}", await answered(), 0
        command: tuple[object, ...] = ("tune", config, "--run-dir", run)
        while True:
            blow = strike(pairs, seconds)
            child = await _child(blow.environment, *command)
            code = await blow.wait(child)
            errors = (await child.communicate())[1].decode()
            _judge(code, errors, blow.expected | {0}, found)
            if code in blow.expected or blow.survived:
                found.kills += 1
                found.inside += blow.inside
                lost += blow.lost
            if code not in blow.expected or found.problems:
                break
            if any(run.glob("scores-*.journal")):
                command = ("resume", run)
        more = await answered() - before - pairs
        found.runs += 1
        found.paid += more
        found.under_way += lost
        if not 0 <= more <= lost:
            found.problems.append(
                f"{more} pairs more than undisturbed, {lost} at most were under way when struck"
            )
        if not found.problems:
            found.problems += _differences(whole, run)
        print(f"  {found.kills} strikes, {found.runs} runs", flush=True)
    return found


# Who is struck ----------------------------------------------------------------------------------


class Counting(FakeVllm):
    """Counts the pairs it has answered, and tells when a certain completions request arrives.

    Pairs, and not requests: which of them go together as one list depends on who asks at the same time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answered, self.largest, self.at, self.reached = 0, 0, 0, asyncio.Event()
        self.script = self._script

    def _script(self, number: int, repeat: int) -> Fault:
        if number == self.at:
            self.reached.set()
        return ""

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: Any, fault: Fault) -> None:
        await super()._answer(writer, path, body, fault)
        if path == "/v1/completions":
            pairs = len(await self._ids(body["prompt"]))
            self.answered, self.largest = self.answered + pairs, max(self.largest, pairs)


async def kill_on_stub(kills: int, seed: int) -> Found:
    """SIGKILL against a server that answers at once."""
    draw, server = random.Random(seed), Counting()

    def strike(pairs: int, seconds: float) -> Strike:
        inside, lists = draw.random() < 0.35, pairs // 40  # of these some are left at any moment
        server.reached.clear()
        if inside:
            server.at = 0
            moment = {"DIE_AT": str(draw.randint(4, lists)), "DIE_SHARE": str(draw.randint(0, 99))}
            return Strike(moment, lambda child: child.wait(), LIMIT * server.largest, inside=True)
        server.at = server.completions + draw.randint(1, lists)

        async def wait(child: asyncio.subprocess.Process) -> int:
            ending, moment = asyncio.create_task(child.wait()), asyncio.create_task(server.reached.wait())
            await asyncio.wait({ending, moment}, return_when=asyncio.FIRST_COMPLETED)
            moment.cancel()
            return await _kill(child)

        return Strike({}, wait, LIMIT * server.largest)

    async def answered() -> int:
        return server.answered

    with tempfile.TemporaryDirectory() as place:
        async with server.serve() as url:
            changes = {"backend.kind": "vllm", "backend.base_url": url, **SHORT}
            return await campaign(kills, Path(place), changes, answered, strike)


async def kill_on_llama(kills: int, seed: int) -> Found:
    """SIGKILL against a real llama.cpp server, at a random time."""
    draw = random.Random(seed)

    def strike(pairs: int, seconds: float) -> Strike:
        return Strike({}, lambda child: _kill_after(child, draw.uniform(0.5, seconds)), 1)

    with tempfile.TemporaryDirectory() as place, llama_server.serve(metrics=True) as url:
        return await campaign(kills, Path(place), _llama(url), lambda: _predicted(url), strike)


async def kill_the_server(kills: int, seed: int) -> Found:
    """The llama.cpp server is killed and started again; the run gets over it, or ends and goes on."""
    draw, port = random.Random(seed), llama_server.free_port()
    url, total = f"http://127.0.0.1:{port}", 0

    with tempfile.TemporaryDirectory() as place:
        server = llama_server.start(metrics=True, port=port)
        llama_server.address(server)

        async def answered() -> int:
            return total + await _predicted(url)

        async def wait(child: asyncio.subprocess.Process) -> int:
            nonlocal server, total
            try:
                return await asyncio.wait_for(child.wait(), draw.uniform(0.5, 6))
            except TimeoutError:
                total += await _predicted(url)
                server.kill()
                server.communicate()
                if draw.random() < 0.5:
                    await child.wait()  # it gives up, or was done
                server = llama_server.start(metrics=True, port=port)
                llama_server.address(server)
                return await child.wait()

        try:
            strike = Strike({}, wait, 2, expected=frozenset({1}), survived=True)
            return await campaign(kills, Path(place), _llama(url), answered, lambda pairs, seconds: strike)
        finally:
            server.kill()
            server.communicate()


async def fill_the_disk(kills: int, seed: int) -> Found:
    """A tmpfs that is full after some more kilobytes."""
    draw, server = random.Random(seed), Counting()

    async def answered() -> int:
        return server.answered

    async with _disk() as place:

        def strike(pairs: int, seconds: float) -> Strike:
            room = _used(place) + draw.randint(0, 6_000_000)
            subprocess.run(["mount", "-o", f"remount,size={room}", place], check=True)
            return Strike({}, lambda child: child.wait(), 0, expected=frozenset({1}))

        async with server.serve() as url:
            changes = {"backend.kind": "vllm", "backend.base_url": url, **SHORT}
            return await campaign(kills, place, changes, answered, strike)


@asynccontextmanager
async def _disk() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def _used(place: Path) -> int:
    disk = os.statvfs(place)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def _llama(url: str) -> dict[str, object]:
    """Scores that do not depend on what was asked before."""
    backend = {"backend.kind": "llamacpp", "backend.base_url": url, "backend.exact": True}
    return {**backend, "budget.scored": 220, "search.rounds": 1, "search.form": "words"}


async def _predicted(url: str) -> int:
    """Tokens that a llama.cpp server has generated: one a request."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    found = re.search(r"^llamacpp:tokens_predicted_total (\S+)", text, re.M)
    assert found is not None, text
    return int(float(found[1]))


# Children ---------------------------------------------------------------------------------------


async def _child(environment: Mapping[str, str], *words: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, *map(str, words),
        env=os.environ | dict(environment), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def _communicate(child: asyncio.subprocess.Process) -> tuple[int, str]:
    errors = (await child.communicate())[1]
    return await child.wait(), errors.decode()


async def _kill(child: asyncio.subprocess.Process) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)  # child.kill() may reap one that ends just now
    return await child.wait()


async def _kill_after(child: asyncio.subprocess.Process, seconds: float) -> int:
    try:
        return await asyncio.wait_for(child.wait(), seconds)
    except TimeoutError:
        return await _kill(child)


def _judge(code: int, errors: str, expected: frozenset[int], found: Found) -> None:
    if code not in expected or "Traceback" in errors:
        found.problems.append(f"exit code {code}: {errors[-1500:]}")


def _differences(whole: Path, run: Path) -> list[str]:
    return [
        f"{run.name}/{name} is not the undisturbed run's"
        for name in COMPARED
        if _same(without_times(whole / name)) != _same(without_times(run / name))
    ]


def _same(content: object) -> object:
    """A file's content without the run's own name, and how the answers were put into requests."""
    if isinstance(content, dict) and "spent" in content:
        spent = {
            client: {key: n for key, n in counts.items() if key not in ("requests", "cached_tokens")}
            for client, counts in content["spent"].items()
        }
        return {**content, "spent": spent, "folder": ""}
    return content


Kills = Annotated[int, typer.Option(help="How many strikes in all.")]
Seed = Annotated[int, typer.Option(help="Of the moments.")]


@app.command()
def stub(kills: Kills = 200, seed: Seed = 0) -> None:
    """SIGKILL the run, against a server that answers at once; a third of the times inside a write."""
    asyncio.run(kill_on_stub(kills, seed)).report()


@app.command()
def llamacpp(kills: Kills = 20, seed: Seed = 0) -> None:
    """SIGKILL the run, against a real llama.cpp server."""
    asyncio.run(kill_on_llama(kills, seed)).report()


@app.command()
def restarts(kills: Kills = 10, seed: Seed = 0) -> None:
    """SIGKILL the llama.cpp server."""
    asyncio.run(kill_the_server(kills, seed)).report()


@app.command()
def disk(kills: Kills = 10, seed: Seed = 0) -> None:
    """Let the disk be full."""
    asyncio.run(fill_the_disk(kills, seed)).report()


if __name__ == "__main__":
    app()
