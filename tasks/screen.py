"""One package in one sandbox: which tests pass, which functions they call, and which of them notice a planted bug.

Nothing here becomes part of a task: a candidate that survives is built and run again from its own tree (build.py).
"""

import asyncio
import json
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sandbox import WORKDIR, Sandbox

from .mutate import Mutation, choose_mutations, find_mutations, mutate
from .recipe import Package, Recipe
from .script import pytest_command

PLUGIN = "greengrad_record"
BASELINE_SECONDS = 300.0
CROWD = 3
"""A function that more than so many times `max_failing` tests call is left alone: most of its bugs break most of them."""
PATIENCE = 8.0
"""A bug that makes the tests hang is no task: they may take so much longer than before, and so many seconds more."""


@dataclass(frozen=True, slots=True)
class Run:
    """How tests ended, and who called what."""

    outcomes: dict[str, str]
    """Test id -> passed, skipped, failed."""
    seconds: dict[str, float]
    messages: dict[str, str]
    """Test id -> the message of its failure."""
    calls: dict[tuple[str, int], frozenset[str]] = field(default_factory=dict)
    """(path, first line of a function) -> tests that call it; "" stands for imports and collection."""
    lines: dict[tuple[str, int], frozenset[str]] = field(default_factory=dict)
    """(path, line) -> tests that come to it, in functions that are no crowd's."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A package under the knife: unpacked in `folder`, its tests run once."""

    recipe: Recipe
    package: Package
    folder: Path
    baseline: Run


@dataclass(frozen=True, slots=True)
class Screening:
    """What the tests made of a mutation: `why` it is no task, or the files of the tests that notice it and their messages."""

    why: str = ""
    files: tuple[str, ...] = ()
    messages: dict[str, str] = field(default_factory=dict)


def file_of(test: str) -> str:
    """The file of a pytest id."""
    return test.split("::", 1)[0]


async def run_baseline(sandbox: Sandbox, recipe: Recipe, package: Package) -> Run:
    """All tests of the untouched package, with the calls they make and the lines they come to (ValueError where they do not run at all)."""
    follow = {"GREENGRAD_FOLLOW": ":".join(package.modules), "GREENGRAD_CROWD": str(CROWD * recipe.max_failing)}
    run, output = await _run(sandbox, package, package.tests, BASELINE_SECONDS, follow)
    if run is None or "passed" not in run.outcomes.values():
        raise ValueError(f"{package.name} {package.version}: its tests do not run in the sandbox: {output[-600:].strip()}")
    return run


def calling_tests(mutation: Mutation, baseline: Run) -> frozenset[str]:
    """Tests that call the mutated function; none where it is called at import (its bug would break everything)."""
    tests = baseline.calls.get((mutation.path, mutation.first_line), frozenset())
    return frozenset() if "" in tests else tests


def covering_tests(mutation: Mutation, baseline: Run) -> tuple[str, ...]:
    """Tests that pass and come to an edit, in order; none where one of two edits is never come to."""
    places = [
        frozenset().union(*(baseline.lines.get((mutation.path, line), frozenset()) for line in range(first, last + 1)))
        for first, last in mutation.reached
    ]
    reaching = frozenset().union(*places) if all(places) else frozenset()
    calling = calling_tests(mutation, baseline)
    found = calling & reaching if places else calling
    return tuple(sorted(test for test in found if baseline.outcomes.get(test) == "passed"))


def is_candidate(mutation: Mutation, subject: Subject) -> bool:
    """Whether a bug there is likely to be noticed by some tests, and not by nearly all."""
    crowd = len(calling_tests(mutation, subject.baseline)) > CROWD * subject.recipe.max_failing
    return not crowd and len(covering_tests(mutation, subject.baseline)) > 0


