"""Environments: a list of pinned requirements becomes /opt/env of every machine; knows nothing of tasks and starts no machine.

An environment's name is made from its requirements alone, so it is the same in both backends and on every host.
Host part: store/envs/<hash>/{requirements.txt, site/}, written by pip once (wheels only, pure Python only).
bubblewrap binds a virtual environment made from it at /opt/env; Docker commits it onto the base image (docker.py).
"""

import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

from .base import SandboxError
from .make_env import make_env
from .store import home, make_once

PREFIX = "greengrad/env:"
BASE = "greengrad/base:1"
"""The Docker image below every environment: bash, git, tar and python3; made by scripts/base_image."""
_PIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+( --hash=sha256:[0-9a-f]{64})*$")


def environment_name(requirements: Sequence[str]) -> str:
    """The image name of pinned requirements ("name==version", optionally " --hash=sha256:..." as in a pip requirements file)."""
    for line in requirements:
        if not _PIN.match(line):
            raise ValueError(f"requirement {line!r}: write name==version, optionally followed by --hash=sha256:<64 hex digits>")
    return PREFIX + hashlib.sha256("\n".join(sorted(set(requirements))).encode()).hexdigest()[:16]


def ensure_environment(requirements: Sequence[str]) -> str:
    """Make the host part of an environment if it is missing, and return its image name. Safe to call from many processes at once.

    ValueError for a requirement that is not pinned, not pure Python, or that needs packages that are not listed.
    """
    name = environment_name(requirements)
    lines = sorted(set(requirements))
    make_once("envs", name.removeprefix(PREFIX), lambda draft: _install(lines, draft))
    return name


def host_part(name: str) -> Path:
    """The folder of an environment on this host; SandboxError where nobody has made it here."""
    folder = home() / "envs" / name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or not folder.is_dir():
        raise SandboxError(f"no environment {name} on this host; ensure_environment(requirements) makes one")
    return folder


def bubblewrap_environment(name: str) -> Path:
    """A virtual environment of this host's Python that holds when it lies at /opt/env."""
    site = host_part(name) / "site"
    python = Path(sys.base_prefix)
    key = hashlib.sha256(f"{python} {sys.version}".encode()).hexdigest()[:8]
    return make_once("venvs", f"{name.removeprefix(PREFIX)}-{key}", lambda draft: make_env(site, draft))


def _install(lines: list[str], draft: Path) -> None:
    requirements = draft / "requirements.txt"
    requirements.write_text("".join(f"{line}\n" for line in lines))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--target", str(draft / "site"), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=900, check=False)
    if done.returncode:
        raise SandboxError(f"pip could not install {', '.join(lines)}: {(done.stderr or done.stdout).strip()[-1500:]}")
    (draft / "site").mkdir(exist_ok=True)
    if compiled := next((draft / "site").rglob("*.so"), None):
        raise ValueError(f"{compiled.relative_to(draft / 'site')} is compiled code; an environment holds pure Python only")
    listed = {_normal(line.partition("==")[0]) for line in lines}
    found = distributions(path=[str(draft / "site")])
    if unlisted := sorted(f"{other.name.lower()}=={other.version}" for other in found if _normal(other.name) not in listed):
        raise ValueError(f"an environment lists everything that it holds; {', '.join(lines)} also need {', '.join(unlisted)}")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
