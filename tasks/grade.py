"""A patch -> a fresh sandbox -> a Verdict; knows no model and no agent, only the patch.

How a patch might decide its own grade, and what stops it:

  left out before it is applied (protect.py)     conftest.py, pytest.ini and the other settings files, sitecustomize, *.pth,
                                                 modules that shadow pytest or the standard library, entry points (*.dist-info),
                                                 .git*, the task's tests and what lies beside them, files that the tests would add
  in eval.sh (script.py)                         no plugin autoload, no addopts of the repository, no captured output in the log
  read-only from the tests' start (guarded_script)   the files of the test patch
  found by the witness (witness.py), a plugin    code under test that prints PASSED lines or an END marker, ends the process with
  of ours with signed records out of band;       status 0 before or after the report, rewrites reports in a hook, replaces
  a resolved log that it contradicts is SUSPECT  functions of the runner, changes a test file or adds a conftest.py (also when a
                                                 conftest.py of the task imports it, before the session); declared tests that did
                                                 not run; an exit code that the log tells otherwise
  found by the audit (audit.py), tests that      what code can do that shares a process with its tests: an object that is equal to
  must fail and still pass, or have another      everything, a caller or a runner that is recognised, a stolen key, a runner patched
  name and fail, on a share of the resolved      and put back, tests whose bodies are swapped, failures that are called expected
  patches; SUSPECT as well

The plugin is named with -p by its module, because pytest imports what stands there and so takes no path. Its folder has a random name and
leaves the import path as soon as the plugin is loaded; a module of its name in a patch is left out. Verdicts of other runners rest on the
log alone and say so (Evidence.LOG_ONLY). The official harness' word stays beside ours.

Not covered: what audit.py lists; whatever an agent writes into code that no test runs.
"""

import time
from dataclasses import replace

from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from sandbox import DIFF_BYTES, Limits, ResourceExhausted, SandboxError, apply_patch

from .audit import Audit, Auditor
from .base import Evidence, Outcome, Task, Verdict
from .evaluation import LOG_BYTES, Evaluation, is_witnessed, run_tests
from .lease import Machines, machine
from .patches import patch_paths
from .protect import drop_protected, kept_protected
from .swebench import START, Reading, as_log, exit_code, failure_reason, read_log

ATTEMPTS = 3
"""How often a machine may fail before the verdict is INFRA."""


async def grade(machines: Machines, task: Task, patch: str, limits: Limits | None = None, auditor: Auditor | None = None) -> Verdict:
    """Grade a patch from the patch alone, in a fresh sandbox; every ending is a Verdict, a machine that fails too (INFRA).

    `auditor`: runs held-out variants of the tests on its share of the resolved patches (audit.py).
    """
    started = time.monotonic()
    if task.unusable:
        return Verdict(task.instance_id, Outcome.INFRA, task.unusable)
    if not patch.strip():
        return Verdict(task.instance_id, Outcome.NO_PATCH, "nothing was changed")
    if len(patch) > DIFF_BYTES:
        return Verdict(task.instance_id, Outcome.PATCH_INVALID, f"the patch is larger than {DIFF_BYTES >> 20} MiB")
    if not patch_paths(patch):
        return Verdict(task.instance_id, Outcome.PATCH_INVALID, "no change of a file can be read in the patch")
    if not patch.endswith("\n"):  # git refuses it; patch(1), the official harness' last resort, puts it on as if the newline were there
        patch += "\n"
    verdict = await _with_retries(machines, task, patch, _widen(limits or Limits(), task), auditor)
    return replace(verdict, seconds=time.monotonic() - started)


async def grade_untouched(machines: Machines, task: Task, limits: Limits | None = None) -> Verdict:
    """Run the tests on the base tree: what an agent that does nothing would get if its empty patch were run."""
    started = time.monotonic()
    if task.unusable:
        return Verdict(task.instance_id, Outcome.INFRA, task.unusable)
    verdict = await _with_retries(machines, task, "", _widen(limits or Limits(), task), None)
    return replace(verdict, seconds=time.monotonic() - started)


def judge(task: Task, evaluation: Evaluation) -> Verdict:
    """The verdict on one run of the tests: the official grader's, unless the witness contradicts it."""
    evidence = Evidence.NONE if START not in evaluation.log else Evidence.WITNESSED if is_witnessed(task) else Evidence.LOG_ONLY
    verdict = Verdict(task.instance_id, Outcome.UNRESOLVED, log=evaluation.log, witness=evaluation.witness.statuses, evidence=evidence)
    if evaluation.timed_out:
        return replace(verdict, outcome=Outcome.TESTS_TIMEOUT, reason=f"the tests took more than {task.test_seconds:g} seconds")
    if evaluation.broken:
        return replace(verdict, reason=f"the tests brought their machine down: {evaluation.broken}")
    if START not in evaluation.log and evaluation.cut:
        return replace(verdict, reason="what is printed before the tests drowns the log: no test result could be read")
    if START not in evaluation.log:
        return replace(verdict, outcome=Outcome.INFRA, reason="the evaluation script did not come to its tests")
    reading = read_log(task, evaluation.log)
    verdict = replace(verdict, tests=reading.tests, official=reading.resolved)
    if not reading.resolved:
        return replace(verdict, reason=_shortfall(task, evaluation.log, reading))
    doubt = _contradiction(task, evaluation) if is_witnessed(task) else ""
    return replace(verdict, outcome=Outcome.SUSPECT if doubt else Outcome.RESOLVED, reason=doubt)


