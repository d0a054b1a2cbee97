"""The user's cache folder: model files lie in it, and the shared store of answers."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """``FEDBPT_CACHE``, else the platform's cache folder for this user. Nothing is made."""
    chosen = os.environ.get("FEDBPT_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("fedbpt-api", False))
