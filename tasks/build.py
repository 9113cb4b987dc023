"""Recipe -> suite: real packages, planted bugs, and lists of tests from runs before and after the fix; knows no model.

Per package: unpack, run its tests once with a call trace, then try mutations in an order that the seed fixes. A mutation that a
few tests notice becomes a task with a tree of its own (the bug in it, the test files that notice it taken out), and is kept only
if the official evaluation, run in fresh sandboxes on that tree, is resolved with the fix and unresolved without. Every test of
its lists ended alike in three runs. Interrupted, it goes on: lineage.jsonl says what was tried.
"""

import asyncio
import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from sandbox import Backend, Image, Pool, ResourceExhausted, Sandbox, SandboxError, ensure_environment, make_tree

from . import lineage
from .base import Suite, Task
from .lease import machine
from .mutate import Mutation
from .plant import LIMITS, Workshop, make_task
from .recipe import Package, Recipe, load_recipe, local_archive
from .screen import Subject, find_candidates, run_baseline, screen
from .script import dockerfile
from .sdist import checked, fetch_sdist, unpack_sdist, write_files
from .store import load_suite, write_config, write_task

Progress = Callable[[int, int, str], None]
"""(tasks kept so far, tasks wanted, one line on what was just tried)"""
NOTE = "recipe.json"
"""Whose suite it is."""
SDISTS = ".partial/sdists"
PACKAGES_AT_ONCE = 2
MOST_JOBS = 8
REUSE = 32
"""Runs of tests in one machine, which is wiped in between: what runs here is a package's own tests, not an agent's code."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kitchen:
    """What all packages of one build share."""

    recipe: Recipe
    out: Path
    workshop: Workshop
    progress: Progress
    benches: int
    """Mutations of one package that are tried at once."""


async def build_suite(
    recipe: Recipe | str | Path, out: Path, backend: Backend, progress: Progress | None = None, jobs: int | None = None
) -> Suite:
    """Materialise a recipe (or its name, or its file) in a folder; the same call goes on with an interrupted build.

    Sources that are on no index are looked for in the folder `sources` beside the recipe's file, or in that of the suite.
    `jobs`: mutations that are tried at once; as many as there are cores, and never seen in the suite.
    ValueError where the folder holds the suite of another recipe, or a package cannot be had.
    """
    cooked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    _claim(out, cooked, out if isinstance(recipe, Recipe) else Path(recipe).parent)
    at_once = min(PACKAGES_AT_ONCE, len(cooked.packages))
    benches = max(1, (jobs or min(os.cpu_count() or 1, MOST_JOBS)) // at_once)
    pool = Pool(backend, LIMITS, 2 * at_once * benches, ahead=1, reuse=REUSE)
    with tempfile.TemporaryDirectory(prefix="greengrad-build-") as scratch:
        kitchen = _Kitchen(cooked, out, Workshop(pool, "", Path(scratch)), progress or (lambda done, total, line: None), benches)
        gate = asyncio.Semaphore(at_once)
        async with pool:
            await _all([_package(kitchen, package, gate) for package in sorted(cooked.packages, key=lambda p: -p.tasks)])
    shutil.rmtree(out / ".partial", ignore_errors=True)
    (out / "tasks").mkdir(exist_ok=True)
    return load_suite(out)


def _claim(out: Path, recipe: Recipe, source: Path) -> None:
    """Note whose suite this is, or find that it is ours; sources that are on no index come from the folder of the recipe."""
    note = out / NOTE
    text = recipe.model_dump_json(indent=2)
    if note.exists() and note.read_text() != text:
        raise ValueError(f"{out} holds the suite of another recipe (recipe.json differs): choose another folder or remove it")
    local = [local_archive(package) for package in recipe.packages if package.origin == "local"]
    missing = [name for name in local if not (out / name).is_file()]
    for name in missing:
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source / name}: the recipe needs this source, which is on no index")
    write_config(out, recipe.dataset, ("train", "test"))
    for name in missing:
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, out / name)
    note.write_text(text)


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All of them; the first failure ends the others, and is the one that is seen."""
    running = [asyncio.ensure_future(item) for item in work]
    try:
        await asyncio.gather(*running)
    finally:
        for item in running:
            item.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _package(kitchen: _Kitchen, package: Package, gate: asyncio.Semaphore) -> None:
    """Make the tasks of one package; a machine that fails is replaced, and the work goes on where it was."""
    retrying = AsyncRetrying(stop=stop_after_attempt(5), retry=retry_if_exception_type((SandboxError, ResourceExhausted)), reraise=True)
    async with gate:
        await retrying(_try_package, kitchen, package)


