"""Builds the supervisor, a static program from the C source beside this file; knows nothing of machines."""

import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

from .base import SandboxError
from .store import make_once

SOURCES = ("supervisor.c", "files.h", "filter.h")


@functools.cache
def supervisor() -> Path:
    """The path of the program, compiled on first use and kept under the hash of its source."""
    folder = Path(__file__).parent
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in SOURCES)).hexdigest()[:16]
    return make_once("bin", digest, lambda draft: _compile(folder / SOURCES[0], draft / "supervisor")) / "supervisor"


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
