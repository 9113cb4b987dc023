"""Source distributions from the package index: fetched by pip, checked, unpacked; nothing of them is run; knows no tasks.

pip insists on the metadata of what it downloads and would run the package's build for it. It is given a build backend that only
copies PKG-INFO instead, so no line of the package is executed on the host.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

_BACKENDS = ("setuptools/build_meta", "hatchling/build", "flit_core/buildapi", "poetry/core/masonry/api", "pdm/backend")
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


class _Legacy:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)


__legacy__ = _Legacy()
'''


def fetch_sdist(package: str, version: str, sha256: str, cache: Path) -> Path:
    """The source distribution of a pinned release, from `cache` or through pip.

    ValueError where it cannot be had or has another hash; the message is pip's.
    """
    wanted = cache / f"{sha256}.tar.gz"
    if not wanted.is_file():
        with tempfile.TemporaryDirectory(prefix="greengrad-sdist-") as folder:
            found = _download(package, version, sha256, Path(folder))
            cache.mkdir(parents=True, exist_ok=True)
            draft = cache / f"{sha256}.{os.getpid()}"
            shutil.copyfile(found, draft)
            os.replace(draft, wanted)
    if hashlib.sha256(wanted.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{wanted}: the hash of {package} {version} is not the recipe's; remove the file")
    return wanted


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


def _download(package: str, version: str, sha256: str, folder: Path) -> Path:
    backend = folder / "backend"
    for module in _BACKENDS:
        path = backend / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(backend).parents[:-1]:
            (backend / parent / "__init__.py").touch()  # a regular package, so that an installed one is not found before it
        path.write_text(_METADATA_ONLY)
    (folder / "requirement.txt").write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517", "--dest", str(folder / "out")]
    command += ["--requirement", str(folder / "requirement.txt")]
    environment = os.environ | {"PYTHONPATH": str(backend)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=300, check=False)
    found = sorted((folder / "out").glob("*.tar.gz"))
    if done.returncode or not found:
        raise ValueError(f"pip could not download {package} {version}: {(done.stderr or done.stdout).strip()[-800:]}")
    return found[0]
