"""Images of a Docker daemon: environments built, others pulled, each with the supervisor in it, the oldest removed; starts no container.

An environment (images.py) is built on the base image. Any other image is pulled and gets one layer more, the supervisor, under a
name of ours; so nothing of this host is mounted into a machine, and the daemon may be on another one.
"""

import hashlib
import io
import logging
import os
import posixpath
import shlex
import tarfile
import time
from functools import partial
from pathlib import Path
from urllib.parse import quote

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from requests.exceptions import RequestException
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from . import make_env
from .base import WORKDIR, Image, SandboxError
from .build import supervisor
from .images import BASE, PREFIX, host_part, python_version
from .pythons import find_python
from .store import home, locked

log = logging.getLogger(__name__)
SUPERVISOR = "/.supervisor"
RUN = "greengrad/run:"
"""Images of others, with our supervisor."""
LABEL = "greengrad.supervisor"
PULL_SECONDS = 1800.0
PULLS = 5
"""Attempts at one pull."""
ENVIRONMENT = f"""FROM {BASE}
COPY site /opt/site
COPY make_env.py /opt/make_env.py
RUN %s /opt/make_env.py /opt/site {make_env.PLACE}
COPY supervisor {SUPERVISOR}
"""
OTHER_PYTHON = "/opt/python"
"""Where an environment's own Python lies, if it names one."""
_LIBRARIES = f"echo {OTHER_PYTHON}/lib > /etc/ld.so.conf.d/greengrad.conf && ldconfig"
"""A Python whose library is shared looks for it where it was built."""
_NOT_NEEDED = ("site-packages", "test", "idlelib", "tkinter", "lib2to3", "ensurepip", "__pycache__", "share")
"""Folders of a Python that no image gets."""


def ensure(api: docker.APIClient, image: Image, budget_gb: float) -> str:
    """Make an image available and return the name under which it can be started; SandboxError says what is missing."""
    name = image.name
    if name.startswith(PREFIX):
        target, make = name, partial(_build_environment, api, name)
    else:
        pull(api, name, budget_gb)
        target = RUN + api.inspect_image(name)["Id"].removeprefix("sha256:")[:16] + _home_mark(image.home)
        make = partial(_build, api, target, f"FROM {name}\nCOPY supervisor {SUPERVISOR}\n{_lead_home(image.home)}", [])
    if not _is_current(api, target):
        with locked(f"image-{target.replace('/', '-')}"):
            if not _is_current(api, target):
                make_room(api, budget_gb, {BASE, name})
                make()
    for used in {name, target}:
        _note_use(used)
    return target


def _home_mark(home: str) -> str:
    return "" if home == WORKDIR else "-" + hashlib.sha256(home.encode()).hexdigest()[:8]


def _lead_home(home: str) -> str:
    """The line of a Dockerfile that makes the place where an image holds its repository lead to WORKDIR."""
    if home == WORKDIR:
        return ""
    quoted = shlex.quote(home)
    return f"USER root\nRUN rm -rf {quoted} && mkdir -p {WORKDIR} {shlex.quote(posixpath.dirname(home))} && ln -s {WORKDIR} {quoted}\n"


def digest(api: docker.APIClient, name: str) -> str:
    """What identifies an image's content: the registry's digest where it has one, else its id."""
    found = api.inspect_image(name)
    return str(next(iter(found.get("RepoDigests") or []), found["Id"]))


def pull(api: docker.APIClient, name: str, budget_gb: float) -> None:
    """Fetch an image that is not there, again after failures that may pass; a rate limit is waited out longer."""
    if _exists(api, name):
        return
    with locked(f"image-{quote(name, safe='')}"):
        if not _exists(api, name):
            make_room(api, budget_gb, {BASE})
            Retrying(stop=stop_after_attempt(PULLS), retry=retry_if_exception(_may_pass), wait=_pause, reraise=True)(_pull, api, name)


