"""`greengrad tasks mutate`: look at a source, write its recipe down, build it; knows neither how bugs are made nor how they are proved."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from sandbox import Backend

from . import lineage
from .base import Suite
from .build import NOTE, SDISTS, Progress, build_suite
from .prospect import Prospect, Request, differs, fetch, look
from .recipe import load_recipe, local_archive
from .sdist import hash_file

_DRAFTS = {".partial", "sources", f"{NOTE}.partial"}
"""What an interruption leaves before there is a recipe."""


async def mutate_suite(request: Request, out: Path, backend: Backend, progress: Progress | None = None) -> Suite:
    """A suite of bugs planted in one release or folder; the same call goes on with an interrupted build.

    ValueError where the source cannot be had or tested, or the folder holds another suite; a folder that was new is then not left behind.
    """
    new = await asyncio.to_thread(_open, request, out)
    try:
        return await build_suite(out / NOTE, out, backend, progress)
    except (ValueError, FileNotFoundError):
        if new and not any(entry.get("kept") for entry in lineage.entries(out)):
            shutil.rmtree(out, ignore_errors=True)
        raise


def _open(request: Request, out: Path) -> bool:
    """Write the recipe of a new suite, or see that it is the one of this request; True where the folder is new."""
    if (out / NOTE).is_file():
        _check(request, out)
        return False
    if out.exists() and (not out.is_dir() or any(path.name not in _DRAFTS for path in out.iterdir())):
        raise ValueError(f"{out} is not empty and holds no {NOTE}: choose another folder")
    _prepare(request, out)
    return True


def _check(request: Request, out: Path) -> None:
    """See that a suite was begun by the same request; a release is not fetched again."""
    sha256 = ""
    if request.repo is not None:
        with tempfile.TemporaryDirectory(prefix="greengrad-look-") as scratch:
            sha256 = hash_file(fetch(request, Path(scratch)).archive)
    if other := differs(request, load_recipe(out / NOTE), sha256):
        raise ValueError(f"{out} holds a suite of another request ({other}): choose another folder or remove it")


def _prepare(request: Request, out: Path) -> None:
    """Look at the source, then write the suite's recipe, the source and what was found."""
    with tempfile.TemporaryDirectory(prefix="greengrad-look-") as scratch:
        found = look(request, fetch(request, Path(scratch)), Path(scratch))
        package = found.recipe.packages[0]
        kept = out / (local_archive(package) if package.origin == "local" else f"{SDISTS}/{package.sha256}.tar.gz")
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found.archive, kept)
    (out / f"{NOTE}.partial").write_text(found.recipe.model_dump_json(indent=2))
    (out / f"{NOTE}.partial").replace(out / NOTE)
    _tell(found, out)


def _tell(found: Prospect, out: Path) -> None:
    """What was looked for, in lineage.jsonl."""
    package = found.recipe.packages[0]
    entry = {"step": "look", "package": package.name, "version": package.version, "modules": package.modules, "tests": package.tests}
    entry |= {"generated": sorted(package.generated), "requirements": found.recipe.requirements}
    lineage.append(out, entry | {"chosen": found.pins.chosen, "dropped": found.pins.dropped})
