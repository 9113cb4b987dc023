"""SWE-rebench (version 1) and SWE-rebench-V2: schema only, not tried on real rows or images.

Rule: version 1 the official one; V2 (it has pr_description or language) demands that the tests that passed are exactly the listed ones.
Image: docker_image or image_name, else swerebench/sweb.eval.x86_64.<instance id>; repository in /testbed, in V2 in /<name of the
repository>.
The test command and the parser stand in install_config; a parser that the swebench package does not have makes a task unusable.
"""

from typing import Any

from sandbox import Image

from ..base import Rule, Task
from ..fields import lines, mapping, maybe, text
from ..patches import patch_paths
from ..rows import common_fields
from ..script import apply_script
from ..swebench import known_parser, official_image

_SETUP = "source /opt/miniconda3/bin/activate\nconda activate testbed\n"


def row_task(row: dict[str, Any]) -> Task:
    """The task of a row of either version."""
    config = mapping(row, "install_config")
    second = "pr_description" in row or "language" in row
    known = common_fields({"split": "train", **row})
    command = "\n".join(lines(config, "test_cmd"))
    files = "" if second else " " + " ".join(path for path in patch_paths(known["test_patch"]) if path.endswith(".py"))
    parser = maybe(config, "log_parser") or "parse_log_pytest"
    name = (
        maybe(row, "image_name") or maybe(row, "docker_image") or official_image(known["instance_id"]).replace("swebench/", "swerebench/")
    )
    return Task(
        **known,
        image=Image(name, home=f"/{known['repo'].rpartition('/')[2]}") if second else Image(name),
        gold_patch=text(row, "patch"),
        eval_script=apply_script(known["base_commit"], known["test_patch"], command + files, "" if second else _SETUP),
        log_parser=parser,
        rule=Rule.PASSED_SET if second else Rule.OFFICIAL,
        family="swe_rebench_v2" if second else "swe_rebench",
        files=patch_paths(text(row, "patch")),
        unusable="" if known_parser(parser) else f"its log parser {parser} is not one of the swebench package's",
    )
