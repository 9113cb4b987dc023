"""Environments: a list of pinned requirements becomes /opt/env of every machine; knows nothing of tasks and starts no machine.

An environment's name is made from its requirements alone, so it is the same in both backends and on every host.
Host part: store/envs/<hash>/{requirements.txt, site/}, written by pip once (wheels only). It stands on our own Python, and holds
pure Python only, or on another one that its requirements name ("python==3.9"), whose compiled wheels it may hold.
bubblewrap binds a virtual environment made from it at /opt/env; Docker commits it onto the base image (docker.py).
"""

import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path

from .base import SandboxError
from .make_env import __file__ as make_env_script
from .make_env import make_env
from .pythons import find_python, program, wanted_python
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
    if not name.startswith(PREFIX):
        raise SandboxError(f"{name} is an image of a registry, which bubblewrap cannot run: it takes a Docker daemon (--sandbox docker)")
    if not folder.is_dir():
        raise SandboxError(f"no environment {name} on this host; ensure_environment(requirements) makes one")
    return folder


def bubblewrap_environment(name: str) -> Path:
    """A virtual environment of its Python on this host that holds when it lies at /opt/env."""
    site, version = host_part(name) / "site", python_version(name)
    python = find_python(version)
    key = hashlib.sha256(f"{python} {version or sys.version}".encode()).hexdigest()[:8]
    make = partial(_make_with, python, site) if version else partial(make_env, site)
    return make_once("venvs", f"{name.removeprefix(PREFIX)}-{key}", make)


def python_version(name: str) -> str:
    """The Python that an environment of this host asks for; "" for our own."""
    return wanted_python((host_part(name) / "requirements.txt").read_text().splitlines())


def _make_with(python: Path, site: Path, draft: Path) -> None:
    """make_env, by the Python that it is for."""
    command = [str(program(python)), str(Path(make_env_script).absolute()), str(site), str(draft)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600, check=False)
    if done.returncode:
        raise SandboxError(f"an environment of {python} cannot be made: {done.stderr.strip()[-800:]}")


def _install(lines: list[str], draft: Path) -> None:
    requirements = draft / "requirements.txt"
    requirements.write_text("".join(f"{line}\n" for line in lines))
    version = wanted_python(lines)
    packages = draft / "packages.txt"
    packages.write_text("".join(f"{line}\n" for line in lines if not line.startswith("python==")))
    command = [str(program(find_python(version))) if version else sys.executable, "-m", "pip", "install", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--target", str(draft / "site"), "--requirement", str(packages)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=900, check=False)
    if done.returncode:
        raise SandboxError(f"pip could not install {', '.join(lines)}: {(done.stderr or done.stdout).strip()[-1500:]}")
    (draft / "site").mkdir(exist_ok=True)
    compiled = next((draft / "site").rglob("*.so"), None)
    if compiled and not version:
        raise ValueError(
            f"{compiled.relative_to(draft / 'site')} is compiled code; an environment that names no python==... holds pure Python only"
        )
    listed = {_normal(line.partition("==")[0]) for line in lines}
    found = distributions(path=[str(draft / "site")])
    if unlisted := sorted(f"{other.name.lower()}=={other.version}" for other in found if _normal(other.name) not in listed):
        raise ValueError(f"an environment lists everything that it holds; {', '.join(lines)} also need {', '.join(unlisted)}")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
