"""Multi-SWE-bench: schema only, not tried on real rows or images.

Rule: every fixed test passes and none that passed before fails. Image: mswebench/<org>_m_<repo>:pr-<number>, repository in /home, in a
folder of
its name; beside it the image holds the fix (fix.patch), which the proof finds: it is refused. Logs are read by that project's own parsers,
one a repository, which are not here: tasks are read and listed, and unusable.
"""

from typing import Any

from sandbox import Image

from ..base import Rule, Task
from ..fields import Broken, mapping, maybe, text
from ..patches import patch_paths
from ..script import apply_script

HOME = "/home"
UNUSABLE = "its logs are read by parsers of the multi-swe-bench project, which are not here"


def row_task(row: dict[str, Any]) -> Task:
    """The task of a row."""
    org, repo, number = text(row, "org"), text(row, "repo"), text(row, "number")
    commit = text(mapping(row, "base"), "sha")
    test_patch, gold = text(row, "test_patch"), text(row, "fix_patch")
    return Task(
        instance_id=maybe(row, "instance_id") or f"{org}__{repo}-{number}",
        repo=f"{org}/{repo}",
        version="",
        base_commit=commit,
        problem_statement=_statement(row),
        image=Image(f"mswebench/{org}_m_{repo}:pr-{number}".lower(), home=f"{HOME}/{repo}"),
        gold_patch=gold,
        test_patch=test_patch,
        eval_script=apply_script(commit, test_patch, f"bash {HOME}/run.sh"),
        log_parser=f"multi_swe_bench/{org}/{repo}",
        fail_to_pass=tuple(mapping(row, "fixed_tests")),
        pass_to_pass=tuple(mapping(row, "p2p_tests")) if row.get("p2p_tests") else (),
        rule=Rule.NO_FAILURE,
        family="multi_swe_bench",
        language=maybe(row, "language").lower(),
        files=patch_paths(gold),
        unusable=UNUSABLE,
    )


def _statement(row: dict[str, Any]) -> str:
    """Title and body of the issues that were resolved."""
    issues = row.get("resolved_issues")
    if not isinstance(issues, list) or not all(isinstance(issue, dict) for issue in issues):
        raise Broken("resolved_issues: a list of issues is needed")
    return "\n\n".join(f"{maybe(issue, 'title')}\n\n{maybe(issue, 'body')}".strip() for issue in issues)
