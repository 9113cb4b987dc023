"""One planted bug -> one task, proved by real runs of the official evaluation before and after the fix; knows no recipe's ends."""

import asyncio
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from sandbox import Image, Limits, Pool, apply_patch, make_tree

from .base import Outcome, Task
from .behaviour import describe, fix_lines
from .evaluation import LOG_BYTES, Evaluation, run_tests
from .failures import read_failures
from .grade import judge
from .lease import machine
from .mutate import Mutation, mutate
from .patches import diff_text
from .screen import Run, Screening, Subject
from .script import eval_script, pytest_command
from .statement import write_statement
from .swebench import read_log

LIMITS = Limits(memory_mb=1024, disk_mb=512, output_bytes=LOG_BYTES, episode_seconds=3600.0)
TEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where tasks are made: machines, their environment's image name, and a folder to lay trees out in."""

    machines: Pool
    environment: str
    scratch: Path


async def make_task(workshop: Workshop, subject: Subject, mutation: Mutation, screening: Screening) -> Task | str:
    """A task from a mutation that tests notice, proved by real runs; or why it is none."""
    try:
        task = await asyncio.to_thread(_lay_out, workshop, subject, mutation, screening)
    except UnicodeDecodeError:
        return "its tests are not UTF-8"
    before = await _evaluate(workshop.machines, task, "")
    after = await _evaluate(workshop.machines, task, task.gold_patch)
    fail_to_pass, pass_to_pass = _expected(task, before, after, subject.baseline)
    task = replace(task, fail_to_pass=fail_to_pass, pass_to_pass=pass_to_pass)
    task = replace(task, problem_statement=_statement(subject, mutation, task, screening, before.log))
    if not fail_to_pass:
        return "no test fails before and passes after in the official evaluation"
    if judge(task, after).outcome is not Outcome.RESOLVED or judge(task, before).outcome is not Outcome.UNRESOLVED:
        return "the official evaluation does not tell the fix from the bug"
    return task if task.problem_statement else "nothing can be told of it without telling the fix"


def _statement(subject: Subject, mutation: Mutation, task: Task, screening: Screening, log: str) -> str:
    """What the agent is told, as the recipe wants it; "" where that cannot be without telling the fix."""
    if subject.recipe.statement == "behaviour":
        failures = read_failures(log, task.fail_to_pass)
        name = f"{subject.package.name} {subject.package.version}"
        return describe(name, mutation, failures, lambda path: (subject.folder / path).read_bytes().decode(), fix_lines(task.gold_patch))
    restored = restored_lines(task.gold_patch)
    told = {test: screening.messages.get(test, "") for test in task.fail_to_pass}
    messages = {test: message for test, message in told.items() if not tells(message, restored)}
    return write_statement(mutation, messages, restored[0])


async def _evaluate(machines: Pool, task: Task, patch: str) -> Evaluation:
    async with machine(machines, task.image, LIMITS) as sandbox:
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


def _lay_out(workshop: Workshop, subject: Subject, mutation: Mutation, screening: Screening) -> Task:
    """The tree with the bug and without the tests that notice it, and the task around it; its lists are still empty."""
    package, folder = subject.package, subject.folder
    instance_id = f"{package.name}__{mutation.id}"
    scratch = workshop.scratch / instance_id
    shutil.copytree(folder, scratch / "repo", dirs_exist_ok=True)
    right = (folder / mutation.path).read_bytes().decode()
    wrong = mutate(right, mutation)
    (scratch / "repo" / mutation.path).write_bytes(wrong.encode())
    hidden = [(path, (folder / path).read_bytes().decode()) for path in screening.files]
    for path, _ in hidden:
        (scratch / "repo" / path).unlink()
    commit = make_tree(scratch / "repo", scratch / "tree.tar")
    test_patch = "".join(diff_text(path, None, text) for path, text in hidden)
    return Task(
        instance_id=instance_id,
        repo=f"{package.origin}/{package.name}",
        version=package.version,
        base_commit=commit,
        problem_statement="",
        image=Image(workshop.environment, scratch / "tree.tar"),
        gold_patch=diff_text(mutation.path, wrong, right),
        test_patch=test_patch,
        eval_script=eval_script(commit, test_patch, pytest_command(package.sources, screening.files, package.plugins)),
        log_parser="parse_log_pytest",
        fail_to_pass=(),
        pass_to_pass=(),
        split=package.split,
        test_seconds=TEST_SECONDS,
        files=(mutation.path,),
        requirements=(*subject.recipe.requirements, *package.requirements),
    )


def restored_lines(gold_patch: str) -> tuple[str, ...]:
    """The lines that the fix brings back, brackets alone left out unless there is nothing else: what no statement may say."""
    lines = [line[1:].strip() for line in gold_patch.splitlines() if line.startswith("+") and not line.startswith("+++ ")]
    return tuple(line for line in lines if len(line) > 3) or tuple(lines)


def tells(message: str, restored: tuple[str, ...]) -> bool:
    """Whether a failure's message quotes a line of the fix."""
    said = " ".join(message.split())
    return any(" ".join(line.split()) in said for line in restored)