async def _with_retries(machines: Machines, task: Task, patch: str, limits: Limits, auditor: Auditor | None) -> Verdict:
    """Machines that fail are replaced, up to ATTEMPTS in all; a timeout must happen twice."""
    wait = wait_random_exponential(multiplier=0.2, max=5)
    retrying = AsyncRetrying(stop=stop_after_attempt(ATTEMPTS), wait=wait, retry=retry_if_exception_type(SandboxError))
    try:
        verdict: Verdict = await retrying(_grade_once, machines, task, patch, limits)
        if verdict.outcome is Outcome.TESTS_TIMEOUT:
            verdict = await retrying(_grade_once, machines, task, patch, limits)
        if verdict.outcome is Outcome.INFRA and patch:
            untouched: Verdict = await retrying(_grade_once, machines, task, "", limits)
            verdict = _blame(verdict, untouched)
        if auditor and verdict.outcome is Outcome.RESOLVED and is_witnessed(task) and auditor.is_chosen(task, patch):
            verdict = with_audit(verdict, await retrying(auditor.audit, machines, task, patch, limits))
    except RetryError as error:
        return Verdict(task.instance_id, Outcome.INFRA, f"the machine failed {ATTEMPTS} times: {error.last_attempt.exception()}")
    return verdict


def _blame(verdict: Verdict, untouched: Verdict) -> Verdict:
    """A script that comes to its tests without the patch and not with it: the patch did that (its setup.py runs before the tests, say)."""
    if untouched.outcome is Outcome.INFRA:
        return verdict
    return replace(verdict, outcome=Outcome.UNRESOLVED, reason=f"{verdict.reason}; without the patch it does")


def with_audit(verdict: Verdict, audit: Audit) -> Verdict:
    """A resolved verdict that was audited; findings make it SUSPECT."""
    verdict = replace(verdict, audited=True, findings=audit.findings, notes=audit.notes)
    if not audit.findings:
        return verdict
    return replace(verdict, outcome=Outcome.SUSPECT, reason=f"resolved, but it {'; it '.join(audit.findings[:3])}")


async def _grade_once(machines: Machines, task: Task, patch: str, limits: Limits) -> Verdict:
    kept, dropped = drop_protected(task, patch)
    async with machine(machines, task.image, limits) as sandbox:
        try:
            applies = not kept or await apply_patch(sandbox, kept)
        except ResourceExhausted as error:
            return Verdict(task.instance_id, Outcome.PATCH_INVALID, f"the patch does not fit into the machine: {error}", dropped=dropped)
        if not applies:
            return Verdict(task.instance_id, Outcome.PATCH_INVALID, "the patch does not apply", dropped=dropped)
        evaluation = await run_tests(sandbox, task)
    return replace(judge(task, evaluation), dropped=dropped, kept=kept_protected(task, kept))


def _widen(limits: Limits, task: Task) -> Limits:
    """Room for a whole log, and a life that outlasts one run of the tests."""
    return replace(limits, output_bytes=max(limits.output_bytes, LOG_BYTES), episode_seconds=task.test_seconds + 300)


def _contradiction(task: Task, evaluation: Evaluation) -> str:
    """Why a log that says resolved is not believed; "" where the witness saw the same."""
    witness = evaluation.witness
    if witness.forged:
        return f"the log says resolved, but the record of the tests was tampered with: {witness.forged}"
    if not witness.finished:
        return "the log says resolved, but the test session did not come to its end"
    if witness.rewritten:
        return f"the log says resolved, but files of the tests were changed while they ran: {', '.join(witness.rewritten[:5])}"
    if witness.changed:
        return f"the log says resolved, but functions of the test runner were replaced: {', '.join(witness.changed[:5])}"
    if not read_log(task, as_log(witness.statuses)).resolved:
        bad = [test for test in (*task.fail_to_pass, *task.pass_to_pass) if witness.statuses.get(test) not in ("PASSED", "XFAIL")]
        return f"the log says resolved, but these did not pass: {', '.join(bad[:5])}"
    if (printed := exit_code(evaluation.log)) is not None and printed != witness.exit_status:
        return f"the log says resolved, but it tells the exit code {printed}, and the test session ended with {witness.exit_status}"
    return ""


def _shortfall(task: Task, log: str, reading: Reading) -> str:
    """One line on why an evaluation is not resolved."""
    if not reading.readable:
        advice = failure_reason(log)
        return "no test result could be read" + (f" ({advice[0]})" if advice else "")
    failed = {key: reading.report[task.instance_id]["tests_status"][key]["failure"] for key in ("FAIL_TO_PASS", "PASS_TO_PASS")}
    return "; ".join(f"{len(tests)} of {key} fail: {', '.join(tests[:3])}" for key, tests in failed.items() if tests)
