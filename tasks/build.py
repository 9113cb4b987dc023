"""Recipe -> suite: real packages, planted bugs, and lists of tests from runs before and after the fix; knows no model.

Per package: unpack, run its tests once with a call trace, then try mutations in an order that the seed fixes. A mutation that a
few tests notice becomes a task with a tree of its own (the bug in it, the test files that notice it taken out), and is kept only
if the official evaluation, run in fresh sandboxes on that tree, is resolved with the fix and unresolved without. Every test of
its lists ended alike in three runs. Interrupted, it goes on: lineage.jsonl says what was tried.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from sandbox import Backend, Image, Limits, ResourceExhausted, Sandbox, SandboxError, apply_patch, ensure_environment, make_tree

from . import lineage
from .base import Outcome, Suite, Task
from .grade import LOG_BYTES, Evaluation, judge, machine, run_tests
from .mutate import Mutation, choose_mutations, find_mutations, mutate
from .patches import diff_text, split_lines
from .recipe import Package, Recipe, load_recipe
from .screen import Run, Screening, is_candidate, run_baseline, screen
from .script import dockerfile, eval_script, pytest_command
from .sdist import fetch_sdist, unpack_sdist
from .statement import write_statement
from .store import load_suite, write_config, write_task
from .swebench import read_log

Progress = Callable[[int, int, str], None]
"""(tasks kept so far, tasks wanted, one line on what was just tried)"""
LIMITS = Limits(memory_mb=1024, disk_mb=512, output_bytes=LOG_BYTES, episode_seconds=3600.0)
PACKAGES_AT_ONCE = 2
TEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Kitchen:
    """What all packages of one build share."""

    recipe: Recipe
    out: Path
    backend: Backend
    environment: str
    scratch: Path
    progress: Progress


@dataclass(frozen=True, slots=True)
class _Bench:
    """One package, unpacked, with its tests run once."""

    kitchen: _Kitchen
    package: Package
    folder: Path
    baseline: Run


async def build_suite(recipe: Recipe | str | Path, out: Path, backend: Backend, progress: Progress | None = None) -> Suite:
    """Materialise a recipe (or its name, or its file) in a folder; the same call goes on with an interrupted build.

    ValueError where the folder holds the suite of another recipe, or a package cannot be had.
    """
    cooked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    _claim(out, cooked)
    environment = await asyncio.to_thread(ensure_environment, cooked.requirements)
    with tempfile.TemporaryDirectory(prefix="greengrad-build-") as scratch:
        kitchen = _Kitchen(cooked, out, backend, environment, Path(scratch), progress or (lambda done, total, line: None))
        gate = asyncio.Semaphore(PACKAGES_AT_ONCE)
        await _all([_package(kitchen, package, gate) for package in sorted(cooked.packages, key=lambda p: -p.tasks)])
    shutil.rmtree(out / ".partial", ignore_errors=True)
    return load_suite(out)


def _claim(out: Path, recipe: Recipe) -> None:
    """Note whose suite this is, or find that it is ours."""
    note = out / "recipe.json"
    text = recipe.model_dump_json(indent=2)
    if note.exists() and note.read_text() != text:
        raise ValueError(f"{out} holds the suite of another recipe (recipe.json differs): choose another folder or remove it")
    write_config(out, recipe.dataset, ("train", "test"))
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
    folder = await asyncio.to_thread(_unpack, kitchen, package)
    tree = kitchen.scratch / f"{package.name}.tar"
    await asyncio.to_thread(make_tree, folder, tree)
    async with machine(kitchen.backend, Image(kitchen.environment, tree), LIMITS) as sandbox:
        bench = _Bench(kitchen, package, folder, await run_baseline(sandbox, package))
        for mutation in _candidates(bench):
            if mutation.id not in tried and kept < package.tasks:
                kept += await _try_mutation(bench, sandbox, mutation)


def _history(out: Path, package: Package) -> tuple[set[str], int]:
    """Mutations of a package that were tried, and how many of them are tasks."""
    mine = [entry for entry in lineage.entries(out) if entry.get("package") == package.name]
    return {entry["mutation"] for entry in mine}, sum(entry["kept"] for entry in mine)


def _unpack(kitchen: _Kitchen, package: Package) -> Path:
    archive = fetch_sdist(package.name, package.version, package.sha256, kitchen.out / ".partial" / "sdists")
    folder = kitchen.scratch / package.name
    shutil.rmtree(folder, ignore_errors=True)
    unpack_sdist(archive, folder, package.exclude)
    return folder


def _candidates(bench: _Bench) -> list[Mutation]:
    """Mutations of functions that tests call, in the order in which they are tried."""
    recipe, called = bench.kitchen.recipe, bench.baseline.calls
    found: list[Mutation] = []
    for path in sorted({path for path, _ in called if _is_planted(path, bench.package)}):
        try:
            source = (bench.folder / path).read_bytes().decode()
        except UnicodeDecodeError:
            continue
        found += find_mutations(source, path, min_lines=recipe.min_lines, max_lines=recipe.max_lines)
    likely = [mutation for mutation in found if is_candidate(mutation, bench.baseline, recipe)]
    return choose_mutations(likely, recipe.seed, recipe.per_function)


def _is_planted(path: str, package: Package) -> bool:
    below = [any(path == top or path.startswith(f"{top}/") for top in tops) for tops in (package.modules, package.tests)]
    return below == [True, False] and path.endswith(".py")


async def _try_mutation(bench: _Bench, sandbox: Sandbox, mutation: Mutation) -> bool:
    """Screen a mutation, make it a task if it is one, and write down what became of it; True where a task was kept."""
    kitchen = bench.kitchen
    try:
        screening = await screen(sandbox, bench.folder, mutation, kitchen.recipe, bench.package, bench.baseline)
    except ResourceExhausted:
        _note(bench, mutation, None, "its tests use up the machine")
        raise
    task, why = (None, screening.why) if screening.why else await _make_task(bench, mutation, screening)
    if task is not None:
        await asyncio.to_thread(write_task, kitchen.out, task, dockerfile(kitchen.environment), kitchen.recipe.dataset)
        shutil.rmtree(kitchen.scratch / task.instance_id)
    _note(bench, mutation, task, why)
    return task is not None


def _note(bench: _Bench, mutation: Mutation, task: Task | None, why: str) -> None:
    entry: dict[str, Any] = {"step": "build", "package": bench.package.name, "version": bench.package.version, "mutation": mutation.id}
    entry |= {"kind": mutation.kind, "path": mutation.path, "function": mutation.function, "line": mutation.line, "kept": task is not None}
    if task is None:
        entry["why"] = why
    else:
        counts = {"fail_to_pass": len(task.fail_to_pass), "pass_to_pass": len(task.pass_to_pass)}
        entry |= {"instance_id": task.instance_id, "gold": "resolved", "noop": "unresolved", **counts}
    lineage.append(bench.kitchen.out, entry)
    kept = sum(1 for found in lineage.entries(bench.kitchen.out) if found.get("kept"))
    wanted = sum(package.tasks for package in bench.kitchen.recipe.packages)
    bench.kitchen.progress(kept, wanted, f"{bench.package.name} {mutation.id}: {why or 'kept'}")


async def _make_task(bench: _Bench, mutation: Mutation, screening: Screening) -> tuple[Task | None, str]:
    """A task from a mutation that tests notice, proved by real runs; or why it is none."""
    try:
        task = await asyncio.to_thread(_lay_out, bench, mutation, screening)
    except UnicodeDecodeError:
        return None, "its tests are not UTF-8"
    before = await _evaluate(bench.kitchen.backend, task, "")
    after = await _evaluate(bench.kitchen.backend, task, task.gold_patch)
    fail_to_pass, pass_to_pass = _expected(task, before, after, bench.baseline)
    messages = {test: screening.messages[test] for test in fail_to_pass if test in screening.messages}
    statement = write_statement(mutation, messages, _right_line(bench, mutation))
    task = replace(task, fail_to_pass=fail_to_pass, pass_to_pass=pass_to_pass, problem_statement=statement)
    if not fail_to_pass:
        return None, "no test fails before and passes after in the official evaluation"
    if judge(task, after).outcome is not Outcome.RESOLVED or judge(task, before).outcome is not Outcome.UNRESOLVED:
        return None, "the official evaluation does not tell the fix from the bug"
    return task, ""


async def _evaluate(backend: Backend, task: Task, patch: str) -> Evaluation:
    async with machine(backend, task.image, LIMITS) as sandbox:
        if patch and not await apply_patch(sandbox, patch):
            raise ValueError(f"{task.instance_id}: its gold patch does not apply to its own tree")
        return await run_tests(sandbox, task)


def _expected(task: Task, before: Evaluation, after: Evaluation, baseline: Run) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """FAIL_TO_PASS and PASS_TO_PASS: tests whose status the official parser and the witness agree on, in every run."""
    old, new = read_log(task, before.log).tests, read_log(task, after.log).tests
    sure = [
        test
        for test, status in new.items()
        if status == "PASSED" == after.witness.statuses.get(test)
        and old.get(test) == before.witness.statuses.get(test)
        and baseline.outcomes.get(test) == "passed"
    ]
    failing = tuple(sorted(test for test in sure if old.get(test) in ("FAILED", "ERROR")))
    return failing, tuple(sorted(test for test in sure if old.get(test) == "PASSED"))


def _lay_out(bench: _Bench, mutation: Mutation, screening: Screening) -> Task:
    """The tree with the bug and without the tests that notice it, and the task around it; its lists are still empty."""
    kitchen, package = bench.kitchen, bench.package
    instance_id = f"{package.name}__{mutation.id}"
    scratch = kitchen.scratch / instance_id
    shutil.copytree(bench.folder, scratch / "repo", dirs_exist_ok=True)
    right = (bench.folder / mutation.path).read_bytes().decode()
    wrong = mutate(right, mutation)
    (scratch / "repo" / mutation.path).write_bytes(wrong.encode())
    hidden = [(path, (bench.folder / path).read_bytes().decode()) for path in screening.files]
    for path, _ in hidden:
        (scratch / "repo" / path).unlink()
    commit = make_tree(scratch / "repo", scratch / "tree.tar")
    test_patch = "".join(diff_text(path, None, text) for path, text in hidden)
    return Task(
        instance_id=instance_id,
        repo=f"pypi/{package.name}",
        version=package.version,
        base_commit=commit,
        problem_statement="",
        image=Image(kitchen.environment, scratch / "tree.tar"),
        gold_patch=diff_text(mutation.path, wrong, right),
        test_patch=test_patch,
        eval_script=eval_script(commit, test_patch, pytest_command(package.sources, screening.files)),
        log_parser="parse_log_pytest",
        fail_to_pass=(),
        pass_to_pass=(),
        split=package.split,
        test_seconds=TEST_SECONDS,
        files=(mutation.path,),
        requirements=kitchen.recipe.requirements,
    )


def _right_line(bench: _Bench, mutation: Mutation) -> str:
    """The line that the fix restores."""
    return split_lines((bench.folder / mutation.path).read_bytes().decode())[mutation.line - 1]
