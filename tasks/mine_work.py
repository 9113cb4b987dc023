"""A repository -> a suite of its small fixes, each proved; knows no model.

Per candidate (mine.py), newest first: the parent's files become the tree, with what its build backend would have written; requirements
become an environment of pinned pure-Python wheels; the commit's tests become the test patch and its source the gold patch; three runs of
each side of the official evaluation make the lists (mine_prove.py). lineage.jsonl says of every candidate what was chosen and what became
of it, and an interrupted run goes on from there.

Not here: dependencies that are compiled code, tests of other runners than pytest, changes that are not UTF-8.
"""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sandbox import Backend, Image, Pool, ResourceExhausted, SandboxError, ensure_environment, make_tree

from . import lineage
from .base import Suite, Task
from .mine import Candidate, Change, Mine, Small
from .mine_layout import generated, runnable, sources
from .mine_pins import Pins, pin
from .mine_prove import LIMITS, Proof, prove
from .mine_requires import SETTINGS, find_needs, project_name
from .mine_statement import added_lines, find_issue, read_messages, statement
from .patches import diff_text
from .script import apply_script, dockerfile, pytest_command
from .store import load_suite, write_config, write_task

Progress = Callable[[int, int, str], None]
"""(candidates done, candidates in all, one line on the last)"""
DATASET = "greengrad/mined"
TEST_SECONDS = 120.0
REUSE = 32
_SETUP = "export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0\n"


@dataclass(frozen=True, slots=True)
class Claim:
    """What is to be mined."""

    repo: str
    """A path or URL."""
    name: str = ""
    """OWNER/NAME in the tasks; "" takes it from the path or URL."""
    limit: int = 50
    """Candidates to try, those of earlier runs counted."""
    max_files: int = 3
    """Of source, and of tests, in one commit."""
    max_lines: int = 80
    """Of source that a commit adds and removes."""
    issues: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"


@dataclass(frozen=True, slots=True)
class _Shaft:
    """What all candidates of one run share."""

    claim: Claim
    name: str
    out: Path
    mine: Mine
    machines: Pool
    scratch: Path


async def mine_suite(claim: Claim, out: Path, backend: Backend, progress: Progress | None = None, jobs: int = 2) -> Suite:
    """Mine a repository into a suite, which may hold other tasks of the same kind; the same call goes on with an interrupted run."""
    name = claim.name or repository_name(claim.repo)
    with tempfile.TemporaryDirectory(prefix="greengrad-mine-") as scratch:
        mine = await asyncio.to_thread(Mine, claim.repo, Path(scratch) / "repo.git")
        small = Small(claim.max_files, claim.max_files, claim.max_lines)
        write_config(out, DATASET, ("train", "test"))
        found = await asyncio.to_thread(lambda: list(itertools.islice(mine.candidates(small), claim.limit)))
        known = {entry["commit"] for entry in lineage.entries(out) if entry.get("step") == "mine" and entry.get("repo") == name}
        pool = Pool(backend, LIMITS, 2 * jobs, ahead=1, reuse=REUSE)
        shaft = _Shaft(claim, name, out, mine, pool, Path(scratch))
        todo, done = [candidate for candidate in found if candidate.commit not in known], [len(found)]
        done[0] -= len(todo)
        gate = asyncio.Semaphore(jobs)

        async def one(candidate: Candidate) -> None:
            async with gate:
                result = await _dig(shaft, candidate)
            done[0] += 1
            if progress:
                progress(done[0], len(found), f"{candidate.commit[:12]}: {result}")

        async with pool, asyncio.TaskGroup() as group:
            for candidate in todo:
                group.create_task(one(candidate))
        mine.close()
    shutil.rmtree(out / ".partial", ignore_errors=True)
    (out / "tasks").mkdir(exist_ok=True)
    return load_suite(out)


def repository_name(source: str) -> str:
    """OWNER/NAME of a URL, local/NAME of a path."""
    parts = [part for part in source.removesuffix("/").removesuffix(".git").replace(":", "/").split("/") if part]
    if Path(source).expanduser().exists():
        return f"local/{Path(source).expanduser().resolve().name.removesuffix('.git')}"
    return "/".join(parts[-2:]) if len(parts) > 1 else f"local/{source}"


async def _dig(shaft: _Shaft, candidate: Candidate) -> str:
    """Try one candidate and write down what became of it: "kept", or why not."""
    entry: dict[str, Any] = {"step": "mine", "repo": shaft.name, "commit": candidate.commit, "parent": candidate.parent}
    entry |= {"date": candidate.date, "source": list(candidate.source), "tests": list(candidate.tests)}
    folder = shaft.scratch / candidate.commit
    try:
        result = await _try(shaft, candidate, folder, entry)
    except ResourceExhausted as error:
        result = f"its tests use up the machine: {error}"
    except UnicodeDecodeError:
        result = "it changes files that are not UTF-8"
    except ValueError as error:
        result = str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if isinstance(result, str):
        lineage.append(shaft.out, entry | {"kept": False, "why": result})
        return result
    counts = {"fail_to_pass": len(result.task.fail_to_pass), "pass_to_pass": len(result.task.pass_to_pass)}
    told = {"new_tests": list(result.new), "existing": counts["fail_to_pass"] - len(result.new), "unimportable_before": result.unimportable}
    outcome = {"gold": "resolved", "noop": "unresolved"}
    lineage.append(shaft.out, entry | {"kept": True, "instance_id": result.task.instance_id, **outcome, **counts, **told})
    return "kept"


