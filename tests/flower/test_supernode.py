"""A SuperNode beside a party: started again, ended with it, and found by the process after one that died."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedbpt_api.errors import FedbptError
from fedbpt_api.flower.supernode import keep

STAYS = [sys.executable, "-c", "import signal; signal.pause()"]
ENDS = [sys.executable, "-c", "raise SystemExit(7)"]


def started(lines: list[str]) -> list[int]:
    """Processes that were started."""
    return [int(line.split("process ")[1].rstrip(")\n")) for line in lines if "has started" in line]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Lines(list[str]):
    """What was told, and an event for each start."""

    def __init__(self) -> None:
        self.news = asyncio.Event()

    def tell(self, line: str) -> None:
        self.append(line)
        if "has started" in line:
            self.news.set()


async def test_it_ends_with_its_party(tmp_path: Path) -> None:
    ended, lines = asyncio.Event(), Lines()
    keeping = asyncio.create_task(keep(STAYS, tmp_path / "pid", ended, lines.tell))
    await lines.news.wait()
    (pid,) = started(lines)
    assert lives(pid) and int((tmp_path / "pid").read_text()) == pid
    ended.set()
    await keeping
    assert not lives(pid)


async def test_it_is_started_again_when_it_ends(tmp_path: Path) -> None:
    ended, lines = asyncio.Event(), Lines()
    keeping = asyncio.create_task(keep(STAYS, tmp_path / "pid", ended, lines.tell, pause=0))
    await lines.news.wait()
    lines.news.clear()
    os.kill(started(lines)[0], signal.SIGKILL)
    await lines.news.wait()
    first, second = started(lines)
    assert "has ended with status -9; it is started again" in lines[1]
    assert not lives(first) and lives(second)
    ended.set()
    await keeping


async def test_one_that_is_stuck_is_ended_and_started_again(tmp_path: Path) -> None:
    """As flwr 1.41 is when its connection is closed in the middle of a handshake: it says so, and stays."""
    says = "print('ERROR : SSL/TLS handshake error detected.', flush=True)"
    code = f"import pathlib, signal; f = pathlib.Path({str(tmp_path / 'once')!r})"
    code += f"\nif not f.exists(): f.touch(); {says}\nsignal.pause()"
    ended, lines = asyncio.Event(), Lines()
    keeping = asyncio.create_task(
        keep([sys.executable, "-c", code], tmp_path / "pid", ended, lines.tell, pause=0)
    )
    await lines.news.wait()
    lines.news.clear()
    await lines.news.wait()
    first, second = started(lines)
    assert not lives(first) and lives(second)
    ended.set()
    await keeping


async def test_one_that_ends_again_and_again_is_an_error(tmp_path: Path) -> None:
    lines = Lines()
    with pytest.raises(FedbptError, match="the SuperNode has ended with status 7"):
        await keep(ENDS, tmp_path / "pid", asyncio.Event(), lines.tell, pause=0)
    assert len(started(lines)) == 10


async def test_what_a_killed_party_left_is_ended_by_the_next(tmp_path: Path) -> None:
    code = (
        "import asyncio; from pathlib import Path; from fedbpt_api.flower.supernode import keep;"
        f"asyncio.run(keep({STAYS!r}, Path({str(tmp_path / 'pid')!r}), asyncio.Event(),"
        " lambda line: print(line, flush=True)))"
    )
    party = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert party.stdout is not None
    (orphan,) = started([await asyncio.to_thread(party.stdout.readline)])
    party.kill()
    party.wait()
    assert lives(orphan)  # Flower would not let another in beside it
    ended, lines = asyncio.Event(), Lines()
    keeping = asyncio.create_task(keep(STAYS, tmp_path / "pid", ended, lines.tell))
    try:
        await lines.news.wait()
        assert lines[0] == f"a SuperNode that was left over is ended (process {orphan})"
        ended.set()
        await keeping
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
        party.stdout.close()


async def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FedbptError, match="cannot be started"):
        await keep(["/no/such/program"], tmp_path / "pid", asyncio.Event(), print)
