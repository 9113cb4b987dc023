"""What a repository's tests need -> pinned pure-Python wheels, chosen by pip in a dry run; installs nothing, knows no repository."""

import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from .mine_requires import Need

RUNNER = ("iniconfig==2.1.0", "packaging==25.0", "pluggy==1.6.0", "pygments==2.19.2", "pytest==8.4.1")
"""The test runner of every mined task, as in the recipes; what a repository says of them is not asked."""
PLUGINS = {
    "pytest-mock": "pytest_mock",
    "pytest-asyncio": "pytest_asyncio.plugin",
    "pytest-timeout": "pytest_timeout",
    "pytest-httpserver": "pytest_httpserver.pytest_plugin",
}
"""Plugins that tests may need, and the module to name with -p: none is loaded by itself. Others are left out."""
_TOOLS = re.compile(
    r"tox(-.*)?|nox|coverage|coveralls|codecov|black|mypy|pyright|ruff|flake8.*|pylint|isort|pre-commit|build|twine|wheel|setuptools(-scm)?"
    r"|pip(-tools)?|uv|virtualenv|sphinx.*|furo|myst-parser|pallets-sphinx-themes|types-.*|bump2?version|invoke|towncrier|hatch(ling)?"
    r"|flit(-core)?|poetry(-core)?|check-manifest|docutils-stubs|pytest-.*|gunicorn|ipython|asv|interegular-stubs|commitizen|zest.*|readme-renderer"
)
"""What checks, builds or documents a repository, and what its tests do not import."""


@dataclass(frozen=True, slots=True)
class Pins:
    """What an environment holds, and what became of every requirement."""

    requirements: tuple[str, ...]
    plugins: tuple[str, ...]
    """Modules for -p."""
    chosen: tuple[str, ...]
    """"requirement (where it stands)"."""
    dropped: tuple[str, ...]
    """"requirement (where it stands): why"."""


def pin(needs: Sequence[Need], own: str) -> Pins:
    """Choose wheels for the needs of the repository that makes the distribution `own`.

    ValueError where the runner itself needs `own` (its release would be imported in place of the tree), or what the package itself
    needs is to be had as compiled code alone.
    """
    runner = {Requirement(line).name for line in RUNNER}
    if normal(own) in runner:
        raise ValueError(f"{own} is part of the test runner: its installed release would stand in for the tree")
    wanted: dict[str, Need] = {}
    dropped = []
    for need in needs:
        if why := _why_not(need.line, own, runner):
            dropped.append(f"{need.line} ({need.source}): {why}")
        else:
            wanted.setdefault(normal(Requirement(need.line).name), need)
    lines = {_line(need.line): need for need in wanted.values()}
    found, failed = _choose(tuple(lines))
    for line, why in failed.items():
        if lines[line].runtime:
            raise ValueError(f"it needs {line}, of which there is no pure-Python wheel")
        dropped.append(f"{line} ({lines[line].source}): {why}")
    if any(normal(pinned.partition("==")[0]) == normal(own) for pinned in found):
        raise ValueError(f"its requirements need {own} itself: the installed release could hold the fix")
    kept = [f"{line} ({need.source})" for line, need in lines.items() if line not in failed]
    plugins = tuple(PLUGINS[name] for name in sorted(wanted) if name in PLUGINS and _line(wanted[name].line) not in failed)
    return Pins(found, plugins, tuple(kept), tuple(dropped))


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _why_not(line: str, own: str, runner: set[str]) -> str:
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return "not a plain requirement"
    name = normal(requirement.name)
    if requirement.url:
        return "not from the index"
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return "for another Python or system"
    if name == normal(own):
        return "the package itself"
    if name in runner:
        return "the test runner is our own"
    return "a tool, not needed to run tests" if name not in PLUGINS and _TOOLS.fullmatch(name) else ""


def _line(line: str) -> str:
    requirement = Requirement(line)
    requirement.marker = None
    return str(requirement)


def _choose(lines: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Pins for all lines, or for those that can be had, and why the others cannot."""
    pins = _resolve(lines)
    if isinstance(pins, tuple):
        return pins, {}
    failed: dict[str, str] = {}
    kept: tuple[str, ...] = ()
    for line in lines:
        pins = _resolve((*kept, line))
        if isinstance(pins, tuple):
            kept += (line,)
        else:
            failed[line] = pins
    final = _resolve(kept)
    assert isinstance(final, tuple)
    return final, failed


@functools.cache
def _resolve(lines: tuple[str, ...]) -> tuple[str, ...] | str:
    """Pins of the runner and these, pure Python alone; or why there are none, in one line."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--dry-run"]
    command += ["--ignore-installed", "--only-binary", ":all:", "--platform", "any", "--implementation", "py", "--abi", "none"]
    with tempfile.TemporaryDirectory(prefix="greengrad-pins-") as folder:
        command += ["--report", f"{folder}/report.json", "--target", f"{folder}/site", *RUNNER, *lines]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, check=False)
        if done.returncode:
            return "no pure-Python wheel: " + (done.stderr.strip().splitlines() or ["pip failed"])[-1].removeprefix("ERROR: ")[:160]
        with open(f"{folder}/report.json", encoding="utf-8") as file:
            report = json.load(file)
    return tuple(sorted(_pinned(item) for item in report["install"]))


def _pinned(item: dict[str, Any]) -> str:
    """name==version with the wheel's hash: the same version may have a compiled wheel as well, which pip would rather take."""
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{item['metadata']['name'].lower()}=={item['metadata']['version']} --hash=sha256:{digest}"
