"""A folder or a git repository of this machine -> one archive with the same bytes everywhere; runs nothing of it, knows no tasks.

Of a git repository the files of its newest commit are taken (mine.py reads them as objects), of a folder what is no cache, link or
hidden file.
"""

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from .mine import Mine

MAX_BYTES = 200 << 20
_LEFT_OUT = {"__pycache__", "build", "dist", "node_modules", "venv", "env"}


def snapshot(repo: Path, scratch: Path) -> tuple[Path, str]:
    """An archive of a folder's files in `scratch`, and the commit's id ("" for a plain folder).

    FileNotFoundError where there is no such folder, ValueError where it is too big or holds no commit.
    """
    if not repo.is_dir():
        raise FileNotFoundError(f"{repo}: no such folder")
    tree = scratch / "snapshot"
    tree.mkdir()
    commit = _lay_out(repo, tree, scratch) if is_git(repo) else ""
    if not commit:
        _copy(repo, tree)
    archive = scratch / "snapshot.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in _files(tree):
            _add(tar, tree / name, name)
    return archive, commit


def is_git(folder: Path) -> bool:
    """Whether a folder is a git work tree or a bare repository."""
    return (folder / ".git").exists() or ((folder / "HEAD").is_file() and (folder / "objects").is_dir())


def _lay_out(repo: Path, tree: Path, scratch: Path) -> str:
    mine = Mine(str(repo), scratch / "repo.git", history=False)
    try:
        commit = mine.head()
        mine.lay_out(commit, tree)
    finally:
        mine.close()
    return commit


def _copy(folder: Path, tree: Path) -> None:
    total = 0
    for name in _files(folder):
        if any(part.startswith(".") or part in _LEFT_OUT or part.endswith(".egg-info") for part in Path(name).parts):
            continue
        total += (folder / name).stat().st_size
        if total > MAX_BYTES:
            raise ValueError(f"{folder}: more than {MAX_BYTES >> 20} MB of files: give a git repository, or a folder of source alone")
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, tree / name)


def _files(folder: Path) -> Iterator[str]:
    """Regular files below a folder, by name; links are neither taken nor followed."""
    found = [Path(top, name) for top, _, names in os.walk(folder) for name in names]
    return iter(sorted(path.relative_to(folder).as_posix() for path in found if path.is_file() and not path.is_symlink()))


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(f"source/{name}")
    info.size = path.stat().st_size
    info.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
    with path.open("rb") as file:
        tar.addfile(info, file)
