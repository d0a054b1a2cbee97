"""Runs that are killed again and again must end as if they had not been, and pay for nothing twice.

    python benchmarks/kills.py stub --kills 200
    python benchmarks/kills.py llamacpp --kills 20
    python benchmarks/kills.py restarts --kills 10
    python benchmarks/kills.py disk --kills 10

`stub`: ``fedbpt tune`` in a process of its own against a server that answers at once, killed with SIGKILL
when the server has a certain request in its hands, or inside the writing of a journal, with a part of the
record on disk. `llamacpp`: against a real llama.cpp server, after a random time. `restarts`: the server is
killed instead, and started again. `disk`: on a small disk (a tmpfs, which needs root) that is full at a random
moment. After each the run goes on with ``fedbpt resume`` until it is killed again, or done; then prompt and
rounds are compared with those of an undisturbed run, and the server's count of answered requests with its.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from backends.fake_vllm import FakeVllm, Fault
from toy import make_task
from toy_runs import without_times, write_config

app = typer.Typer(add_completion=False)
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
        kills: How many there were, and of them inside the writing of a journal.
        runs: Runs that came to their end, each the same as the undisturbed one.
        paid: Requests answered for these runs beyond an undisturbed run's.
        under_way: Requests that the server had in its hands, or had just answered, at the kills.
        most: The most of them at one kill.
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
        print(
            f"{self.kills} kills ({self.inside} inside the writing of a journal), {self.runs} runs to the end"
        )
        print(
            f"requests answered beyond undisturbed runs': {self.paid}; under way at the kills: {self.under_way}"
        )
        for problem in self.problems:
            print("wrong:", problem)
        if self.problems:
            raise typer.Exit(1)
        print("prompts, rounds and results: the same each time")


class Counting(FakeVllm):
    """Counts what it has answered, and calls when a certain completions request arrives."""

    answered = 0
    at = 0

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self.script = self._script

    def _script(self, number: int, repeat: int) -> Fault:
        if number == self.at:
            self.reached.set()
        return ""

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: object, fault: Fault) -> None:
        await super()._answer(writer, path, body, fault)
        self.answered += path == "/v1/completions"


@app.command()
def stub(
    kills: Annotated[int, typer.Option(help="Kills in all; a third of them inside a write.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """SIGKILL against a server that answers at once."""
    asyncio.run(kill_on_stub(kills, seed)).report()


async def kill_on_stub(kills: int, seed: int) -> Found:
    """As the command says."""
    draw, found, server = random.Random(seed), Found(), Counting()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        async with server.serve() as url:
            changes = {"backend.kind": "vllm", "backend.base_url": url, "budget.scored": 2500}
            config = write_config(folder, make_task(), {**changes, "search.rounds": 3})
            whole = folder / "whole"
            await _ended(await _child("tune", config, "--run-dir", whole), found)
            requests = server.answered
            while found.kills < kills and not found.problems:
                run = folder / f"run{found.runs}"
                server.answered = 0
                command: tuple[object, ...] = ("tune", config, "--run-dir", run)
                under_way = 0
                while True:
                    before = server.answered
                    inside = draw.random() < 0.35
                    left = max(requests - before, 2)
                    server.at = 0 if inside else server.completions + draw.randint(1, left + 2)
                    server.reached.clear()
                    dying = {"DIE_AT": str(draw.randint(4, left + 4)), "DIE_SHARE": str(draw.randint(0, 99))}
                    child = await _child(*command, more=dying if inside else {})
                    killed = await _killed(child, server.reached)
                    if not killed:
                        await _ended(child, found)
                        break
                    found.kills += 1
                    found.inside += inside
                    under_way += LIMIT
                    if any(run.glob("scores-*.journal")):
                        command = ("resume", run)
                found.runs += 1
                found.under_way += under_way
                found.paid += server.answered - requests
                if server.answered - requests > under_way:
                    found.problems.append(
                        f"{server.answered} requests, {requests} undisturbed, {under_way} under way"
                    )
                found.problems += _differences(whole, run)
                if found.runs % 10 == 0:
                    print(f"  {found.kills} kills, {found.runs} runs", flush=True)
    return found


async def _child(*words: object, more: dict[str, str] | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, *map(str, words),
        env=os.environ | (more or {}), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def _killed(child: asyncio.subprocess.Process, reached: asyncio.Event) -> bool:
    """Kill a child when the moment comes; whether it died of SIGKILL, its own or ours."""
    ending, moment = asyncio.create_task(child.wait()), asyncio.create_task(reached.wait())
    await asyncio.wait({ending, moment}, return_when=asyncio.FIRST_COMPLETED)
    if not ending.done():
        child.kill()
    moment.cancel()
    return await ending == -9


async def _ended(child: asyncio.subprocess.Process, found: Found) -> None:
    _, errors = await child.communicate()
    if child.returncode:
        found.problems.append(f"exit code {child.returncode}: {errors.decode()[-500:]}")


def _differences(whole: Path, run: Path) -> list[str]:
    return [
        f"{run.name}/{name} is not the undisturbed run's"
        for name in COMPARED
        if _same(without_times(whole / name), whole) != _same(without_times(run / name), run)
    ]


def _same(content: object, folder: Path) -> object:
    """A file's content without the run's own name and what was sent again."""
    if isinstance(content, dict) and "spent" in content:
        spent = {c: {k: v for k, v in counts.items() if k not in ("requests", "duplicates", "cached_tokens")}
                 for c, counts in content["spent"].items()}  # fmt: skip
        return {**content, "spent": spent, "folder": ""}
    return content


if __name__ == "__main__":
    app()
