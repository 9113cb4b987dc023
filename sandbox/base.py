"""What a sandbox is: one sealed machine that runs commands and holds files; knows nothing of tasks or models.

Three failures, never mixed up:
  the command failed      -> an ExecResult (the agent sees it)
  the agent broke its own -> ResourceExhausted (graded like any other episode; never an excuse)
  the machine failed      -> SandboxError (retried, then the episode is dropped and counted)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

WORKDIR = "/testbed"
"""Where the repository lies in every machine of ours; the official SWE-bench images use the same path."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use. A backend that cannot enforce a limit refuses to start."""

    memory_mb: int = 2048
    pids: int = 256
    cpus: float = 1.0
    disk_mb: int = 512
    """Everything that the agent can write, /tmp included."""
    output_bytes: int = 65_536
    """Kept of one command's output: the first and the last half, with the number of bytes dropped in between."""
    command_seconds: float = 60.0
    episode_seconds: float = 1800.0
    """Life of the machine: when it is over, the sandbox ends itself even if its owner has died."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a machine starts from: an environment (name) and the tree that is unpacked into WORKDIR.

    `name` is a Docker image in one backend and a folder of the image store in the other (see sandbox/images.py).
    `tree` is a tar file of the repository at its base commit; None where the image holds the repository itself: such an image is
    not started before it has been sealed (seal.py), which gives it one.
    """

    name: str
    tree: Path | None = None
    home: str = WORKDIR
    """Where the image itself holds the repository; in a machine that path leads to WORKDIR."""
    hide: tuple[str, ...] = ()
    """Files and folders of that repository, relative to it, that no machine holds: hidden tests."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What one command did: its output (stdout and stderr in order, capped), and how it ended."""

    output: bytes
    exit_code: int
    """As a shell gives it: 128 + signal for a killed process, 124 for a timeout."""
    seconds: float
    timed_out: bool = False
    out_of_memory: bool = False
    dropped_bytes: int = 0

    @property
    def text(self) -> str:
        """The output as text; bytes that are not UTF-8 become U+FFFD."""
        return self.output.decode("utf-8", "replace")


class SandboxError(Exception):
    """The machine failed, with evidence on the host's side. Infrastructure: never a reward of 0."""


class ResourceExhausted(Exception):
    """The agent used up or killed its own machine (memory, pids, disk, supervisor). Its own doing: graded."""


class Sandbox(Protocol):
    """One machine, one command at a time. Paths are absolute, inside the machine."""

    id: str

    async def run(
        self, command: str, *, cwd: str = WORKDIR, env: dict[str, str] | None = None, stdin: bytes = b"", seconds: float | None = None
    ) -> ExecResult:
        """Run `bash -c command` in its own session; at its time limit it dies with all its children."""
        ...

    async def read(self, path: str) -> bytes:
        """The bytes of a file. FileNotFoundError / IsADirectoryError / PermissionError are the agent's doing, not the machine's."""
        ...

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file (parents are made)."""
        ...

    async def kill_all(self) -> None:
        """Kill every process of the sandbox but its supervisor."""
        ...

    async def wipe(self) -> None:
        """Make it as it was before its tree was unpacked: nothing runs, nothing that was written is left, its life begins anew.

        SandboxError or ResourceExhausted where that cannot be shown; the machine is then fit for nothing but close().
        """
        ...

    async def copy_from(self, source: Self) -> None:
        """Every file of another machine of the same backend and environment, into this one, which is new or wiped: a fork of its files."""
        ...

    async def close(self) -> None:
        """Tear the machine down; safe to call twice and after a failure."""
        ...


class Backend(Protocol):
    """Where machines come from: Docker or bubblewrap (or a fake). Nothing above it can tell which."""

    name: str

    async def prepare(self, image_name: str) -> str:
        """Make an image available before machines are started from it; returns what identifies its content."""
        ...

    async def own_tree(self, image: Image) -> Path:
        """The repository that an image itself holds in its home, as a tree file, not sealed yet; SandboxError where it holds none."""
        ...

    async def start(self, image: Image, limits: Limits) -> Sandbox:
        """A fresh machine with the image's tree in WORKDIR."""
        ...

    async def sweep(self) -> int:
        """Remove what dead owners left behind; returns how many machines that were."""
        ...
