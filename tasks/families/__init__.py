"""Rows of public suites -> Task, one file a family: its columns, its grading rule, its image and its working directory; knows no files.

Only rows of SWE-bench (version 5: Lite, Verified, Multilingual, Multimodal, dev) were at hand. The other families are written from their
schemas and graders' sources: "schema only, not tried on real rows".
"""

from collections.abc import Callable, Mapping
from typing import Any

from ..base import Task
from ..fields import Broken
from . import multi_swe_bench, nemotron, r2e_gym, swe_bench_live, swe_bench_pro, swe_gym, swe_rebench, swe_smith, swebench

Reader = Callable[[dict[str, Any]], Task]

_MARKS: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (("responses_create_params",), lambda row: row_task(nemotron.inner_row(row))),
    (("fix_patch", "org", "number"), multi_swe_bench.row_task),
    (("expected_output_json", "docker_image"), r2e_gym.row_task),
    (("dockerhub_tag", "selected_test_files_to_run"), swe_bench_pro.row_task),
    (("test_cmds", "docker_image"), swe_bench_live.row_task),
    (("eval_script",), swebench.row_task),
    (("install_config",), swe_rebench.row_task),
    (("image_name", "FAIL_TO_PASS"), swe_smith.row_task),
)
"""Columns that tell a family, the surest first."""


def row_task(row: dict[str, Any]) -> Task:
    """The task of a row of any family (Broken names the field that is missing or of another type)."""
    for columns, read in _MARKS:
        if all(column in row for column in columns):
            return read(row)
    if swe_gym.is_row(row):
        return swe_gym.row_task(row)
    if "instance_id" in row or "repo" in row:
        return swebench.row_task(row)
    raise Broken(f"of no known family: it has {_names(row)}")


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, row))[:6]) or "no columns"
