"""What turn-level credit must know of a machine before an action: its tree's hash, and how many visible tests pass there.

Knows commands and their output, nothing of credit. Both run in the agent's machine, on its time, and kill nothing. So the agent can forge
the share of tests (it may delete a test): as a potential that changes no optimum, as a reward (credit.turn_reward tests) it does.
Every command of ours and of the agent starts in WORKDIR, so that the tree alone is the anchor (tree, cwd).
"""

import re
from dataclasses import dataclass

from sandbox import ExecResult, Sandbox, SandboxError

from .config import RolloutConfig

LEFT_OUT = r"\( -name .git -o -name __pycache__ -o -name .pytest_cache -o -name '*.pyc' \) -prune"
HASH = rf"""set -o pipefail
{{ find . {LEFT_OUT} -o \( -type f -o -type l \) -printf '%P %y %m %l\n' | LC_ALL=C sort &&
  find . {LEFT_OUT} -o -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum; }} | sha256sum"""
"""Names, modes, links and contents; .git and caches left out, as sandbox/repo.py does. It reads every file once and writes nothing."""
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}
"""A .pyc of ours could outlive an edit of the same size within a second, and the agent would run the old code."""
NOT_READ = "unreadable after"
COUNT = re.compile(r"(?<!\d)(\d+) (passed|failed|errors?)\b")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a Turn keeps of it."""

    anchor: str = ""
    passed: float | None = None


async def look(sandbox: Sandbox, rollout: RolloutConfig, seconds: float, *, first: bool) -> Seen:
    """What rollout.anchors and rollout.visible_tests ask for, each command within `seconds`.

    ValueError where the visible tests give no count in a tree that nobody has touched (`first`): the command does not fit the task.
    """
    anchor = await hash_tree(sandbox, seconds) if rollout.anchors else ""
    if rollout.anchors and not anchor:
        raise SandboxError(f"{sandbox.id}: the tree's hash is empty")
    if not rollout.visible_tests:
        return Seen(anchor)
    result = await sandbox.run(rollout.visible_tests, env=NO_BYTECODE, seconds=seconds)
    passed = read_share(result.text)
    if first and result.timed_out:
        raise SandboxError(f"{sandbox.id}: the visible tests of an untouched tree took longer than {seconds:g} s")
    if first and passed is None:
        raise ValueError(f"rollout.visible_tests = {rollout.visible_tests!r}: no count of tests in its output: {_end(result)}")
    return Seen(anchor, passed or 0.0)


async def hash_tree(sandbox: Sandbox, seconds: float) -> str:
    """A tree that cannot be read within the limit has an anchor that it shares with nothing: the time it took is part of it."""
    result = await sandbox.run(HASH, seconds=seconds)
    words = result.text.split()
    return words[0] if result.exit_code == 0 and words else f"{NOT_READ} {result.seconds}" if result.exit_code else ""


def read_share(text: str) -> float | None:
    """passed / (passed + failed + errors) of pytest's last line; None where there is no such line.

    >>> read_share("== 3 passed, 1 failed in 0.1s ==")
    0.75
    """
    counted = next((found for line in reversed(text.splitlines()) if (found := COUNT.findall(line))), [])
    total = sum(int(count) for count, _ in counted)
    return sum(int(count) for count, what in counted if what == "passed") / total if total else None


def _end(result: ExecResult) -> str:
    return " ".join(result.text[-300:].split()) or f"nothing, exit {result.exit_code}"
