"""``fedbpt export``: the rows of the prompt as a tensor file, or a sentence that says why not."""

from __future__ import annotations

import asyncio
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prompts.test_tuned import tuned, weighted
from typer.testing import CliRunner

from backends.fake_vllm import write_weights
from fedbpt_api import TunedPrompt
from fedbpt_api.cli import app
from fedbpt_api.prompts.soft import SoftSpace
from fedbpt_backends.checkpoint import read_table
from fedbpt_backends.tensor_file import bfloat16


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    return asyncio.run(write_weights(tmp_path / "weights"))


def export(prompt: TunedPrompt, weights: Path, folder: Path) -> tuple[int, str, Path]:
    prompt.save(folder / "prompt.json")
    out = folder / "prompt.pt"
    command = ["export", str(folder / "prompt.json"), str(out), "--weights", str(weights)]
    done = CliRunner().invoke(app, command)
    return done.exit_code, done.output, out


def rows(path: Path, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        return np.frombuffer(archive.read("archive/data/0"), "<u2").reshape(-1, width)


def test_a_discrete_prompt_gives_its_tokens_embeddings(weights: Path, tmp_path: Path) -> None:
    table = read_table(weights)
    code, said, out = export(replace(tuned(weighted()), ids=(270, 281, 270)), weights, tmp_path)
    assert code == 0 and "3 vectors" in said
    np.testing.assert_array_equal(
        rows(out, table.embeddings.shape[1]), bfloat16(table.embeddings[[270, 281, 270]])
    )


def test_a_continuous_prompt_gives_its_vectors(weights: Path, tmp_path: Path) -> None:
    table = read_table(weights)
    space = SoftSpace.around((270, 281), table, dimension=8, alpha=1.0, sigma=1.0, seed=1)
    z = np.linspace(-1, 1, 8)
    prompt = replace(tuned(weighted()), ids=(270, 281), soft={**space.identity, "z": z.tolist()})
    code, _, out = export(prompt, weights, tmp_path)
    moved = space.decode(z)
    assert code == 0 and not isinstance(moved, tuple)
    np.testing.assert_array_equal(rows(out, table.embeddings.shape[1]), bfloat16(moved.vectors))


def test_what_cannot_be_exported_is_told(weights: Path, tmp_path: Path) -> None:
    for ids, told in (((), "empty"), ((99999,), "not the model")):
        code, said, out = export(replace(tuned(weighted()), ids=ids), weights, tmp_path)
        assert code == 2 and told in said and not out.exists()
