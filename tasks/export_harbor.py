"""A Task as a Harbor task folder (schema 1.4); pure files, runs nothing.

    TASK/task.toml  instruction.md
         environment/Dockerfile  [tree.tar requirements.txt]   an image that any Docker makes; of an official image only its name
         solution/solve.sh gold.patch
         tests/test.sh eval.sh reward.py row.json               eval.sh is the evaluation; reward.py decides by SWE-bench's rule

Our own reader takes the folder back (families/harbor.py), with its tree and environment, for machines of ours. Not sealed there: the
history of an official image stays in it, and Harbor's verifier runs in the machine in which the agent was.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from sandbox import WORKDIR

from .base import Task
from .swebench import instance_row, official_script

SCHEMA = "1.4"
PYTHON = "3.11"
"""Where the requirements name none."""
_PACKAGES = "bash git patch procps diffutils findutils tar ca-certificates"
_SOLVE = f"""#!/bin/bash
set -euo pipefail
cd {WORKDIR}
git config --global --add safe.directory {WORKDIR}
git apply -v /solution/gold.patch
"""
_TEST = """#!/bin/bash
# The reward is 1 where the evaluation resolves the instance by SWE-bench's rule, else 0. Its log is /logs/verifier/test_output.txt.
mkdir -p /logs/verifier
bash /tests/eval.sh > /logs/verifier/test_output.txt 2>&1
python=$(command -v /opt/miniconda3/bin/python3 || command -v python3)
"""
_OURS = '"$python" -I /tests/reward.py /tests/row.json /logs/verifier/test_output.txt > /logs/verifier/reward.txt\n'
_OFFICIAL = """# This parser is the swebench package's alone, so it is installed beside everything else.
"$python" -m venv /tmp/swebench-grader && /tmp/swebench-grader/bin/pip install --quiet swebench==5.0.2 || exit 1
/tmp/swebench-grader/bin/python -I /tests/reward.py /tests/row.json /logs/verifier/test_output.txt > /logs/verifier/reward.txt
"""


def write_harbor(task: Task, folder: Path) -> None:
    """Write the folder of a task; ValueError for text that no file can hold."""
    for path, text in _files(task).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("w", encoding="utf-8", newline="") as file:  # newline="": a CRLF inside a patch stays one
            file.write(text)
        (folder / path).chmod(0o755 if path.endswith(".sh") else 0o644)
    if task.image.tree is not None:
        shutil.copyfile(task.image.tree, folder / "environment" / "tree.tar")


def _files(task: Task) -> dict[str, str]:
    row = instance_row(task)
    told = {key: row[key] for key in ("instance_id", "log_parser", "eval_type", "FAIL_TO_PASS", "PASS_TO_PASS")}
    needs_package = task.log_parser != "parse_log_pytest" or task.eval_type != "pass_and_fail"
    files = {
        "task.toml": _toml(task),
        "instruction.md": task.problem_statement.rstrip("\n") + "\n",
        "environment/Dockerfile": f"FROM {task.image.name}\n" if task.image.tree is None else _dockerfile(task),
        "solution/solve.sh": _SOLVE,
        "solution/gold.patch": task.gold_patch,
        "tests/test.sh": _TEST + (_OFFICIAL if needs_package else _OURS),
        "tests/eval.sh": official_script(task),
        "tests/row.json": json.dumps(told, indent=2) + "\n",
        "tests/reward.py": (Path(__file__).parent / "inside" / "harbor_reward.py").read_text(encoding="utf-8"),
    }
    return files | ({} if task.image.tree is None else {"environment/requirements.txt": _requirements(task)})


def _dockerfile(task: Task) -> str:
    version = next((line.removeprefix("python==") for line in task.requirements if line.startswith("python==")), PYTHON)
    return f"""FROM python:{version}-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends {_PACKAGES} && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /tmp/requirements.txt
RUN python3 -m venv /opt/env && /opt/env/bin/pip install --no-cache-dir --no-deps --only-binary :all: -r /tmp/requirements.txt
ENV PATH=/opt/env/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8
ADD tree.tar {WORKDIR}/
RUN git config --system --add safe.directory {WORKDIR}
WORKDIR {WORKDIR}
"""


def _requirements(task: Task) -> str:
    return "".join(f"{line}\n" for line in task.requirements if not line.startswith("python=="))


def _toml(task: Task) -> str:
    metadata = {"repo": task.repo, "base_commit": task.base_commit, "version": task.version, "split": task.split}
    metadata |= {"difficulty": task.difficulty, "language": task.language}
    environment: dict[str, Any] = {"workdir": WORKDIR, "build_timeout_sec": 1800.0}
    ours: dict[str, Any] = {}
    if task.image.tree is None:
        environment |= {"docker_image": task.image.name, "workdir": task.image.home}
    else:
        ours = {"environment": task.image.name, "requirements": list(task.requirements), "test_seconds": task.test_seconds}
    tables: dict[str, dict[str, Any]] = {
        "task": {"name": f"greengrad/{_package(task.instance_id)}"},
        "metadata": {key: value for key, value in metadata.items() if value},
        "metadata.greengrad": ours,
        "verifier": {"timeout_sec": task.test_seconds},
        "environment": environment,
    }
    lines = [f"schema_version = {_value(SCHEMA)}"]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())] if table else []
    return "\n".join(lines) + "\n"


def _package(instance_id: str) -> str:
    """An id as Harbor's package names may be."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", instance_id).strip("-_") or "task"


def _value(value: str | float | list[str]) -> str:
    """A value of TOML: JSON's texts are its texts, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
