"""Run a command for as long as the parent lives: ``python -m fedbpt_backends.leash COMMAND...``.

The parent holds the other end of standard input. When that closes, because it asked for the end or died
in any way, the command's whole process group is ended: politely first, then not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

_GRACE = 15.0  # seconds between asking and killing


def main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent to decide on

    def guard() -> None:
        while os.read(0, 4096):  # not through sys.stdin: its lock would abort the interpreter's exit
            pass
        _end(child, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE)
        _end(child, signal.SIGKILL)

    threading.Thread(target=guard, daemon=True).start()
    code = child.wait()
    _end(child, signal.SIGKILL)  # what the command left behind
    return code if code >= 0 else 128 - code


def _end(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(main())