def make_room(api: docker.APIClient, budget_gb: float, keep: set[str]) -> list[str]:
    """Remove images of ours, those longest unused first, until they fit into the budget; what a container uses stays. Names removed."""
    images = {tag: image for image in api.images() for tag in image.get("RepoTags") or [] if _is_ours(tag)}
    used = {image["Id"]: int(image["Size"]) for image in images.values()}
    removed = []
    for tag in sorted(images, key=_last_use):
        if sum(used.values()) <= budget_gb * 1e9:
            break
        if tag in keep:
            continue
        try:
            api.remove_image(tag)
        except APIError as error:
            if error.status_code not in (404, 409):  # gone already, or in use
                raise
            continue
        removed.append(tag)
        if not _exists(api, images[tag]["Id"]):
            used.pop(images[tag]["Id"], None)
    if removed:
        log.info("removed %d images that were not used for longest: %s", len(removed), ", ".join(removed[:5]))
    return removed


def _pull(api: docker.APIClient, name: str) -> None:
    """One attempt. The daemon tells failures in the stream, not in the status."""
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, "latest"
    end = time.monotonic() + PULL_SECONDS
    for line in api.pull(repository, tag=tag, stream=True, decode=True):
        if "error" in line:
            raise SandboxError(f"{name} cannot be pulled: {line['error']}")
        if time.monotonic() > end:
            raise SandboxError(f"{name} cannot be pulled within {PULL_SECONDS:.0f} s")


def _may_pass(error: BaseException) -> bool:
    final = ("not found", "manifest unknown", "access denied", "no such host", "unauthorized", "does not exist")
    return isinstance(error, SandboxError | DockerException | RequestException) and not any(word in str(error).lower() for word in final)


def _pause(state: RetryCallState) -> float:
    """Seconds before the next attempt: 2, 4, 8 ...; from a minute on where the registry says that it was asked too often."""
    error = state.outcome.exception() if state.outcome else None
    limited = any(word in str(error).lower() for word in ("toomanyrequests", "429", "rate limit"))
    return float(min(300, (60 if limited else 2) * 2 ** (state.attempt_number - 1)))


def _build_environment(api: docker.APIClient, name: str) -> None:
    if not _exists(api, BASE):
        raise SandboxError(f"the image {BASE} is missing on this Docker host; make it with: bash scripts/base_image")
    folder = host_part(name)
    files = [(folder / "site", "site"), (Path(make_env.__file__), "make_env.py")]
    if not (version := python_version(name)):
        _build(api, name, ENVIRONMENT % "python3", files)
        return
    python = ENVIRONMENT.replace("COPY site", f"COPY python {OTHER_PYTHON}\nRUN {_LIBRARIES}\nCOPY site", 1)
    _build(api, name, python % f"{OTHER_PYTHON}/bin/python3", [*files, (find_python(version), "python")])


def _build(api: docker.APIClient, name: str, dockerfile: str, files: list[tuple[Path, str]]) -> None:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for path, place in [*files, (supervisor(), "supervisor")]:
            tar.add(path, place, filter=_needed if place == "python" else None)
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(dockerfile)
        tar.addfile(info, io.BytesIO(dockerfile.encode()))
    context.seek(0)
    options = {"custom_context": True, "network_mode": "none", "rm": True, "forcerm": True, "labels": {LABEL: _version()}}
    for line in api.build(fileobj=context, tag=name, decode=True, **options):
        if "error" in line:
            raise SandboxError(f"{name} cannot be built: {line['error']}")


def _needed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A member of a Python's prefix that a machine needs; without the packages that somebody installed into it."""
    return None if any(part in _NOT_NEEDED for part in Path(member.name).parts) else member


def _version() -> str:
    return hashlib.sha256(supervisor().read_bytes()).hexdigest()[:16]


def _is_current(api: docker.APIClient, name: str) -> bool:
    """Whether the image is there, with the supervisor of today."""
    try:
        return bool((api.inspect_image(name)["Config"].get("Labels") or {}).get(LABEL) == _version())
    except ImageNotFound:
        return False


def _exists(api: docker.APIClient, name: str) -> bool:
    try:
        api.inspect_image(name)
    except ImageNotFound:
        return False
    return True


def _is_ours(tag: str) -> bool:
    """What we built or pulled: the note of its use says so; the base image is never counted."""
    return tag != BASE and (tag.startswith((PREFIX, RUN)) or _note(tag).exists())


def _note(name: str) -> Path:
    return home() / "images" / quote(name, safe="")


def _note_use(name: str) -> None:
    path = _note(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path)


def _last_use(name: str) -> float:
    path = _note(name)
    return path.stat().st_mtime if path.exists() else 0.0
