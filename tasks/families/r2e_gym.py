"""R2E-Gym: schema only, not tried on real rows or images.

Rule: the same tests with the same statuses as in expected_output_json, where some must fail. Image: docker_image, repository in /testbed;
its hidden tests lie there too, in r2e_tests: they are left out of what the agent sees (Image.hide) and come back as the test patch.
The base commit is old_commit_hash of parsed_commit_content. A row has no gold patch as text: gold runs need one of one's own (column
`patch`).
"""

from typing import Any

from sandbox import Image

from ..base import Rule, Task
from ..fields import Broken, mapping, maybe, text
from ..patches import diff_text, patch_paths
from ..script import apply_script

TESTS = "r2e_tests"
SECONDS = 300.0
"""R2E-Gym's own limit."""


def row_task(row: dict[str, Any]) -> Task:
    """The task of a row."""
    expected = {name.split(" - ")[0]: str(status) for name, status in mapping(row, "expected_output_json").items()}
    test_patch = _test_patch(row)
    repo, fix, base = text(row, "repo_name"), text(row, "commit_hash"), _base(row)
    gold = maybe(row, "patch")
    return Task(
        instance_id=maybe(row, "instance_id") or f"{repo.replace('/', '__')}__{fix[:12]}",
        repo=repo,
        version="",
        base_commit=base,
        problem_statement=_statement(text(row, "problem_statement")),
        image=Image(text(row, "docker_image"), hide=(TESTS,)),
        gold_patch=gold,
        test_patch=test_patch,
        eval_script=apply_script(base, test_patch, "bash run_tests.sh"),
        log_parser="greengrad_r2e",
        fail_to_pass=tuple(name for name, status in expected.items() if status == "PASSED"),
        pass_to_pass=(),
        rule=Rule.SAME_STATUSES,
        expected=tuple(expected.items()),
        family="r2e_gym",
        language="python",
        split=maybe(row, "split") or "train",
        test_seconds=SECONDS,
        files=patch_paths(gold),
    )


def _base(row: dict[str, Any]) -> str:
    try:
        return text(mapping(row, "parsed_commit_content"), "old_commit_hash")
    except Broken as broken:
        raise Broken(f"parsed_commit_content: {broken}") from None


def _statement(prompt: str) -> str:
    return prompt.partition("[ISSUE]")[2].rpartition("[/ISSUE]")[0].strip() or prompt


def _test_patch(row: dict[str, Any]) -> str:
    """The hidden tests, out of what their run recorded."""
    found = mapping(row, "execution_result_content")
    names, codes = found.get("test_file_names"), found.get("test_file_codes")
    if not isinstance(names, list) or not isinstance(codes, list) or len(names) != len(codes) or not names:
        raise Broken("execution_result_content: test_file_names and test_file_codes of equal length are needed")
    return "".join(diff_text(f"{TESTS}/{name}", None, str(code)) for name, code in zip(names, codes, strict=True))
