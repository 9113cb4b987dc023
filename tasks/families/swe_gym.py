"""SWE-Gym: rows in SWE-bench's version 4.1 form, of 11 other repositories: schema only, not tried on real rows or images.

Rule: the official one. Image: xingyaoww/sweb.eval.x86_64.<instance id, "__" as "_s_">, repository in /testbed. The test command is that of
its fork's constants, with the parser of pytest; mypy's is chosen test by test there: such a row says that it cannot be graded.
"""

from typing import Any

from sandbox import Image

from ..base import Task
from ..fields import text
from ..patches import patch_paths
from ..rows import common_fields
from ..script import apply_script

COMMANDS = {
    "Project-MONAI/MONAI": "pytest -rA",
    "bokeh/bokeh": "pytest -rA -n0",
    "conan-io/conan": "pytest -n0 -rA",
    "dask/dask": "pytest -n0 -rA --color=no",
    "facebookresearch/hydra": "pytest -n0 -rA",
    "getmoto/moto": "pytest -n0 -rA",
    "iterative/dvc": "pytest -rA",
    "modin-project/modin": "pytest -n0 -rA",
    "pandas-dev/pandas": "pytest -rA --tb=long",
    "pydantic/pydantic": "pytest -rA --tb=short -vv -o console_output_style=classic --no-header",
    "python/mypy": "",
}
_SETUP = "source /opt/miniconda3/bin/activate\nconda activate testbed\n"


def is_row(row: dict[str, Any]) -> bool:
    """Whether a row without a family's own columns is one of SWE-Gym's: by its repository."""
    return row.get("repo") in COMMANDS


def row_task(row: dict[str, Any]) -> Task:
    """The task of a row."""
    known = common_fields({"split": "train", **row})
    paths = [path for path in patch_paths(known["test_patch"]) if path.endswith(".py")]
    command = COMMANDS[known["repo"]]
    return Task(
        **known,
        image=Image(f"xingyaoww/sweb.eval.x86_64.{known['instance_id'].replace('__', '_s_')}:latest".lower()),
        gold_patch=text(row, "patch"),
        eval_script=apply_script(known["base_commit"], known["test_patch"], " ".join([command or "pytest -rA", *paths]), _SETUP),
        log_parser="parse_log_pytest",
        family="swe_gym",
        files=patch_paths(text(row, "patch")),
        unusable="" if command else f"how {known['repo']} chooses its tests is not in the row",
    )
