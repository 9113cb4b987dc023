"""How a Python repository is laid out: what is source, what are tests, from where it is imported, what its build writes; pure text."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from .mine_requires import project_name

ASIDE = {"doc", "docs", "example", "examples", "benchmark", "benchmarks", "bench", "scripts", "tools", "tasks", "misc", "ci", ".github"}
"""Top folders that hold no source."""
_TEST_FOLDERS = {"test", "tests", "testing"}
_TEST_FILE = re.compile(r"(test_.*|.*_test|tests|conftest)\.py")
_RUN = re.compile(r"(test.*|.*_tests?)\.py")
_TOOLS = {"setup.py", "noxfile.py", "tasks.py", "fabfile.py", "conf.py", "versioneer.py"}
_DATA = {".py", ".pyi", ".lark", ".json"}
_METADATA = re.compile(r"importlib[._]metadata|pkg_resources")
VERSION = "0.0.0"
"""Of a package whose version its build backend would take from git's tags, which a sealed tree has not."""


class Kind(Enum):
    """What a file is to a task."""

    SOURCE = "source"
    TEST = "test"
    OTHER = "other"


def kind_of(name: str) -> Kind:
    """Source, a test (with its data), or something else: documentation, settings, tools."""
    path = PurePosixPath(name)
    if path.parts[0] in ASIDE or name.startswith('"'):
        return Kind.OTHER
    if _TEST_FOLDERS & set(path.parts[:-1]) or _TEST_FILE.fullmatch(path.name):
        return Kind.TEST
    return Kind.SOURCE if path.suffix in _DATA and path.name not in _TOOLS else Kind.OTHER


def runnable(names: Sequence[str]) -> tuple[str, ...]:
    """The files that pytest is asked to run."""
    return tuple(name for name in names if _RUN.fullmatch(PurePosixPath(name).name))


def sources(names: Sequence[str]) -> tuple[str, ...]:
    """Folders from which the packages are imported: "." and, where it holds packages, "src"."""
    return ("src", ".") if any(name.startswith("src/") and name.endswith(".py") for name in names) else (".",)


def generated(settings: Mapping[str, str], names: Sequence[str], code: Sequence[str]) -> dict[str, str]:
    """What the build backend would write beside the source, and the tree lacks: a version file, metadata (path -> text).

    `settings`: path -> text of the files at the top; `names`: all files; `code`: the texts of the source files.
    """
    files: dict[str, str] = {}
    path = _version_file(settings)
    if path and path not in names:
        files[path] = f'__version__ = version = "{VERSION}"\n__version_tuple__ = version_tuple = (0, 0, 0)\n'
    name = project_name(settings)
    if name and any(_METADATA.search(text) for text in code):
        top = "src/" if sources(names)[0] == "src" else ""
        info = f"{top}{re.sub(r'[-_.]+', '_', name)}.egg-info/PKG-INFO"
        files[info] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {_version(settings)}\n"
    return files


def _version_file(settings: Mapping[str, str]) -> str:
    tool = _toml(settings).get("tool", {})
    scm, hatch = tool.get("setuptools_scm", {}), tool.get("hatch", {}).get("build", {}).get("hooks", {}).get("vcs", {})
    found = scm.get("version_file") or scm.get("write_to") or hatch.get("version-file") or ""
    if not found and (match := re.search(r"""["']?write_to["']?\s*[=:]\s*["']([^"']+\.py)["']""", settings.get("setup.py", ""))):
        found = match[1]
    return found if isinstance(found, str) and found.endswith(".py") and ".." not in found and not found.startswith("/") else ""


def _version(settings: Mapping[str, str]) -> str:
    table = _toml(settings)
    found = table.get("project", {}).get("version") or table.get("tool", {}).get("poetry", {}).get("version")
    return found if isinstance(found, str) else VERSION


def _toml(settings: Mapping[str, str]) -> dict[str, Any]:
    try:
        return tomllib.loads(settings.get("pyproject.toml", ""))
    except tomllib.TOMLDecodeError:
        return {}