async def _try(shaft: _Shaft, candidate: Candidate, folder: Path, entry: dict[str, Any]) -> Proof | str:
    async with shaft.mine.lock:
        parts = await asyncio.to_thread(_read, shaft.mine, candidate, folder)
    if not runnable([change.path for change in parts.tests if change.new is not None]):
        return "it changes no test file that pytest runs"
    pins = await asyncio.to_thread(pin, find_needs(parts.settings), project_name(parts.settings))
    entry |= {"requirements": list(pins.requirements), "chosen": list(pins.chosen), "dropped": list(pins.dropped)}
    entry |= {"generated": sorted(parts.generated)}
    try:
        environment = await asyncio.to_thread(ensure_environment, pins.requirements)
    except SandboxError as error:
        return f"its environment cannot be made: {' '.join(str(error).split())[-300:]}"
    draft, untested = await asyncio.to_thread(_draft, shaft, candidate, parts, pins, environment)
    proof = await prove(shaft.machines, draft, untested)
    if isinstance(proof, str):
        return proof
    issue, secrets = find_issue(candidate, shaft.claim.issues), added_lines(parts.source)
    text = statement(issue or candidate.message, read_messages(proof.log, proof.task.fail_to_pass), secrets)
    if not text:
        return "nothing can be told of it without telling the fix"
    entry["statement"] = "issue" if issue else "commit message"
    task = replace(proof.task, problem_statement=text)
    await asyncio.to_thread(write_task, shaft.out, task, dockerfile(environment), DATASET)
    return replace(proof, task=task)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is read of a candidate."""

    source: tuple[Change, ...]
    tests: tuple[Change, ...]
    settings: dict[str, str]
    names: tuple[str, ...]
    generated: dict[str, str]
    folder: Path


def _read(mine: Mine, candidate: Candidate, folder: Path) -> _Parts:
    """Read a candidate's changes, and lay its parent's tree out."""
    source, tests = mine.changes(candidate, candidate.source), mine.changes(candidate, candidate.tests)
    names = mine.names(candidate.parent)
    settings = {name: mine.text(candidate.parent, name) or "" for name in names if SETTINGS.fullmatch(name)}
    mine.lay_out(candidate.parent, folder / "repo")
    code = [path.read_text(errors="replace") for path in (folder / "repo").rglob("*.py") if not path.is_symlink()]
    made = generated(settings, names, code)
    for name, text in made.items():
        path = folder / "repo" / name
        if not path.parent.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"its version file {name} would lie outside of its tree")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return _Parts(source, tests, settings, names, made, folder)


def _draft(shaft: _Shaft, candidate: Candidate, parts: _Parts, pins: Pins, environment: str) -> tuple[Task, Task]:
    """The task without lists and statement, and the same with the parent's own tests."""
    tree = parts.folder / "tree.tar"
    commit = make_tree(parts.folder / "repo", tree)
    test_patch = "".join(diff_text(change.path, change.old, change.new) for change in parts.tests)
    draft = Task(
        instance_id=f"{shaft.name.replace('/', '__')}-{candidate.commit[:12]}",
        repo=shaft.name,
        version=candidate.parent[:12],
        base_commit=commit,
        problem_statement="",
        image=Image(environment, tree),
        gold_patch="".join(diff_text(change.path, change.old, change.new) for change in parts.source),
        test_patch=test_patch,
        eval_script=apply_script(commit, test_patch, _command(parts, pins, parts.tests), _SETUP),
        log_parser="parse_log_pytest",
        fail_to_pass=(),
        pass_to_pass=(),
        split=shaft.claim.split,
        test_seconds=TEST_SECONDS,
        files=tuple(change.path for change in parts.source),
        requirements=pins.requirements,
    )
    old = tuple(change for change in parts.tests if change.old is not None)
    return draft, replace(draft, test_patch="", eval_script=apply_script(commit, "", _command(parts, pins, old, old=True), _SETUP))


def _command(parts: _Parts, pins: Pins, tests: tuple[Change, ...], old: bool = False) -> str:
    """pytest on the changed test files; before the commit, on those that there were (none: on nothing that exists)."""
    there = [change.path for change in tests if (change.old if old else change.new) is not None]
    plugins = "".join(f" -p {module}" for module in pins.plugins)
    return pytest_command(sources(parts.names), runnable(there) or ("no_such_tests",)) + plugins
