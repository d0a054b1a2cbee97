"""The command line: parse, call the library, print. No logic of its own.

Exit codes: 0 done (the planned budget spent included), 1 failed, 2 wrong usage or configuration,
3 stopped early by a signal, with everything paid for kept.
"""

from fedbpt_api.cli.commands import app

__all__ = ["app"]
