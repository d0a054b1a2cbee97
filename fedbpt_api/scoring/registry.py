"""Finding backends: every installed entry point of the group ``fedbpt_api.backends`` is one.

An entry point names an async function ``open_backend(**options) -> Backend``; the options are the
keys of the config's ``[backend]`` table other than ``kind``.
"""

from __future__ import annotations

import difflib
import inspect
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_api.scoring.backend import Backend, BackendInfo

GROUP = "fedbpt_api.backends"


def available() -> dict[str, str]:
    """Names of the installed backends, and where each comes from."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


async def open_backend(
    kind: str, *, log_folder: Path | None = None, known: BackendInfo | None = None, **options: object
) -> Backend:
    """Open the backend called `kind`.

    Args:
        kind: Its name.
        log_folder: Where a server that it starts may write its log; only some take it.
        known: What it was when the run began, so that it need not be paid for finding out again; only some
            take it.
        options: The backend's own.

    Raises:
        ConfigError: No backend has that name, or it does not know one of the options.
        BackendError: It is there but cannot be loaded or started.
    """
    points: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in points:
        near = difflib.get_close_matches(kind, points, 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"backend.kind: there is no backend {kind!r} (installed: {', '.join(sorted(points)) or 'none'})",
            f"{guess}install the package that brings it, or name an installed one",
        )
    try:
        factory = points[kind].load()
    except (ImportError, AttributeError) as error:
        raise BackendError(f"backend {kind!r} cannot be loaded: {error}", "install its extra") from error
    taken = inspect.signature(factory).parameters
    for name, value in (("log_folder", log_folder), ("known", known)):
        if value is not None and name in taken:
            options = {name: value} | options
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
        problems = []
        for key in sorted(set(options) - set(taken)):
            near = difflib.get_close_matches(key, taken, 1)
            problems.append(
                f"backend.{key}: backend {kind!r} has no such option"
                + (f", did you mean {near[0]!r}?" if near else f" (it has: {', '.join(taken)})")
            )
        if problems:
            raise ConfigError(problems, "correct the [backend] table")
    backend: Backend = await factory(**options)
    return backend
