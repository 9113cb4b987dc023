"""A control group per sandbox, version 1 or 2, below our own; knows nothing of what runs in it.

covered:     memory (without swap), processes, cpu time; how many processes the kernel killed for memory; groups of dead owners.
not covered: io bandwidth; systemd's delegation over D-Bus (an ordinary user with a writable group of its own is served, without it not).
"""

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .base import Limits, SandboxError
from .owner import is_dead

PERIOD = 100_000
"""Microseconds of one period of the cpu quota."""


@dataclass(frozen=True, slots=True)
class Group:
    """The folders of one sandbox's group (one in version 2, one per controller in version 1)."""

    folders: tuple[Path, ...]
    events: Path
    """The file that counts oom_kill."""

    def oom_kills(self) -> int:
        """How many processes of the group the kernel killed for memory; 0 when the group is gone."""
        try:
            words = self.events.read_text().split()
        except OSError:
            return 0
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    async def remove(self) -> None:
        """Remove the group; its processes are dead or dying, so it may take a moment. What stays is for sweep()."""
        for _ in range(200):
            if all([_removed(folder) for folder in self.folders]):
                return
            await asyncio.sleep(0.01)


def create(name: str, limits: Limits, extra_mb: int) -> Group | None:
    """A limited group below our own, or None where the kernel or our rights do not allow one. extra_mb: memory for the writable tmpfs."""
    memory = (limits.memory_mb + extra_mb) << 20
    quota = int(limits.cpus * PERIOD)
    pids = limits.pids + 2  # the supervisor and bwrap's own process
    one, two = _version_1(), _version_2()
    if len(one) == 3:
        files = [
            (one["memory"], "memory.limit_in_bytes", memory),
            (one["memory"], "memory.memsw.limit_in_bytes", memory),
            (one["pids"], "pids.max", pids),
            (one["cpu"], "cpu.cfs_period_us", PERIOD),
            (one["cpu"], "cpu.cfs_quota_us", quota),
        ]
        return _make(name, files, one["memory"], "memory.oom_control")
    for parent in two:
        values: dict[str, int | str] = {"memory.max": memory, "memory.swap.max": 0, "pids.max": pids, "cpu.max": f"{quota} {PERIOD}"}
        if group := _make(name, [(parent, file, value) for file, value in values.items()], parent, "memory.events"):
            return group
    return None


def sweep() -> int:
    """Remove the groups whose owners are dead and that hold no process; returns how many sandboxes that were."""
    names = set()
    for parent in {*_version_1().values(), *_version_2()}:
        for folder in parent.glob("greengrad-*"):
            if is_dead(folder.name.rpartition("@")[2]) and _removed(folder):
                names.add(folder.name)
    return len(names)


def _make(name: str, files: Sequence[tuple[Path, str, int | str]], memory: Path, events: str) -> Group | None:
    """Make the folders and write the limits; where the rights are missing nothing stays and None comes back."""
    folders = tuple(dict.fromkeys(parent / name for parent, _, _ in files))
    try:
        for folder in folders:
            folder.mkdir()
        for parent, file, value in files:
            path = parent / name / file
            if path.exists() or "sw" not in file:  # a kernel without swap accounting has no file for it
                path.write_text(str(value))
    except OSError as error:
        for folder in folders:
            _removed(folder)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EBUSY):
            return None
        raise SandboxError(f"control group {name}: {error}") from error
    return Group(folders, memory / name / events)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError as error:
        return error.errno == errno.ENOENT
    return True


def _mounts() -> list[tuple[str, Path, list[str]]]:
    """Type, mount point and options of each mounted cgroup hierarchy."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split()[:3]
        if kind.startswith("cgroup"):
            found.append((kind, Path(left.split()[4]), options.split(",")))
    return found


def _own(controller: str) -> str:
    """Our path in a hierarchy, as /proc/self/cgroup tells it; "" is version 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return ""


def _version_1() -> dict[str, Path]:
    """Controller -> our own folder, for those of the three that are mounted as version 1."""
    folders = {}
    for kind, mount, options in _mounts():
        for controller in {"memory", "pids", "cpu"} & set(options) if kind == "cgroup" else set():
            own = mount / _own(controller)
            folders[controller] = own if own.is_dir() else mount
    return folders


def _version_2() -> list[Path]:
    """Where a group may be made: below our own, or beside it (a group that holds processes may not pass controllers on)."""
    candidates = []
    for kind, mount, _ in _mounts():
        if kind == "cgroup2":
            own = mount / _own("")
            candidates += [folder for folder in (own, own.parent) if folder.is_relative_to(mount) and _passes_on(folder)]
    return candidates


def _passes_on(folder: Path) -> bool:
    """True when the group gives its children memory, pids and cpu; switches them on where it may."""
    control = folder / "cgroup.subtree_control"
    try:
        if not {"memory", "pids", "cpu"} <= set(control.read_text().split()):
            control.write_text("+memory +pids +cpu")
    except OSError:
        return False
    return True
