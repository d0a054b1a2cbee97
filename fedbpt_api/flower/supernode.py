"""A SuperNode beside a party's process: started again when it ends, and ended with it.

After a node has died Flower keeps its place for a minute, and lets nobody in with its key meanwhile; so a
SuperNode that ends at once may do better a little later. One that outlives a party's process that was killed
keeps its place for good; so it is ended by the next one. It is known by a lock on a file that it inherits.
And one whose connection is closed in the middle of TLS's handshake says so, and then neither ends nor tries
again (flwr 1.41); so it is ended too.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from fedbpt_api.errors import FedbptError
from fedbpt_api.flower.switches import quiet

PAUSE: Final = 10.0
"""Seconds until a SuperNode that has ended is started again."""

_STEADY = 60.0  # seconds after which one has been let in
_STARTS = 10  # in a row that may come to nothing
_GRACE = 5.0  # seconds for one to end when asked to
_STUCK = b"SSL/TLS handshake error detected"  # what it says when it has given up without ending


async def keep(
    command: Sequence[str],
    file: Path,
    ended: asyncio.Event,
    tell: Callable[[str], None],
    pause: float = PAUSE,
    *,
    what: str = "SuperNode",
    environment: Mapping[str, str] | None = None,
) -> None:
    """Keep a SuperNode, or a SuperLink, running until `ended`.

    Args:
        command: What starts it.
        file: Where it can be found by a later process.
        ended: Set when it is to end.
        tell: Called with lines for people.
        pause: Seconds until it is started again.
        what: What it is.
        environment: Its environment, if that is not this process's.

    Raises:
        FedbptError: It cannot be started, or ended ten times in a row within a minute.
    """
    clock, failures = asyncio.get_running_loop().time, 0
    with _place(file, tell, what) as place:
        while True:
            begun = clock()
            status = await _once(command, place, ended, tell, what, quiet(environment))
            if status is None:
                return
            failures = 1 if clock() - begun > _STEADY else failures + 1
            if failures == _STARTS:
                raise FedbptError(f"the {what} has ended with status {status}", "see what it printed")
            tell(f"its {what} has ended with status {status}; it is started again in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), pause)
            if ended.is_set():
                return


async def _once(
    command: Sequence[str],
    place: int,
    ended: asyncio.Event,
    tell: Callable[[str], None],
    what: str,
    environment: Mapping[str, str],
) -> int | None:
    """Run it; its status when it has ended by itself, or had to be ended."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            start_new_session=True,
            pass_fds=(place,),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise FedbptError(
            f"{command[0]} cannot be started: {error}", 'pip install "fedbpt-api[flower]"'
        ) from error
    os.pwrite(place, f"{process.pid:<20}".encode(), 0)
    tell(f"its {what} has started (process {process.pid})")
    assert process.stdout is not None
    listen, stop = asyncio.ensure_future(_heard(process.stdout)), asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait({listen, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        await _end(process)
        listen.cancel()
    return None if ended.is_set() else process.returncode


async def _heard(output: asyncio.StreamReader) -> None:
    """Pass on what it prints, until it ends or says that it is stuck."""
    while line := await output.readline():
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        if _STUCK in line:
            return


async def _end(process: asyncio.subprocess.Process) -> None:
    """End it and what it has started."""
    watch = asyncio.ensure_future(process.wait())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(watch), _GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it has started may outlive it
    await watch


@contextlib.contextmanager
def _place(file: Path, tell: Callable[[str], None], what: str) -> Iterator[int]:
    """The file, locked, to hand on to the process; one that an earlier process left is ended first."""
    place = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            left = int(os.pread(place, 20, 0))
            tell(f"a {what} that was left over is ended (process {left})")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(left, signal.SIGKILL)
            fcntl.flock(place, fcntl.LOCK_EX)
        yield place
    finally:
        os.close(place)
