"""A whole Flower federation on this machine: a SuperLink with TLS, SuperNodes with keys, all cleaned up.

For the demo and the tests; on real hosts each organisation starts its own part (docs/deploy.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from fedbpt_api.errors import FedbptError
from fedbpt_api.flower.certificates import CERTIFICATES, HOST, certify, free_port, given, keys, tls_options
from fedbpt_api.flower.link import NAME
from fedbpt_api.flower.switches import program_of, quiet

_WAIT: Final = 60.0  # seconds for a process to be ready
_GRACE: Final = 5.0  # seconds for a process to end when asked to


class LoopbackError(FedbptError):
    """A process of the federation did not start, or ended."""


@dataclass
class Loopback:
    """Processes and files of a federation; a context manager that leaves no process behind.

    Args:
        folder: Where certificates, keys, logs and Flower's own files go.
        environment: Of all processes.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Loopback:
        self.folder.mkdir(parents=True, exist_ok=True)
        certify(self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in reversed(list(self.processes)):
            self.stop(name)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def link(self) -> None:
        """Start the SuperLink behind its gate, on a port of its own, or again on the one it had."""
        self.port = self.port or free_port()
        files = {part: self.folder / name for part, name in CERTIFICATES.items()}
        options = {"host": HOST, "port": self.port, "certificate": files["certificate"], "key": files["key"]}
        self.start("superlink", "fedbpt", "flower", "link", str(self.folder), *given(options))
        self.until_open("superlink", self.port)

    def register(self, name: str) -> Path:
        """Make a key for a node and put it on the SuperLink's list; where its private part is."""
        private, public = keys(self.folder, name)
        self.flwr("supernode", "register", str(public), NAME)
        return private

    def node(self, name: str, private: Path, config: Mapping[str, str]) -> None:
        """Start a SuperNode with a key; it must be on the SuperLink's list to be let in."""
        told = " ".join(f'{key}="{value}"' for key, value in config.items())
        options = {
            "superlink": self.address,
            "root-certificates": self.authority,
            "auth-supernode-private-key": private,
            "node-config": told,
            **self._inner(),
        }
        self.start(name, "flower-supernode", *given(options))

    def party(self, name: str, config: Path, private: Path, address: str = "") -> None:
        """Start an organisation: a party's process, and with it its SuperNode.

        Args:
            name: The process's.
            config: The party's settings.
            private: Its key.
            address: Of what it takes for the SuperLink, if that is not it.
        """
        options = {"superlink": address or self.address, "root-certificates": self.authority, "key": private}
        inner = [f"--supernode={word}" for word in given(self._inner())]
        self.start(name, "fedbpt", "flower", "node", str(config), *given(options), *inner)

    def run(self, app: Path, tell: Callable[[str], None], config: Mapping[str, object] | None = None) -> None:
        """Run an app, with other values of its configuration, and tell what it prints, until it has ended.

        Raises:
            LoopbackError: It could not be started.
        """
        changed = " ".join(f"{key}={value}" for key, value in (config or {}).items())
        command = [program_of("flwr"), "run", str(app), NAME, "--stream"]
        command += ["--run-config", changed] if changed else []
        with subprocess.Popen(
            command, env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    tell(line.rstrip())
            finally:
                process.terminate()
        if process.returncode > 0:
            raise LoopbackError(f"flwr run has ended with status {process.returncode}")

    def flwr(self, *arguments: str) -> str:
        """Run Flower's command; what it printed.

        Raises:
            LoopbackError: It failed.
        """
        done = subprocess.run(
            [program_of("flwr"), *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LoopbackError(
                f"flwr {' '.join(arguments[:2])} failed: {(done.stdout + done.stderr).strip()}"
            )
        return done.stdout

    def start(self, name: str, program: str, *words: str) -> None:
        """Start a process in a group of its own; its output goes into the folder's logs."""
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [program_of(program), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End a process and all that it has started."""
        process = self.processes.pop(name)
        _signal(process, signal.SIGCONT)  # one that was frozen hears nothing else
        _signal(process, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        _signal(process, signal.SIGKILL)  # its group: what it has started may outlive it
        process.wait()

    def log(self, name: str) -> str:
        """What a process has printed."""
        return (self.folder / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def until_open(self, name: str, port: int) -> None:
        """Wait until a process listens.

        Raises:
            LoopbackError: It ended, or does not.
        """
        end = time.monotonic() + _WAIT
        while time.monotonic() < end:
            if self.processes[name].poll() is not None:
                raise LoopbackError(f"{name} has ended: {self.log(name)[-2000:]}", f"see {self.folder}/logs")
            with socket.socket() as probe:
                if probe.connect_ex((HOST, port)) == 0:
                    return
            time.sleep(0.1)
        raise LoopbackError(f"{name} does not listen on port {port}", f"see {self.folder}/logs")

    @property
    def authority(self) -> Path:
        """The certificate that vouches for the SuperLink."""
        return self.folder / CERTIFICATES["ca"]

    def _inner(self) -> dict[str, object]:
        """Between a SuperNode and the app that it starts: a port of its own, and TLS too."""
        return {"host": HOST, "port": free_port(), **tls_options(self.folder)}

    def _environment(self) -> dict[str, str]:
        return quiet({**os.environ, **self.environment, "FLWR_HOME": str(self.folder / "flwr")})


def _signal(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """To a process and all of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)