async def _try_package(kitchen: _Kitchen, package: Package) -> None:
    tried, kept = _history(kitchen.out, package)
    if kept >= package.tasks:
        return
    environment = await asyncio.to_thread(ensure_environment, (*kitchen.recipe.requirements, *package.requirements))
    kitchen = replace(kitchen, workshop=replace(kitchen.workshop, environment=environment))
    folder = await asyncio.to_thread(_unpack, kitchen, package)
    tree = kitchen.workshop.scratch / f"{package.name}.tar"
    await asyncio.to_thread(make_tree, folder, tree)
    async with AsyncExitStack() as stack:
        image = Image(kitchen.workshop.environment, tree)
        benches = [await stack.enter_async_context(machine(kitchen.workshop.machines, image, LIMITS)) for _ in range(kitchen.benches)]
        subject = Subject(kitchen.recipe, package, folder, await run_baseline(benches[0], kitchen.recipe, package))
        found = await asyncio.to_thread(find_candidates, subject)
        trials = _trials(kitchen, subject, benches, [mutation for mutation in found if mutation.id not in tried])
        await stack.enter_async_context(aclosing(trials))
        async for mutation, result in trials:
            await _keep(kitchen, subject, mutation, result)
            kept += isinstance(result, Task)
            if kept >= package.tasks:
                return
    _LOG.warning("%s %s gave %d of the %d tasks wanted: its candidates are used up", package.name, package.version, kept, package.tasks)


def _history(out: Path, package: Package) -> tuple[set[str], int]:
    """Mutations of a package that were tried, and how many of them are tasks."""
    mine = [entry for entry in lineage.entries(out) if entry.get("step") == "build" and entry["package"] == package.name]
    return {entry["mutation"] for entry in mine}, sum(entry["kept"] for entry in mine)


def _unpack(kitchen: _Kitchen, package: Package) -> Path:
    if package.origin == "local":
        archive = checked(kitchen.out / local_archive(package), package.sha256)
    else:
        archive = fetch_sdist(package.name, package.version, package.sha256, kitchen.out / SDISTS)
    folder = kitchen.workshop.scratch / package.name
    shutil.rmtree(folder, ignore_errors=True)
    unpack_sdist(archive, folder, package.exclude)
    write_files(folder, package.generated)
    return folder


async def _trials(
    kitchen: _Kitchen, subject: Subject, benches: Sequence[Sandbox], mutations: Sequence[Mutation]
) -> AsyncGenerator[tuple[Mutation, Task | str], None]:
    """What becomes of each mutation, in their order, whichever is known first: with a bench for each, the next ones are tried meanwhile."""
    free: asyncio.Queue[Sandbox] = asyncio.Queue()
    for bench in benches:
        free.put_nowait(bench)

    async def attempt(mutation: Mutation) -> Task | str:
        bench = await free.get()
        try:
            screening = await screen(bench, mutation, subject)
        finally:
            free.put_nowait(bench)
        return screening.why or await make_task(kitchen.workshop, subject, mutation, screening)

    ahead: deque[tuple[Mutation, asyncio.Task[Task | str]]] = deque()
    waiting = iter(mutations)
    try:
        while True:
            ahead.extend((mutation, asyncio.ensure_future(attempt(mutation))) for mutation in islice(waiting, len(benches) - len(ahead)))
            if not ahead:
                return
            mutation, running = ahead[0]
            try:
                result = await running
            except ResourceExhausted:
                _note(kitchen, subject.package, mutation, "its tests use up the machine")
                raise
            ahead.popleft()
            yield mutation, result
    finally:
        for _, running in ahead:
            running.cancel()
        await asyncio.gather(*(running for _, running in ahead), return_exceptions=True)


async def _keep(kitchen: _Kitchen, subject: Subject, mutation: Mutation, result: Task | str) -> None:
    """Write a task to the suite, and what became of its mutation to the lineage."""
    if isinstance(result, Task):
        await asyncio.to_thread(write_task, kitchen.out, result, dockerfile(kitchen.workshop.environment), kitchen.recipe.dataset)
        shutil.rmtree(kitchen.workshop.scratch / result.instance_id)
    _note(kitchen, subject.package, mutation, result)


def _note(kitchen: _Kitchen, package: Package, mutation: Mutation, result: Task | str) -> None:
    """One line of lineage: the task that was kept, or why there is none."""
    entry: dict[str, Any] = {"step": "build", "package": package.name, "version": package.version, "mutation": mutation.id}
    entry |= {"kind": mutation.kind, "path": mutation.path, "function": mutation.function, "line": mutation.line}
    if isinstance(result, Task):
        counts = {"fail_to_pass": len(result.fail_to_pass), "pass_to_pass": len(result.pass_to_pass)}
        entry |= {"kept": True, "instance_id": result.instance_id, "gold": "resolved", "noop": "unresolved", **counts}
    else:
        entry |= {"kept": False, "why": result}
    lineage.append(kitchen.out, entry)
    kept = sum(1 for found in lineage.entries(kitchen.out) if found.get("kept"))
    wanted = sum(package.tasks for package in kitchen.recipe.packages)
    kitchen.progress(kept, wanted, f"{package.name} {mutation.id}: {'kept' if isinstance(result, Task) else result}")
