"""Looks for given texts and files in files, archives and a commit; knows nothing of fixes, tasks or machines.

Standard library only, Python >= 3.8: it runs as a script inside a machine, whatever its image: look.py QUERY.json ANSWER.json
QUERY:  {"roots": [...], "skip": [...], "commit": id or "", "passages": [text as latin-1], "blobs": [[git's id, size, file name], ...]}
ANSWER: {"known": [number of a passage or id that the commit holds, ...], "found": [[number of a passage | id | PIP_CACHE, place], ...]}

covered:     every readable regular file below the roots: its git id, its text, what zip and tar archives hold (an archive in
             an archive as well), compiled Python that is of a wanted size and has no source beside it, anything in a cache of pip.
not covered: texts that were changed (indented anew, encoded anew); the text of files beyond LIMIT; zstd, encrypted or damaged archives;
             below SYSTEM, the text of files that are named neither like a wanted one (*.py ...) nor like an archive.
"""

import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

LIMIT = 32 << 20
"""Bytes of a file, or of a member of an archive, whose text is looked at."""
FEW = 16
"""So many texts are sooner looked for one by one than all at once."""
DEPTH = 2
"""Archives inside of archives."""
TAR_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
BROKEN = (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, RuntimeError, ValueError, KeyError, zlib.error, lzma.LZMAError)
"""What the readers of archives raise for damaged and encrypted ones (NotImplementedError is a RuntimeError)."""
PIP_CACHE = "pip cache"
SYSTEM = "/usr/"
"""Where a distribution puts its programs: gigabytes, in which only files of telling names are opened."""
ARCHIVES = (".whl", ".zip", ".egg", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".conda")


class Query:
    """What is looked for, made ready for many looks."""

    def __init__(self, passages: "list[str]", blobs: "list[tuple[str, int, str]]") -> None:
        self.passages = [b"\n" + text.encode("latin-1") + b"\n" for text in passages]
        self.ids = {name for name, _, _ in blobs}
        self.sizes = {size for _, size, _ in blobs}
        self.modules = {(file[:-3], size): name for name, size, file in blobs if file.endswith(".py")}
        self.stems = {stem for stem, _ in self.modules}
        self.endings = tuple({*ARCHIVES, *(os.path.splitext(file)[1] or file for _, _, file in blobs)})
        self.keys: dict[bytes, list[int]] = {}
        for number, text in enumerate(self.passages):
            self.keys.setdefault(max(text.split(b"\n"), key=len), []).append(number)

    def is_worth_opening(self, name: str, size: int, place: str) -> bool:
        """Whether a file, or a member of the archive at `place`, may hold something that is wanted, by its name, size and place."""
        if name.endswith(".pyc"):
            return os.path.basename(name).split(".")[0] in self.stems
        return size in self.sizes or not place.startswith(SYSTEM) or name.endswith(self.endings)

    def passages_in(self, data: bytes) -> "list[int]":
        """Numbers of the passages that stand in a text as whole lines. Only their longest lines are looked for first."""
        data = data.replace(b"\r\n", b"\n")
        if len(self.keys) > FEW:
            lines: Iterable[bytes] = set(data.split(b"\n")).intersection(self.keys)
        else:
            lines = [line for line in self.keys if line in data]
        candidates = [number for line in lines for number in self.keys[line]]
        text = b"\n" + data + b"\n" if candidates else b""
        return [number for number in candidates if self.passages[number] in text]

    def look_at(self, data: bytes) -> "list[int | str]":
        """What a file of these bytes holds: itself by git's id, passages of its text."""
        found: list[int | str] = []
        if len(data) in self.sizes:
            name = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            found += [name] if name in self.ids else []
        if b"\0" not in data[:8192]:
            found += self.passages_in(data)
        return found

    def compiled(self, path: str, data: bytes) -> "list[str]":
        """The id of the source that this .pyc, alone in its folder, was made of, by the size that it records."""
        folder, name = os.path.split(path)
        stem = name.split(".")[0]
        beside = os.path.dirname(folder) if os.path.basename(folder) == "__pycache__" else folder
        source = self.modules.get((stem, int.from_bytes(data[12:16], "little")))
        return [source] if source and not os.path.exists(os.path.join(beside, stem + ".py")) else []


