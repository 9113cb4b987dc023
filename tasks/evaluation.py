"""One run of a task's tests in a machine: the script, the witness beside it, what both said; knows no verdict."""

import json
import secrets
import shlex
from dataclasses import dataclass

from sandbox import ResourceExhausted, Sandbox

from .base import Task
from .patches import patch_paths
from .swebench import START, official_script
from .witness import PLUGIN, Witness, plugin_text, read_witness

ORDER = "greengrad_order"
"""The plugin that turns the order of tests round."""
LOG_BYTES = 8 << 20
"""Kept of one evaluation log: what a machine keeps of any output. A longer one loses its middle; the tests named there did not run."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One run of a task's tests: its log, what the witness saw, how it ended."""

    log: str
    witness: Witness
    timed_out: bool = False
    cut: bool = False
    """Whether the log was so long that its middle was left out."""
    broken: str = ""
    """How the code under test brought its own machine down; "" where it did not."""


async def run_tests(sandbox: Sandbox, task: Task, backwards: bool = False) -> Evaluation:
    """Run a task's evaluation in a machine whose tree is the one to be graded (SandboxError where the machine fails).

    `backwards`: the tests in the opposite order, for a task that is witnessed.
    """
    folder = f"/tmp/greengrad-{secrets.token_hex(8)}"
    key = secrets.token_hex(32).encode()
    records = f"{folder}/records"
    tests = json.dumps(patch_paths(task.test_patch))
    env = {
        "PYTHONPATH": folder,
        "PYTEST_ADDOPTS": f"-p {ORDER} " * backwards + f"-p {PLUGIN}",
        "GREENGRAD_WITNESS": records,
        "GREENGRAD_TESTS": tests,
    }
    env = env if is_witnessed(task) else {}
    try:
        await sandbox.write(f"{folder}/{PLUGIN}.py", plugin_text().encode())
        if backwards:
            await sandbox.write(f"{folder}/{ORDER}.py", plugin_text(ORDER).encode())
        await sandbox.write(f"{folder}/eval.sh", guarded_script(task).encode())
        result = await sandbox.run(f"/bin/bash {folder}/eval.sh", env=env, stdin=key, seconds=task.test_seconds)
        await sandbox.kill_all()  # nothing may write to the record while it is read
        return Evaluation(result.text, read_witness(await _read_records(sandbox, records), key), result.timed_out, result.dropped_bytes > 0)
    except ResourceExhausted as error:
        return Evaluation("", Witness(), broken=str(error))


def guarded_script(task: Task) -> str:
    """The official script, but for one line before the tests: what the test patch brought is read-only from there on.

    The owner could take that back; the witness tells when a test file or a conftest.py is not what it was.
    """
    files = shlex.join(patch_paths(task.test_patch))
    return official_script(task).replace(f": '{START}'\n", f"chmod -f a-w {files}\n: '{START}'\n", 1) if files else official_script(task)


def is_witnessed(task: Task) -> bool:
    """Whether our plugin can watch the tests: pytest runs them, and its version is one that we pinned (and that the plugin knows)."""
    pinned = any(line.startswith("pytest==") for line in task.requirements)
    return pinned and task.log_parser.startswith("parse_log_pytest")


async def _read_records(sandbox: Sandbox, path: str) -> bytes:
    """The witness' record; empty where the code under test kept it from being written or took it away."""
    try:
        return await sandbox.read(path)
    except OSError:
        return b""
