"""A party's secret: made once, its own, and what makes its searches its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedbpt_api.errors import RunFolderError
from fedbpt_api.federation.draws import own_draws
from fedbpt_api.federation.local_search import Reference
from fedbpt_api.federation.messages import Broadcast
from fedbpt_api.verbalizer import Verbalizer
from toy_clients import GROUPS, PLAN, WORDS, WordSpace, make_client, start_ids


def test_a_secret_is_made_once_and_is_for_its_user_alone(tmp_path: Path) -> None:
    place = tmp_path / "draws.secret"
    (tmp_path / "draws.secret.new").write_bytes(b"what a dying process has left")
    first = own_draws(place)
    assert own_draws(place) == first != own_draws(tmp_path / "other")
    assert len(first) == 8 and all(0 <= part < 1 << 32 for part in first)
    assert place.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".new"] == []


def test_a_secret_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "draws.secret").write_bytes(b"short")
    with pytest.raises(RunFolderError, match="5 bytes"):
        own_draws(tmp_path / "draws.secret")
    with pytest.raises(RunFolderError, match="nowhere"):
        own_draws(tmp_path / "nowhere" / "draws.secret")


async def test_searches_are_drawn_from_what_only_their_party_knows() -> None:
    """With the same seed, round and number, and the same losses."""
    reference = Reference(await start_ids(), Verbalizer.from_words(WORDS, GROUPS))
    means = []
    for draws in ((), (), (1, 2), (1, 3)):
        client = await make_client()
        client.draws = draws
        found = await client.moved().search(Broadcast(0, np.zeros(2), 1.0), WordSpace(), PLAN, reference)
        means.append(tuple(found.update.mean))
    assert means[0] == means[1] and len(set(means)) == 3
