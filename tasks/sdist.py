"""Source distributions from the package index: fetched by pip, checked, unpacked; nothing of them is run; knows no tasks.

pip insists on the metadata of what it downloads and would run the package's build for it. The process that it starts for that is
given a build backend that only copies PKG-INFO instead, whatever the package names, so no line of the package is executed on the host.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

_INSTEAD = '''"""Imported first by every Python that pip starts: the one that builds gets our backend, and no path into the package."""
import os
import sys

if any(word.endswith("_in_process.py") for word in sys.orig_argv):
    names = [name for name in os.environ if name.endswith("_BUILD_BACKEND")]
    for name in [name for name in os.environ if name.endswith("_BACKEND_PATH")]:
        del os.environ[name]
    for name in names:
        os.environ[name] = "greengrad_backend"
    if not names:
        os._exit(97)
'''
_METADATA_ONLY = '''"""A build backend that builds nothing: it hands out the PKG-INFO of a source distribution."""
import email
import pathlib


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    text = pathlib.Path("PKG-INFO").read_text(encoding="utf-8")
    fields = email.message_from_string(text)
    folder = pathlib.Path(metadata_directory) / f"{fields['Name'].replace('-', '_')}-{fields['Version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(text, encoding="utf-8")
    return folder.name
'''


def fetch_sdist(package: str, version: str, sha256: str, cache: Path) -> Path:
    """The source distribution of a pinned release, from `cache` or through pip.

    ValueError where it cannot be had or has another hash; the message is pip's.
    """
    wanted = cache / f"{sha256}.tar.gz"
    if not wanted.is_file():
        with tempfile.TemporaryDirectory(prefix="greengrad-sdist-") as folder:
            found = download_sdist(f"{package}=={version} --hash=sha256:{sha256}", Path(folder))
            cache.mkdir(parents=True, exist_ok=True)
            draft = cache / f"{sha256}.{os.getpid()}"
            shutil.copyfile(found, draft)
            os.replace(draft, wanted)
    return checked(wanted, sha256)


def checked(archive: Path, sha256: str) -> Path:
    """The archive; ValueError where it is not the one that a recipe names."""
    if hash_file(archive) != sha256:
        raise ValueError(f"{archive}: its hash is not the recipe's; remove the file")
    return archive


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write texts below a folder; ValueError where one would lie outside of it."""
    for name, text in files.items():
        path = folder / name
        if not path.parent.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the generated file {name} would lie outside of its tree")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def unpack_sdist(archive: Path, target: Path, exclude: tuple[str, ...] = ()) -> None:
    """Regular files of a source distribution, without its top folder and without the folders and file names in `exclude`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]
            if member.isreg() and parts and not _is_excluded(parts, exclude):
                data = tar.extractfile(member)
                assert data is not None
                path = target.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data.read())
                path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _is_excluded(parts: tuple[str, ...], exclude: tuple[str, ...]) -> bool:
    if any(part in ("..", ".git", "__pycache__") or part.endswith((".egg-info", ".pyc")) for part in parts):
        return True
    return any(parts[: len(wanted)] == wanted for wanted in (PurePosixPath(name).parts for name in exclude))


def download_sdist(requirement: str, folder: Path) -> Path:
    """The source distribution that pip chooses for a requirement; ValueError, with pip's last line, where there is none."""
    backend = folder / "backend"
    backend.mkdir(parents=True)
    (backend / "sitecustomize.py").write_text(_INSTEAD)
    (backend / "greengrad_backend.py").write_text(_METADATA_ONLY)
    (folder / "requirement.txt").write_text(f"{requirement}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517", "--dest", str(folder / "out")]
    command += ["--requirement", str(folder / "requirement.txt")]
    environment = os.environ | {"PYTHONPATH": str(backend)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=300, check=False)
    found = sorted((folder / "out").glob("*.tar.gz"))
    if done.returncode or not found:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.startswith("ERROR: ")]
        why = said[-1].removeprefix("ERROR: ")[:300] if said else "there is no .tar.gz of it"
        raise ValueError(f"pip could not download the source of {requirement.partition(' --hash')[0]}: {why}")
    return found[0]
