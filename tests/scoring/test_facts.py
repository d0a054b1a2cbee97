"""What a server said is kept, found again without it, and tells nobody a text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbpt_api.errors import BackendError
from fedbpt_api.scoring.backend import Prompt
from fedbpt_api.scoring.facts import Facts, Remembering, known_info
from toy import ToyBackend, make_examples

TEXTS = [example.text for example in make_examples(12, 0)]


async def told(path: Path, secret: bytes = b"secret") -> Remembering:
    backend = Remembering(ToyBackend(), Facts(path, secret), "server")
    for text in TEXTS:
        await backend.tokenize(text)
    await backend.detokenize([300, 301])
    backend._facts.close()
    return backend


async def test_a_replay_has_every_word_without_a_server(tmp_path: Path) -> None:
    live = await told(tmp_path / "facts")
    facts = Facts(tmp_path / "facts", b"secret", writable=False)
    replayed = Remembering(None, facts, "server")
    assert replayed.info == live.info == known_info(facts, "server")
    toy = ToyBackend()
    for text in TEXTS:
        assert await replayed.tokenize(text) == await toy.tokenize(text)
    assert await replayed.detokenize([300, 301]) == await toy.detokenize([300, 301])
    with pytest.raises(BackendError, match="does not hold"):
        await replayed.tokenize("never asked")
    with pytest.raises(BackendError, match="does not hold"):
        await replayed.score([Prompt((1,))], (2, 3))


async def test_no_text_and_no_ids_of_one_can_be_found_in_the_file(tmp_path: Path) -> None:
    await told(tmp_path / "facts")
    data = (tmp_path / "facts").read_bytes()
    toy = ToyBackend()
    for text in TEXTS:
        ids = await toy.tokenize(text)
        assert text.encode() not in data
        assert ",".join(map(str, ids[:4])).encode() not in data
    other = Remembering(ToyBackend(seed=1), Facts(tmp_path / "facts", b"another"), "server")
    known = len(other._facts._known)
    await other.tokenize(TEXTS[0])
    assert len(other._facts._known) == known + 1  # with another secret it is not found
    other._facts.close()


@given(ids=st.lists(st.integers(0, 2**31 - 1), max_size=50), text=st.text(max_size=20))
def test_masking_twice_gives_the_ids(ids: list[int], text: str) -> None:
    backend = Remembering(ToyBackend(), Facts(None, b"s"), "server")
    masked = backend._masked(ids, text)
    assert list(backend._masked(masked, text)) == ids
    assert not ids or masked != tuple(ids) or len(ids) < 2


async def test_another_server_is_named(tmp_path: Path) -> None:
    await told(tmp_path / "facts")
    changed = Remembering(ToyBackend(seed=4, context=99), Facts(tmp_path / "facts", b"secret"), "server")
    assert changed.changes() == [
        "server: its fingerprint was toy-0, it is toy-4",
        "server: its context was 512, it is 99",
    ]
    changed._facts.close()
