"""SWE-smith: schema only, not tried on real rows or images.

Rule: every listed test PASSED or XFAIL; a missing one has failed. Image: image_name, clean repository in /testbed; `patch` plants the
bug, so
the gold patch is its reverse. The tests that fail come with the clean repository: they would have to be taken out of what the agent
sees and the bug be planted there first, which the sandbox does not do with images of others yet: a task says so (Task.unusable).
"""

from typing import Any

from sandbox import Image

from ..base import Rule, Task
from ..fields import Broken, maybe, text
from ..patches import patch_paths
from ..reverse import reverse_patch
from ..rows import common_fields
from ..script import apply_script

SECONDS = 90.0
"""SWE-smith's own limit."""
UNUSABLE = "its bug has to be planted into the image's repository first, which is not done yet"


def row_task(row: dict[str, Any]) -> Task:
    """The task of a row."""
    bug = text(row, "patch")
    try:
        gold = reverse_patch(bug)
    except ValueError as error:
        raise Broken(f"patch: {error}") from None
    commit = maybe(row, "base_commit")
    known = common_fields({"test_patch": "", "split": "train", **row, "base_commit": commit})
    files = sorted({test.partition("::")[0] for test in (*known["fail_to_pass"], *known["pass_to_pass"])})
    command = f"pytest --disable-warnings --color=no --tb=no --verbose {' '.join(files)}"
    return Task(
        **known,
        image=Image(text(row, "image_name")),
        gold_patch=gold,
        eval_script=apply_script(commit, "", command, "source /opt/miniconda3/bin/activate\nconda activate testbed\n"),
        log_parser="parse_log_pytest",
        rule=Rule.ALL_PASS,
        family="swe_smith",
        test_seconds=SECONDS,
        files=patch_paths(gold),
        unusable=UNUSABLE,
    )
