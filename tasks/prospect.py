"""A release of the index, or a folder -> the recipe of a suite: what is source, what tests, what these need; by looking alone.

Nothing of the package is run or imported on the host; knows no sandbox. What was found is in the recipe, for a person to change.
"""

import email
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Literal

from .mine_layout import ASIDE, VERSION, Kind, generated, kind_of, runnable, sources
from .mine_pins import RUNNER, Pins, normal, pin
from .mine_requires import SETTINGS, Need, find_needs, project_name
from .recipe import Package, Recipe
from .sdist import download_sdist, hash_file, unpack_sdist
from .snapshot import snapshot

DATASET = "greengrad/mutated"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9.!+_-]+)?")
_BULK = {"doc", "docs", "benchmark", "benchmarks", "bench"}
"""Top folders that no test needs."""


@dataclass(frozen=True, slots=True)
class Request:
    """Which source is to be mutated, and into how many tasks."""

    package: str = ""
    """NAME==VERSION on the index, or NAME for its newest release; "" where `repo` is given."""
    repo: Path | None = None
    """A folder, or a git repository."""
    tasks: int = 20
    seed: int = 0
    split: Literal["train", "test"] = "train"
    modules: tuple[str, ...] = ()
    """Where bugs are planted; () for what is found."""
    tests: tuple[str, ...] = ()
    """Likewise, what pytest is given."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """The recipe that a look at the source gave, the archive, and what became of each requirement."""

    recipe: Recipe
    archive: Path
    pins: Pins


@dataclass(frozen=True, slots=True)
class Source:
    """One archive on this machine."""

    archive: Path
    origin: Literal["pypi", "local"]
    name: str
    """As a person would call it, where the source itself does not say."""
    version: str = ""
    """A commit; "" where the source says."""


def fetch(request: Request, scratch: Path) -> Source:
    """Bring the source into `scratch`; ValueError or FileNotFoundError, in one line, where it cannot be had."""
    if request.repo is not None:
        archive, commit = snapshot(request.repo.expanduser(), scratch)
        version = commit[:12] or hash_file(archive)[:12]
        return Source(archive, "local", request.repo.expanduser().resolve().name.removesuffix(".git"), version)
    if not _NAME.fullmatch(request.package):
        raise ValueError(f"--package {request.package}: write NAME==VERSION, or NAME for the newest release")
    return Source(download_sdist(request.package, scratch / "pip"), "pypi", request.package.partition("==")[0])


def look(request: Request, source: Source, scratch: Path) -> Prospect:
    """Find out how a source is laid out and what its tests need; ValueError where there is nothing to mutate or to test with."""
    folder = scratch / "look"
    shutil.rmtree(folder, ignore_errors=True)
    unpack_sdist(source.archive, folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    settings = {name: (folder / name).read_text(errors="replace") for name in names if SETTINGS.fullmatch(name)}
    metadata = email.message_from_string((folder / "PKG-INFO").read_text(errors="replace") if "PKG-INFO" in names else "")
    version = source.version or str(metadata.get("Version", VERSION))
    own = project_name(settings) or str(metadata.get("Name", source.name))
    modules, tests = request.modules or find_modules(names), request.tests or find_tests(names)
    for path in (*modules, *tests):
        if not (folder / path).exists():
            raise ValueError(f"{source.name} {version}: its source holds no {path}")
    if not modules or not tests:
        raise ValueError(f"{source.name} {version}: its source holds no {'tests that pytest runs' if modules else 'Python package'}")
    pins = pin((*_metadata_needs(metadata), *find_needs(settings)), own)
    code = [(folder / name).read_text(errors="replace") for name in names if kind_of(name) is Kind.SOURCE and name.endswith(".py")]
    made = generated(settings, names, code)
    if source.origin == "pypi":
        made = {name: text.replace(VERSION, version) for name, text in made.items()}
    package = Package(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", own if source.origin == "local" else normal(source.name)),
        version=version,
        sha256=hash_file(source.archive),
        split=request.split,
        tasks=request.tasks,
        sources=sources(names),
        modules=modules,
        tests=tests,
        exclude=tuple(sorted(_BULK & {PurePosixPath(name).parts[0] for name in names})),
        plugins=pins.plugins,
        generated=made,
        origin=source.origin,
    )
    return Prospect(_recipe(request, package, pins), source.archive, pins)


def _recipe(request: Request, package: Package, pins: Pins) -> Recipe:
    return Recipe(
        dataset=DATASET,
        seed=request.seed,
        requirements=pins.requirements if pins.chosen else RUNNER,
        max_lines=25,
        per_function=3,
        statement="behaviour",
        packages=(package,),
    )


def find_modules(names: Sequence[str]) -> tuple[str, ...]:
    """Folders and files in which bugs are planted: packages and modules below src, or at the top; other folders where there is none."""
    python = [PurePosixPath(name) for name in names if name.endswith(".py") and kind_of(name) is Kind.SOURCE]
    below = [path for path in python if path.parts[0] == "src" and len(path.parts) > 1]
    depth = 2 if below else 1
    tops = {"/".join(path.parts[:depth]) for path in below or python if path.parts[0] not in ASIDE}
    packages = {"/".join(path.parts[:-1]) for path in python if path.name == "__init__.py"}
    sure = {top for top in tops if top.endswith(".py") or top in packages}
    return tuple(sorted(sure or tops))


def find_tests(names: Sequence[str]) -> tuple[str, ...]:
    """Folders and files that pytest is given: test folders, and test files that lie elsewhere."""
    found = set()
    for name in runnable([name for name in names if kind_of(name) is Kind.TEST]):
        parts = PurePosixPath(name).parts
        depth = next((at for at, part in enumerate(parts[:-1], 1) if part in ("test", "tests", "testing")), len(parts))
        found.add("/".join(parts[:depth]))
    return tuple(sorted(found))


def _metadata_needs(metadata: Message) -> Iterator[Need]:
    """What a release says that it needs itself, extras left out."""
    for line in metadata.get_all("Requires-Dist", []):
        if "extra ==" not in line and "extra==" not in line:
            yield Need(line, "PKG-INFO Requires-Dist", True)


def differs(request: Request, recipe: Recipe, sha256: str) -> str:
    """What of a request is not what a suite was made of; "" where it is the same. `sha256`: of the source, "" for a release."""
    package = recipe.packages[0]
    name, _, version = request.package.partition("==")
    told = {
        "source": (package.origin, "local" if request.repo is not None else "pypi"),
        "source's content": (package.sha256, sha256 or package.sha256),
        "package": (normal(package.name), normal(name or package.name)),
        "version": (package.version, version or package.version),
        "-n": (package.tasks, request.tasks),
        "--seed": (recipe.seed, request.seed),
        "--split": (package.split, request.split),
        "--modules": (package.modules, request.modules or package.modules),
        "--tests": (package.tests, request.tests or package.tests),
    }
    return ", ".join(name for name, (old, new) in told.items() if old != new)