def look(query: Query, roots: Iterable[str], skip: Iterable[str]) -> "list[tuple[int | str, str]]":
    """Everything wanted that lies below the roots, with its place."""
    return [(what, path) for root in roots for path in files(root, set(skip)) for what in look_into(query, path)]


def files(folder: str, skip: "set[str]") -> Iterator[str]:
    """Regular files below a folder; no link is followed."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:  # not to be read
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            if entry.path not in skip:
                yield from files(entry.path, skip)
        elif entry.is_file(follow_symlinks=False):
            yield entry.path


def look_into(query: Query, path: str) -> "list[int | str]":
    """What one file holds."""
    found: list[int | str] = [PIP_CACHE] if "/.cache/pip/" in path else []
    try:
        size = os.path.getsize(path)
        if not query.is_worth_opening(path, size, path):
            return found
        with open(path, "rb") as file:
            head = file.read(8192)
            if is_archive(head):
                file.seek(0)
                wanted = partial(query.is_worth_opening, place=path)
                return found + [what for data in members(file, head, wanted, DEPTH) for what in query.look_at(data)]
            if size > LIMIT or (b"\0" in head and size not in query.sizes and not path.endswith(".pyc")):
                return found
            data = head + file.read()
    except OSError:  # gone or unreadable after all: then no one else can read it either
        return found
    return found + query.look_at(data) + (query.compiled(path, data) if path.endswith(".pyc") else [])


def is_archive(head: bytes) -> bool:
    """Whether a file may hold others."""
    return head.startswith((b"PK\3\4", *TAR_MAGIC)) or head[257:262] == b"ustar"


def members(file: IO[bytes], head: bytes, wanted: "Callable[[str, int], bool]", depth: int) -> Iterator[bytes]:
    """The contents of an archive's wanted files, those of archives inside of it included; nothing more where it is damaged."""
    try:
        for data in zipped(file, wanted) if head.startswith(b"PK") else tarred(file, wanted):
            if depth > 1 and is_archive(data[:512]):
                yield from members(io.BytesIO(data), data[:512], wanted, depth - 1)
            yield data
    except BROKEN:
        return


def zipped(file: IO[bytes], wanted: "Callable[[str, int], bool]") -> Iterator[bytes]:
    """Contents of the wanted members of a zip archive."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.file_size <= LIMIT and wanted(info.filename, info.file_size):
                with archive.open(info) as member:
                    yield member.read(LIMIT)


def tarred(file: IO[bytes], wanted: "Callable[[str, int], bool]") -> Iterator[bytes]:
    """Contents of the wanted members of a tar archive, compressed or not."""
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        for info in archive:
            member = archive.extractfile(info) if info.isreg() and info.size <= LIMIT and wanted(info.name, info.size) else None
            if member:
                yield member.read(LIMIT)


def look_at_commit(query: Query, commit: str) -> "set[int | str]":
    """What the files of a commit hold."""
    listed = subprocess.run(["git", "ls-tree", "-r", commit], stdout=subprocess.PIPE, check=True)
    blobs = b"".join(line.split()[2] + b"\n" for line in listed.stdout.splitlines() if line.split()[1] == b"blob")
    batch = subprocess.run(["git", "cat-file", "--batch", "--buffer"], input=blobs, stdout=subprocess.PIPE, check=True).stdout
    known: set[int | str] = set()
    at = 0
    while at < len(batch):
        end = batch.index(b"\n", at)
        size = int(batch[at:end].split()[2])
        known.update(query.look_at(batch[end + 1 : end + 1 + size]))
        at = end + size + 2
    return known


def main(asked: Path, answer: Path) -> None:
    """Answer a query that lies in a file."""
    wanted = cast("dict[str, Any]", json.loads(asked.read_text()))
    query = Query(wanted["passages"], wanted["blobs"])
    known = look_at_commit(query, wanted["commit"]) if wanted["commit"] else set()
    found = look(query, wanted["roots"], wanted["skip"])
    if wanted["commit"]:  # a message cannot be taken out without a change of the id
        said = subprocess.run(["git", "cat-file", "commit", wanted["commit"]], stdout=subprocess.PIPE, check=True).stdout
        found += [(what, "the message of the commit") for what in query.passages_in(said)]
    answer.write_text(json.dumps({"known": list(known), "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
