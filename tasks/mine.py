"""A repository that a person has -> small commits that change source and tests, and their files; knows no tests and no sandbox.

Works in a bare clone of its own, made without templates, hooks, filters or anybody's configuration; of it only objects are read. No
work tree is checked out by git, so that no attribute, filter or submodule of the repository acts.
"""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import git

from .mine_layout import Kind, kind_of

_ENV = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "file:https:http:ssh:git",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}
"""Nobody's settings; a repository of another owner may be read, not run."""
CLONE_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Small:
    """Which commits are looked at."""

    source_files: int = 3
    test_files: int = 3
    lines: int = 80
    """Of source that the commit adds and removes, both counted."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A small commit that changes source and tests."""

    commit: str
    parent: str
    date: str
    message: str
    source: tuple[str, ...]
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A file before and after a commit; None where it is not there."""

    path: str
    old: str | None
    new: str | None


class Mine:
    """A bare clone, and what is read from it; one reader at a time."""

    def __init__(self, source: str, folder: Path, history: bool = True) -> None:
        """ValueError where the source cannot be cloned, or is shallow though its history is wanted: its oldest commit would look huge."""
        path = Path(source).expanduser()
        source = str(path.absolute()) if path.exists() else source
        try:
            git.Git().clone("--bare", "--template=", "--quiet", "--", source, str(folder), env=_ENV, kill_after_timeout=CLONE_SECONDS)
            self._repo = git.Repo(folder)
            self._repo.git.update_environment(**_ENV)
            shallow = self._repo.git.rev_parse("--is-shallow-repository") == "true"
        except git.GitCommandError as error:
            raise ValueError(f"{source}: cannot be cloned: {' '.join(str(error.stderr).split())[-300:]}") from None
        if shallow and history:
            raise ValueError(f"{source} is a shallow clone: mining needs the whole history (git fetch --unshallow)")
        self.lock = asyncio.Lock()

    def close(self) -> None:
        """End git's processes and remove the clone."""
        self._repo.close()
        shutil.rmtree(str(self._repo.git_dir), ignore_errors=True)

    def candidates(self, small: Small) -> Iterator[Candidate]:
        """Small commits that change source and tests, newest first; merges and the first commit are none."""
        for commit in self._repo.iter_commits("HEAD", no_merges=True):
            if len(commit.parents) == 1 and (found := _candidate(commit, small)):
                yield found

    def changes(self, candidate: Candidate, paths: tuple[str, ...]) -> tuple[Change, ...]:
        """What a commit does to these files. UnicodeDecodeError where one is not UTF-8."""
        old, new = candidate.parent, candidate.commit
        return tuple(Change(path, self.text(old, path), self.text(new, path)) for path in paths)

    def text(self, commit: str, path: str) -> str | None:
        """A file of a commit; None where it has none of that name, or a link or a folder."""
        try:
            blob = self._repo.commit(commit).tree / path
        except KeyError:
            return None
        return blob.data_stream.read().decode() if blob.type == "blob" and blob.mode != git.Blob.link_mode else None

    def head(self) -> str:
        """The id of its newest commit; ValueError where it has none."""
        return self._repo.commit("HEAD").hexsha

    def names(self, commit: str) -> tuple[str, ...]:
        """Every file of a commit."""
        return tuple(str(blob.path) for blob in self._blobs(commit))

    def lay_out(self, commit: str, folder: Path) -> None:
        """Write the files of a commit into an empty folder, byte by byte; submodules are left out."""
        for blob in self._blobs(commit):
            path = folder / str(blob.path)
            if ".git" in path.relative_to(folder).parts or not path.parent.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{commit}: {blob.path} does not stay in its tree")
            path.parent.mkdir(parents=True, exist_ok=True)
            data = blob.data_stream.read()
            if blob.mode == git.Blob.link_mode:
                path.symlink_to(data.decode(errors="surrogateescape"))
                continue
            path.write_bytes(data)
            path.chmod(0o755 if blob.mode & 0o100 else 0o644)

    def _blobs(self, commit: str) -> Iterator[git.Blob]:
        for item in self._repo.commit(commit).tree.traverse():
            if isinstance(item, git.Blob):
                yield item


def _candidate(commit: git.Commit, small: Small) -> Candidate | None:
    """A commit as a candidate; None where it is too big, or changes no source or no tests."""
    files = commit.stats.files
    names = sorted(str(name) for name in files)
    source = tuple(name for name in names if kind_of(name) is Kind.SOURCE)
    tests = tuple(name for name in names if kind_of(name) is Kind.TEST)
    lines = sum(files[name]["lines"] for name in source)
    fits = 0 < len(source) <= small.source_files and 0 < len(tests) <= small.test_files and 0 < lines <= small.lines
    if not fits or not any(name.endswith(".py") for name in tests):
        return None
    message = commit.message if isinstance(commit.message, str) else commit.message.decode(errors="replace")
    return Candidate(commit.hexsha, commit.parents[0].hexsha, commit.committed_datetime.isoformat(), message, source, tests)
