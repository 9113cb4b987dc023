"""SWE-bench: Lite, Verified, Multilingual, Multimodal, dev, and everything in its form; tried on all of their rows.

Rule: the official one. Image: the row's `image` (version 5), else swebench/sweb.eval.x86_64.<instance id>; it holds the repository in
/testbed. A row of version 4.1 has no eval_script, no parser: of the 18 Python repositories both follow from the repository's test command
and the files of the test patch (equal to the command of version 5 in 1,042 of the 1,048 rows at hand; the others are an older astropy);
the package is not installed again, as the scripts of version 5 do, so a change of its build is not seen. For other
repositories such a row is Broken.
"""

import re
from typing import Any

from sandbox import Image

from ..base import Task
from ..fields import Broken, maybe, text
from ..patches import patch_paths, split_patch
from ..rows import common_fields
from ..script import apply_script
from ..swebench import official_image

TOX = "tox --current-env -epy39 -v --"
COMMANDS = {
    "astropy/astropy": ("pytest -rA", "astropy"),
    "django/django": ("./tests/runtests.py --verbosity 2 --settings=test_sqlite --parallel 1", "django"),
    "matplotlib/matplotlib": ("pytest -rA", "matplotlib"),
    "mwaskom/seaborn": ("pytest --no-header -rA", "seaborn"),
    "pallets/flask": ("pytest -rA", "flask"),
    "psf/requests": ("pytest -rA", "requests"),
    "pydata/xarray": ("pytest -rA", "xarray"),
    "pylint-dev/pylint": ("pytest -rA", "pylint"),
    "pytest-dev/pytest": ("pytest -rA", "pytest"),
    "scikit-learn/scikit-learn": ("pytest -rA", "scikit"),
    "sphinx-doc/sphinx": (TOX, "sphinx"),
    "sympy/sympy": ("PYTHONWARNINGS='ignore::UserWarning,ignore::SyntaxWarning' bin/test -C --verbose", "sympy"),
    "sqlfluff/sqlfluff": ("pytest -rA", "sqlfluff"),
    "marshmallow-code/marshmallow": ("pytest -rA", "marshmallow"),
    "pvlib/pvlib-python": ("pytest -rA", "pvlib"),
    "pylint-dev/astroid": ("pytest -rA", "astroid"),
    "pyvista/pyvista": ("pytest -rA", "pyvista"),
    "pydicom/pydicom": ("pytest -rA", "pydicom"),
}
"""Repository -> its test command, its parser. What version 5's scripts say; astropy and django have older variants there."""
_NOT_TESTS = re.compile(r"\.(json|png|csv|txt|md|jpg|jpeg|pkl|yml|yaml|toml)$")


def row_task(row: dict[str, Any]) -> Task:
    """The task of a row of version 5 or 4.1."""
    known = row if "eval_script" in row else row | _from_version_4(row)
    return Task(
        **common_fields(known),
        image=Image(text(known, "image") if "image" in known else official_image(text(row, "instance_id"))),
        gold_patch=text(known, "patch"),
        eval_script=text(known, "eval_script"),
        log_parser=text(known, "log_parser"),
        eval_type=maybe(known, "eval_type") or "pass_and_fail",
        files=patch_paths(text(known, "patch")),
    )


def test_command(repo: str, test_patch: str) -> str:
    """The test command of a repository on the files that a test patch touches (Broken for a repository that is not known)."""
    if repo not in COMMANDS:
        raise Broken(f"eval_script: missing, and the test command of {repo} is not known (rows of version 5 have it)")
    named = [section.paths[-1] for section in split_patch(test_patch)]  # of a renamed file the new name
    paths = [path for path in named if not _NOT_TESTS.search(path)]
    if repo == "django/django":
        paths = [path.removesuffix(".py").removeprefix("tests/").replace("/", ".") for path in paths]
    return " ".join([COMMANDS[repo][0], *paths])


def _from_version_4(row: dict[str, Any]) -> dict[str, Any]:
    repo, patch = text(row, "repo"), text(row, "test_patch")
    setup = "source /opt/miniconda3/bin/activate\nconda activate testbed\n"
    script = apply_script(text(row, "base_commit"), patch, test_command(repo, patch), setup)
    return {"eval_script": script, "log_parser": f"parse_log_{COMMANDS[repo][1]}"}