def find_candidates(subject: Subject) -> list[Mutation]:
    """Mutations where tests come, in the order in which they are tried."""
    recipe, most = subject.recipe, CROWD * subject.recipe.max_failing
    called: dict[str, set[int]] = {}
    for (path, line), tests in subject.baseline.calls.items():
        if _is_planted(path, subject.package) and "" not in tests and len(tests) <= most:
            called.setdefault(path, set()).add(line)
    found: list[Mutation] = []
    for path, lines in sorted(called.items()):
        try:
            source = (subject.folder / path).read_bytes().decode()
        except UnicodeDecodeError:
            continue
        found += find_mutations(source, path, min_lines=recipe.min_lines, max_lines=recipe.max_lines, called=lines)
    likely = [mutation for mutation in found if mutation.kind not in recipe.without and is_candidate(mutation, subject)]
    return choose_mutations(likely, recipe.seed, recipe.per_function)


def _is_planted(path: str, package: Package) -> bool:
    below = [any(path == top or path.startswith(f"{top}/") for top in tops) for tops in (package.modules, package.tests)]
    return below == [True, False] and path.endswith(".py")


async def screen(sandbox: Sandbox, mutation: Mutation, subject: Subject) -> Screening:
    """Run the tests that come to the edit, until too many fail; the sandbox' tree is as before afterwards."""
    tests = covering_tests(mutation, subject.baseline)
    original = await asyncio.to_thread((subject.folder / mutation.path).read_bytes)
    place = f"{WORKDIR}/{mutation.path}"
    await sandbox.write(place, mutate(original.decode(), mutation).encode())
    seconds = PATIENCE + PATIENCE * sum(subject.baseline.seconds.get(test, 0.0) for test in tests)
    run, _ = await _run(sandbox, subject.package, tests, seconds, most=subject.recipe.max_failing + 1)
    await sandbox.write(place, original)
    if run is None:
        return Screening("the tests hang or die")
    return _judge(run, subject)


def _judge(run: Run, subject: Subject) -> Screening:
    before = subject.baseline.outcomes
    failing = [test for test, outcome in run.outcomes.items() if outcome == "failed" and before.get(test) == "passed"]
    files = tuple(sorted({file_of(test) for test in failing}))
    if not failing:
        return Screening("no test notices it")
    if len(failing) > subject.recipe.max_failing:
        return Screening(f"more than {subject.recipe.max_failing} tests notice it")
    if any(file in subject.package.slow for file in files):
        return Screening("slow tests notice it")
    return Screening("", files, {test: run.messages[test] for test in failing})


async def _run(
    sandbox: Sandbox,
    package: Package,
    tests: tuple[str, ...],
    seconds: float,
    follow: Mapping[str, str] = MappingProxyType({}),
    most: int = 0,
) -> tuple[Run | None, str]:
    """Run tests with our recorder, until `most` fail: the record, None where none was left (a hang, a crash), and the output."""
    folder = f"/tmp/record-{secrets.token_hex(6)}"
    source = await asyncio.to_thread((Path(__file__).parent / "inside" / f"{PLUGIN}.py").read_bytes)
    await sandbox.write(f"{folder}/{PLUGIN}.py", source)
    await sandbox.write(f"{folder}/tests", "\n".join(tests).encode())
    env = {"PYTHONPATH": folder, "PYTEST_ADDOPTS": f"-p {PLUGIN}", "GREENGRAD_RECORD": f"{folder}/record.json"}
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    command = f"{pytest_command(package.sources, (), package.plugins)} -q --maxfail={most} --continue-on-collection-errors"
    result = await sandbox.run(f"{command} {shlex.quote(f'@{folder}/tests')}", env={**env, **follow}, seconds=seconds)
    try:
        return _parse(json.loads(await sandbox.read(f"{folder}/record.json"))), result.text
    except FileNotFoundError:
        return None, result.text
    finally:
        await sandbox.run(f"rm -rf {folder}", cwd="/")


def _parse(record: dict[str, dict[str, Any]]) -> Run:
    rows, names = record["tests"].items(), list(record["tests"])
    calls = {(place.rpartition(":")[0], int(place.rpartition(":")[2])): frozenset(ids) for place, ids in record["calls"].items()}
    came = ((path, line, tests) for path, found in record["lines"].items() for line, tests in found.items())
    return Run(
        outcomes={test: row[0] for test, row in rows},
        seconds={test: float(row[1]) for test, row in rows},
        messages={test: row[2] for test, row in rows},
        calls=calls,
        lines={(path, int(line)): frozenset(names[number] for number in tests) for path, line, tests in came},
    )
