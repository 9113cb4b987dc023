"""The repository that a Docker image holds in WORKDIR, taken out as a tree file; starts no container and trusts nothing in the archive.

The container is created only so that its files can be read, and removed. The archive is rewritten member by member while it comes:
no devices, no names that lead out of the folder, no owners, no setuid bits; everything readable and writable for its new owner.
"""

import hashlib
import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from .base import WORKDIR, Image, SandboxError
from .owner import owner
from .store import make_once

TREE = "tree.tar"
MOST_BYTES = 4 << 30
"""Of a repository with its files; a larger one is refused."""
SECONDS = 900.0
"""For taking one out."""


class Api(Protocol):
    """What is needed of docker.APIClient, which is imported elsewhere."""

    def create_container(self, image: str, command: list[str], labels: dict[str, str], network_disabled: bool) -> dict[str, Any]:
        """A container that is not started."""
        ...

    def get_archive(self, container: str, path: str) -> tuple[Iterator[bytes], dict[str, Any]]:
        """A folder of a container as a tar stream."""
        ...

    def remove_container(self, container: str, force: bool, v: bool) -> None:
        """Remove it."""
        ...


def own_tree(api: Api, image: Image, identity: str) -> Path:
    """The tree file of an image's own repository, taken out once for each content (`identity`: its digest). SandboxError without one."""
    if not PurePosixPath(image.home).is_absolute() or image.home.strip("/") == "":
        raise SandboxError(f"{image.name}: {image.home!r} is no folder that can hold a repository: an absolute path is needed")
    text = identity if (image.home, image.hide) == (WORKDIR, ()) else repr((identity, image.home, image.hide))
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return make_once("own", key, lambda draft: _take_out(api, image, draft / TREE)) / TREE


def _take_out(api: Api, image: Image, out: Path) -> None:
    labels = {"greengrad.owner": owner(), "greengrad.until": str(int(time.time() + SECONDS))}
    container = api.create_container(image.name, command=["/bin/true"], labels=labels, network_disabled=True)["Id"]
    try:
        stream, _ = api.get_archive(container, f"{image.home}/.")
        with out.open("wb") as file:
            clean(_Stream(image, stream), file, image.hide)
    finally:
        api.remove_container(container, force=True, v=True)


class _Stream(io.RawIOBase):
    """Chunks as a file, with a bound on their number of bytes and on the time."""

    def __init__(self, image: Image, chunks: Iterator[bytes]) -> None:
        self._name, self._chunks, self._rest = f"{image.name}: its {image.home}", chunks, b""
        self._left, self._end = MOST_BYTES, time.monotonic() + SECONDS

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            if (chunk := next(self._chunks, None)) is None:
                return b""
            self._rest = chunk
            self._left -= len(chunk)
            if self._left < 0:
                raise SandboxError(f"{self._name} is larger than {MOST_BYTES >> 30} GiB")
            if time.monotonic() > self._end:
                raise SandboxError(f"{self._name} did not come within {SECONDS:.0f} s")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def clean(source: Any, target: Any, hide: tuple[str, ...] = ()) -> None:
    """Copy a tar stream of a folder, without what a working tree cannot hold and without what is to be hidden.

    SandboxError for names that lead out of the folder.
    """
    try:
        with tarfile.open(fileobj=source, mode="r|") as old, tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as new:
            for member in old:
                if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                    continue
                member.name = _inner(member.name)
                if member.name == "." or any(PurePosixPath(member.name).is_relative_to(hidden) for hidden in hide):
                    continue
                member.linkname = _inner(member.linkname) if member.islnk() else member.linkname
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                member.mode = member.mode & 0o755 | (0o700 if member.isdir() else 0o600)
                member.pax_headers = {}
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
    except tarfile.TarError as error:
        raise SandboxError(f"the archive of {WORKDIR} is damaged: {error}") from error


def _inner(name: str) -> str:
    """A member's name relative to the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise SandboxError(f"the archive of {WORKDIR} names a file outside of it: {name!r}")
    return str(path)
