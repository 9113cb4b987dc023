"""SWE-bench Pro: schema only, not tried on real rows or images.

Rule: every listed test PASSED. Image: jefzda/sweap-images:<dockerhub_tag>, repository in /app. run_script runs the selected test files,
parser_script turns what it printed into JSON; both run in the machine. before_repo_set_cmd is left out: it takes the tests out of the
fix's own commit, which no machine of ours holds; the test patch brings them instead. Without run_script and parser_script (older rows, they
lie in a repository beside them) a task is unusable.
"""

import base64
import shlex
from typing import Any

from sandbox import Image

from ..base import Rule, Task
from ..fields import lines, maybe, tests, text
from ..patches import patch_paths
from ..rows import common_fields
from ..script import apply_script


def row_task(row: dict[str, Any]) -> Task:
    """The task of a row; requirements and interface belong to its statement."""
    lists = {"FAIL_TO_PASS": tests(row, "fail_to_pass"), "PASS_TO_PASS": tests(row, "pass_to_pass")}
    known = common_fields({**row, **{key: list(value) for key, value in lists.items()}})
    known["language"] = maybe(row, "repo_language").lower()
    parts = [known["problem_statement"], maybe(row, "requirements"), maybe(row, "interface")]
    known["problem_statement"] = "\n\n".join(part for part in parts if part.strip())
    run, parse = maybe(row, "run_script"), maybe(row, "parser_script")
    return Task(
        **known,
        image=Image(f"jefzda/sweap-images:{text(row, 'dockerhub_tag')}", home="/app"),
        gold_patch=text(row, "patch"),
        eval_script=apply_script(known["base_commit"], known["test_patch"], _command(run, parse, lines(row, "selected_test_files_to_run"))),
        log_parser="greengrad_json",
        rule=Rule.ALL_PASS,
        family="swe_bench_pro",
        files=patch_paths(text(row, "patch")),
        unusable="" if run and parse else "run_script and parser_script are not in the row",
    )


def _command(run: str, parse: str, files: tuple[str, ...]) -> str:
    """Run, parse, print the result on one line. The scripts come as base64, so that nothing in them meets the shell."""
    folder = "/tmp/swe-bench-pro"
    writes = [f"base64 -d > {folder}/{name} <<< {_encoded(script)}" for name, script in (("run.sh", run), ("parse.py", parse))]
    test = f"bash {folder}/run.sh {shlex.quote(','.join(files))} > {folder}/out 2> {folder}/err"
    show = f"python3 -c 'import json; print(json.dumps(json.load(open(\"{folder}/result.json\"))))'"
    return "\n".join(
        [f"mkdir -p {folder}", *writes, test, f"python3 {folder}/parse.py {folder}/out {folder}/err {folder}/result.json", show]
    )


def _encoded(script: str) -> str:
    return base64.b64encode(script.encode()).decode()
