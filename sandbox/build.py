"""Builds the two small static programs from the C source beside this file; knows nothing of machines."""

import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

from .base import SandboxError
from .store import make_once

HERE = Path(__file__).parent
PROGRAMS = {"supervisor": ("supervisor.c", "files.h", "filter.h", "output.h"), "launch": ("launch.c",)}


def supervisor() -> Path:
    """Process 1 of every machine."""
    return _built("supervisor")


def launch() -> Path:
    """What starts bwrap in its control groups and under an ordinary uid."""
    return _built("launch")


@functools.cache
def _built(name: str) -> Path:
    """The program's path, compiled on first use and kept under the hash of its source."""
    source = b"".join((HERE / file).read_bytes() for file in PROGRAMS[name])
    folder = f"{name}-{hashlib.sha256(source).hexdigest()[:16]}"
    return make_once("bin", folder, lambda draft: _compile(HERE / PROGRAMS[name][0], draft / name)) / name


def _compile(source: Path, program: Path) -> None:
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        raise SandboxError(
            "no C compiler found (cc, gcc or clang); the sandbox needs one once, for its supervisor: install gcc and libc6-dev"
        )
    done = subprocess.run(
        [compiler, "-static", "-O2", "-o", program, source], capture_output=True, text=True, errors="replace", timeout=120, check=False
    )
    if done.returncode:
        raise SandboxError(f"{compiler} could not build {source}: {done.stderr.strip()[-1000:]}")
    program.chmod(0o755)
