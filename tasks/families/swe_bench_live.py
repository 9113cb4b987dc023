"""SWE-bench-Live: schema only, not tried on real rows or images.

Rule: every FAIL_TO_PASS passed and no PASS_TO_PASS failed; one that is missing from the log is no failure (so hiding tests is free there).
Image: docker_image, repository in /testbed. rebuild_cmds run before the tests, print_cmds after them. log_parser "pytest" is the swebench
package's; a parser that is Python source is not run: such a task is unusable.
"""

from typing import Any

from sandbox import Image

from ..base import Rule, Task
from ..fields import lines, maybe, text
from ..patches import patch_paths
from ..rows import common_fields
from ..script import apply_script


def row_task(row: dict[str, Any]) -> Task:
    """The task of a row."""
    known = common_fields(row)
    commands = [*lines(row, "test_cmds"), *(lines(row, "print_cmds") if row.get("print_cmds") else ())]
    setup = "".join(f"{line}\n" for line in lines(row, "rebuild_cmds")) if row.get("rebuild_cmds") else ""
    parser = maybe(row, "log_parser") or "pytest"
    return Task(
        **known,
        image=Image(text(row, "docker_image")),
        gold_patch=text(row, "patch"),
        eval_script=apply_script(known["base_commit"], known["test_patch"], "\n".join(commands), setup),
        log_parser="parse_log_pytest",
        rule=Rule.NO_FAILURE,
        family="swe_bench_live",
        files=patch_paths(text(row, "patch")),
        unusable="" if parser == "pytest" else "its log parser is Python source, which is not run on the host",
    )
