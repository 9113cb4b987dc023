"""Who a machine belongs to, so that the machines of a dead owner can be told from those of a live one; knows nothing of machines."""

import functools
import os
from pathlib import Path


@functools.cache
def owner() -> str:
    """This process, named so that no other has the same name: boot, pid namespace, pid, start time."""
    namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return f"{_boot()}.{namespace}.{os.getpid()}.{_start_time(os.getpid())}"


def is_dead(name: str) -> bool:
    """True when that process is certainly gone; what we cannot see (another host or pid namespace) is never called dead."""
    try:
        boot, namespace, pid, start = name.split(".")
        ours = owner().split(".")[:2]
        return [boot, namespace] == ours and _start_time(int(pid)) != start
    except ValueError:
        return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:12]


def _start_time(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
