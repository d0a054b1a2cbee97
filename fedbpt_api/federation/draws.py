"""What a party's searches are drawn from beside what the server knows, who could else draw them too.

CMA-ES's draws follow from the run's seed, the round and the party's number. Step sizes are told in the open,
and with the draws they tell the mean that was found, which is to be hidden. So a party whose mean is not told
mixes a secret in, made once for a run: started again, it searches as it did.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from fedbpt_api.errors import RunFolderError

_SIZE: Final = 32


def own_draws(place: Path) -> tuple[int, ...]:
    """A party's secret as part of a generator's key; drawn where there is none yet.

    Args:
        place: The file that keeps it; its user alone can read it.

    Raises:
        RunFolderError: It can be neither read nor written, or is something else.
    """
    try:
        if not place.exists():
            new = place.with_name(place.name + ".new")
            new.unlink(missing_ok=True)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(_SIZE))
                file.flush()
                os.fsync(file.fileno())
            new.replace(place)
        secret = place.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{place}: {error.strerror}", "is the folder this party's own?") from error
    if len(secret) != _SIZE:
        raise RunFolderError(f"{place} is damaged: {len(secret)} bytes", "restore it from a copy")
    return tuple(int.from_bytes(secret[at : at + 4], "little") for at in range(0, _SIZE, 4))
