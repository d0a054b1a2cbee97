"""The leash, with real processes: nothing outlives the parent, however it ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

LEASH = (sys.executable, "-m", "fedbpt_backends.leash")
DEADLINE = 60.0  # seconds after which a test gives up; nothing here waits for it

# Says that it runs, and has a child of its own; both hold the output until they end.
FAMILY = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
os.write(1, b"up\\n")
child.wait()
"""
PARENT = """
import subprocess, sys
subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()
"""
COMMAND = (*LEASH, sys.executable, "-c", FAMILY)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose end is seen when the last process that holds its other end has ended."""
    read, write = os.pipe()
    yield read, write
    for number in (read, write):
        with suppress(OSError):
            os.close(number)


def wait_for(read: int, what: bytes) -> None:
    """Read the pipe until it says `what`, or until its end where that is nothing."""
    ready, _, _ = select.select([read], [], [], DEADLINE)
    assert ready, "nothing came: the processes are still there, or never began"
    assert os.read(read, 100) == what


def test_when_the_parent_is_killed_the_command_and_its_own_children_end(pipe: tuple[int, int]) -> None:
    read, write = pipe
    with subprocess.Popen([sys.executable, "-c", PARENT, *COMMAND], stdout=write) as parent:
        os.close(write)
        wait_for(read, b"up\n")
        parent.send_signal(signal.SIGKILL)
    wait_for(read, b"")


def test_closing_its_input_ends_them_too_and_tells_how(pipe: tuple[int, int]) -> None:
    read, write = pipe
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=write) as leash:
        os.close(write)
        wait_for(read, b"up\n")
        assert leash.stdin is not None
        leash.stdin.close()
        assert leash.wait(DEADLINE) == 128 + signal.SIGTERM
    wait_for(read, b"")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_terminal_s_signals_are_left_to_the_parent(pipe: tuple[int, int]) -> None:
    read, write = pipe
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=write) as leash:
        os.close(write)
        wait_for(read, b"up\n")
        status = Path(f"/proc/{leash.pid}/status")
        while not all(ignored(status) >> (number - 1) & 1 for number in signals):
            assert leash.poll() is None  # it switches them off right after it has started the command
        for number in signals:
            leash.send_signal(number)
        assert leash.stdin is not None
        leash.stdin.close()
        assert leash.wait(DEADLINE) == 128 + signal.SIGTERM  # of the command: the leash lived to tell
    wait_for(read, b"")


def ignored(status: Path) -> int:
    """The signals that a process ignores, as bits."""
    lines = status.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_ends_by_itself_passes_its_code_on_and_leaves_nothing_behind(
    pipe: tuple[int, int], code: int
) -> None:
    read, write = pipe
    command = [*LEASH, sys.executable, "-c", FAMILY.replace("child.wait()", f"sys.exit({code})")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE, text=True
    ) as leash:
        os.close(write)
        wait_for(read, b"up\n")
        assert leash.wait(DEADLINE) == code
        assert leash.stderr is not None
        assert "Fatal" not in leash.stderr.read()
    wait_for(read, b"")


def test_the_command_has_no_input_of_its_own_and_its_output_goes_where_the_leash_s_goes() -> None:
    command = [*LEASH, sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as leash:
        assert leash.stdout is not None
        assert leash.stdout.read() == "''\n"
        assert leash.wait(DEADLINE) == 0
