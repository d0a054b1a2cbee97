"""Model folders: texts and embeddings come back, in every type and style, and damage is a clear error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.fake_vllm import piece, write_safetensors, write_weights
from fedbpt_api.errors import BackendError
from fedbpt_backends.checkpoint import fingerprint, read_table
from toy import TEXTS, ToyBackend

ROWS = np.array([[0.5, -1.25], [3.0, 0.0], [-0.0078125, 65280.0], [1e-3, -2.0]], dtype=np.float32)
BYTE_LEVEL = {piece(text): i for i, text in enumerate((" good", "né", "\n", "x"))}


def write_folder(folder: Path, tokenizer: object, kind: str = "F32", name: str = "wte.weight") -> Path:
    """The four rows above and a tokeniser."""
    bits = ROWS.view("<u4")
    raw = {
        "F32": ROWS.astype("<f4"),
        "F16": ROWS.astype("<f2"),
        "BF16": (bits >> 16).astype("<u2"),
        "F8_E4M3": np.zeros(8, np.uint8),
    }[kind].tobytes()
    write_safetensors(folder / "model.safetensors", name, kind, ROWS.shape, raw)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "transformer.wte.weight"])
@pytest.mark.parametrize(("kind", "precision"), [("F32", 0.0), ("F16", 2.0**-11), ("BF16", 2.0**-7)])
def test_embeddings_of_every_type_come_back(tmp_path: Path, name: str, kind: str, precision: float) -> None:
    table = read_table(write_folder(tmp_path, {"model": {"vocab": BYTE_LEVEL}}, kind, name))
    assert table.embeddings.dtype == np.float32
    np.testing.assert_allclose(
        np.where(table.embeddings == np.inf, 65280.0, table.embeddings), ROWS, rtol=precision
    )
    assert table.texts == (" good", "né", "\n", "x")


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1, max_size=6), min_size=4, max_size=4, unique=True))
def test_any_text_comes_back_from_its_byte_level_spelling(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    vocabulary = {piece(text): i for i, text in enumerate(texts)}
    folder = write_folder(tmp_path_factory.mktemp("model"), {"model": {"vocab": vocabulary}})
    assert read_table(folder).texts == tuple(texts)


def test_a_sentencepiece_vocabulary_has_blanks_for_its_marks(tmp_path: Path) -> None:
    pieces = [["<unk>", 0.0], ["▁good", -1.5], ["ness", -2.0], ["▁▁", -3.0]]
    tokenizer = {"model": {"type": "Unigram", "vocab": pieces}, "pre_tokenizer": {"replacement": "▁"}}
    assert read_table(write_folder(tmp_path, tokenizer)).texts == ("<unk>", " good", "ness", "  ")


def test_added_tokens_have_their_own_text_and_a_padded_table_has_empty_ones(tmp_path: Path) -> None:
    tokenizer = {
        "model": {"vocab": {"a": 0, "b": 1, "beyond": 9}},
        "added_tokens": [{"id": 2, "content": "<|im end|>"}, {"id": 12, "content": "beyond"}],
    }
    assert read_table(write_folder(tmp_path, tokenizer)).texts == ("a", "b", "<|im end|>", "")


def test_the_table_is_found_in_whichever_of_several_files_it_is(tmp_path: Path) -> None:
    write_folder(tmp_path, {"model": {"vocab": BYTE_LEVEL}}).joinpath("model.safetensors").rename(
        tmp_path / "model-00002-of-00002.safetensors"
    )
    write_safetensors(
        tmp_path / "model-00001-of-00002.safetensors", "model.norm.weight", "F32", [1], bytes(4)
    )
    np.testing.assert_array_equal(read_table(tmp_path).embeddings, ROWS)


async def test_the_toy_s_folder_is_the_toy_s_table(tmp_path: Path) -> None:
    table = read_table(await write_weights(tmp_path))
    own = await ToyBackend().token_table()
    assert own is not None
    assert table.texts == TEXTS
    np.testing.assert_array_equal(table.embeddings, own.embeddings)


def test_another_configuration_or_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    write_folder(tmp_path, {"model": {"vocab": BYTE_LEVEL}})
    found = set()
    for config, kind in (("{}", "F32"), ('{"a": 1}', "F32"), ("{}", "BF16")):
        (tmp_path / "config.json").write_text(config)
        write_folder(tmp_path, {"model": {"vocab": BYTE_LEVEL}}, kind)
        found.add(fingerprint(tmp_path))
    assert len(found) == 3


def test_a_folder_that_is_none_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no embedding table") as caught:
        read_table(tmp_path)
    assert "tokenizer.json" in caught.value.hint and "weights" in caught.value.hint
    write_folder(tmp_path, {"model": {"vocab": BYTE_LEVEL}}, "F8_E4M3")
    with pytest.raises(BackendError, match="F8_E4M3"):
        read_table(tmp_path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\n"


@pytest.mark.parametrize("content", [LFS, b"", b"\xff" * 100, None], ids=["lfs", "empty", "noise", "cut off"])
def test_weights_that_were_not_fetched_whole_are_an_error_and_no_crash(
    tmp_path: Path, content: bytes | None
) -> None:
    write_folder(tmp_path, {"model": {"vocab": BYTE_LEVEL}})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(BackendError, match="can be read"):
        read_table(tmp_path)


@pytest.mark.parametrize("tokenizer", [None, [], {}, {"model": {}}, {"model": {"vocab": None}}, "text"])
def test_a_tokenizer_of_another_form_is_an_error_and_no_crash(tmp_path: Path, tokenizer: object) -> None:
    with pytest.raises(BackendError, match="can be read"):
        read_table(write_folder(tmp_path, tokenizer))
