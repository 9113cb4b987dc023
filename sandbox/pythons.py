"""Other Pythons than our own, for environments that ask for one ("python==3.9"); knows nothing of packages or machines."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .base import SandboxError

_LINE = re.compile(r"python==(\d+\.\d+)$")


def wanted_python(requirements: Sequence[str]) -> str:
    """The version that a list of requirements asks for, "3.9"; "" where ours will do. ValueError for one written otherwise, or two."""
    lines = [line for line in requirements if line.startswith("python==")]
    if not lines:
        return ""
    match = _LINE.match(lines[0])
    if match is None or len(lines) > 1:
        raise ValueError(f"requirement {', '.join(lines)}: write python==MAJOR.MINOR, once")
    return match[1]


@functools.cache
def find_python(version: str) -> Path:
    """The prefix of a Python of this version ("" is our own): on PATH, among pyenv's, or uv's; SandboxError says how to get one."""
    if version in ("", f"{sys.version_info.major}.{sys.version_info.minor}"):
        return Path(sys.base_prefix)
    for program in _programs(version):
        if prefix := _prefix(program, version):
            return prefix
    raise SandboxError(
        f"no Python {version} on this machine: put python{version} on PATH, or install it with pyenv or `uv python install {version}`"
    )


def program(prefix: Path) -> Path:
    """The interpreter of a prefix."""
    return prefix / "bin" / "python3"


def _programs(version: str) -> Iterator[str]:
    if found := shutil.which(f"python{version}"):
        yield found
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from (str(path) for path in sorted(root.glob(f"versions/{version}.*/bin/python3"), reverse=True))
    if uv := shutil.which("uv"):
        done = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, timeout=60, check=False)
        yield from done.stdout.split()


def _prefix(name: str, version: str) -> Path | None:
    """The base prefix of an interpreter that runs and is of this version (a shim of pyenv may be neither)."""
    code = "import sys; print('%d.%d' % sys.version_info[:2], sys.base_prefix)"
    done = subprocess.run([name, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    found, _, prefix = done.stdout.strip().partition(" ")
    return Path(prefix) if done.returncode == 0 and found == version else None
