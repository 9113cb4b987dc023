#!/usr/bin/env python3
"""Real SWE-bench Verified instances, executed without their images: environments are built here, repositories are local clones.

    python scripts/bench/verified_slice.py --repos DIR | --images [--data FILE.parquet] --out DIR [--repo sympy/sympy] [--limit N] [-j 2]

DIR holds clones (bare or not) in any depth, found by their names: sympy, pytest, flask, requests. The suite is written to OUT/suite in
our own format,
then graded by `greengrad grade` twice: with the gold patches, and with patches that change nothing that counts. A table says for
each repository how many resolve with gold and not with no-op, and whether the official functions say the same of the same logs;
OUT/table.json has every instance with its reason. The same command goes on where it was.

What differs from the official images: pip's pins are those of version 4.1's constants as far as tests need them; nothing is installed: a
package is imported from its tree (PYTHONPATH), pytest gets the version file that its build would write; conda's two lines fail harmlessly.
With internet access and Docker, --images uses the official images as they are instead (not tried where this was written: no registry
could be reached): all 500 instances, or those of --repo.
"""

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.cli import main as greengrad
from sandbox import Image, SandboxError, checkout_tree, ensure_environment
from tasks import Prediction, Task, load_suite, read_verdicts, write_predictions, write_task
from tasks.script import dockerfile
from tasks.store import write_config
from tasks.swebench import read_log

SECONDS = 1200.0
"""Limit of one run of tests."""
NOTE = (
    "diff --git a/NOTES.greengrad b/NOTES.greengrad\nnew file mode 100644\n--- /dev/null\n+++ b/NOTES.greengrad\n@@ -0,0 +1 @@\n+nothing\n"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a repository's tests run without an installation of it."""

    python: str
    pins: dict[str, tuple[str, ...]]
    """Version of the row -> pins; "" stands for every other version."""
    path: str = "/testbed"
    """PYTHONPATH."""
    setup: str = ""
    """Shell lines in the place of pip's."""
    files: dict[str, str] = field(default_factory=dict)
    """Generated files: path -> text with {version}."""


_OLD = ("atomicwrites==1.4.0", "attrs==23.1.0", "more-itertools==10.1.0", "py==1.11.0", "wcwidth==0.2.6", "six==1.16.0")
_MIDDLE = ("attrs==23.1.0", "more-itertools==10.1.0", "packaging==23.1", "pluggy==0.13.1", "py==1.11.0", "wcwidth==0.2.6")
_NEW = ("attrs==23.1.0", "iniconfig==2.0.0", "packaging==23.1", "pluggy==0.13.1", "py==1.11.0", "toml==0.10.2")
_FLASK = ("click==8.1.3", "itsdangerous==2.1.2", "jinja2==3.1.2", "markupsafe==2.1.3", "werkzeug==2.3.7", "blinker==1.6.2")
_RUNNER = ("iniconfig==2.0.0", "packaging==23.1", "pluggy==1.3.0", "pytest==7.4.2", "exceptiongroup==1.1.3", "tomli==2.0.1")
RECIPES = {
    "sympy/sympy": Recipe("3.9", {"": ("mpmath==1.3.0",)}),
    "pytest-dev/pytest": Recipe(
        "3.9",
        {
            "4.5": (*_OLD, "pluggy==0.11.0", "setuptools==68.0.0"),
            "4.6": (*_OLD, "packaging==23.1", "pluggy==0.13.1", "importlib-metadata==4.13.0", "zipp==3.16.2"),
            "5.0": (*_OLD, "packaging==23.1", "pluggy==0.13.1", "importlib-metadata==4.13.0", "zipp==3.16.2"),
            "5.4": (*_MIDDLE, "iniconfig==2.0.0", "toml==0.10.2"),
            "6.0": (*_NEW, "more-itertools==10.1.0"),
            "6.2": _NEW,
            "6.3": _NEW,
            "7.2": (
                *("attrs==23.1.0", "iniconfig==2.0.0", "packaging==23.1", "pluggy==1.3.0", "exceptiongroup==1.1.3", "tomli==2.0.1"),
                *("hypothesis==6.82.6", "sortedcontainers==2.4.0", "py==1.11.0"),
            ),
            "": (*_OLD, "packaging==23.1", "pluggy==0.13.1"),
        },
        path="/testbed/src",
        setup='pytest() { python -m pytest "$@"; }\n',
        files={"src/_pytest/_version.py": 'version = "{version}.0"\nversion_tuple = tuple(map(int, version.split(".")))\n'},
    ),
    "pallets/flask": Recipe("3.11", {"": (*_FLASK, *_RUNNER[:4])}, path="/testbed/src"),
    "psf/requests": Recipe(
        "3.9",
        {
            "2.26": (*_RUNNER, "urllib3==1.26.16", "certifi==2023.7.22", "idna==3.4", "charset-normalizer==2.0.12"),
            "2.27": (*_RUNNER, "urllib3==1.26.16", "certifi==2023.7.22", "idna==3.4", "charset-normalizer==2.0.12"),
            "": _RUNNER,
        },
    ),
}


def main() -> int:
    """Build, grade, tell."""
    options = _options()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    wanted, suite, reasons = official(options) if options.images else prepared(options)
    graded: dict[str, dict[str, tuple[str, str, bool]]] = {}
    for name in ("gold", "noop"):
        patches = [
            Prediction(row["instance_id"], name, row["patch"] if name == "gold" else NOTE)
            for row in wanted
            if row["instance_id"] not in reasons
        ]
        write_predictions(options.out / f"{name}.jsonl", patches)
        words = ["grade", str(suite), "--predictions", str(options.out / f"{name}.jsonl"), "--out", str(options.out / name)]
        greengrad([*words, "-j", str(options.jobs), "--sandbox", options.sandbox, "--audit", "0"])
        graded[name] = read_graded(options.out / name, suite)
    tell(options.out, wanted, graded, reasons)
    return 0


def official(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Path, dict[str, str]]:
    """Rows as they are, whose images a registry has."""
    wanted = [row for row in read_rows(options.data) if not options.repo or row["repo"] in options.repo][: options.limit]
    suite = options.out / "rows.jsonl"
    suite.parent.mkdir(parents=True, exist_ok=True)
    suite.write_text("".join(json.dumps(row) + "\n" for row in wanted))
    return wanted, suite, {}


def prepared(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Path, dict[str, str]]:
    """Rows of the repositories that there are clones of, with environments of ours; why some could not be made."""
    rows = [row for row in read_rows(options.data) if row["repo"] in (options.repo or RECIPES)]
    clones = find_clones(options.repos, {row["repo"] for row in rows})
    wanted = [row for row in rows if row["repo"] in clones][: options.limit]
    return wanted, options.out / "suite", build(options.out / "suite", wanted, clones)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the data set."""
    from pyarrow.parquet import read_table

    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


def find_clones(folder: Path, repos: set[str]) -> dict[str, Path]:
    """Repository -> its clone below a folder: a directory of git whose path names owner or project."""
    found: dict[str, Path] = {}
    for git in _git_folders(folder):
        names = str(git.relative_to(folder.parent)).replace(".git", "").replace("+", "/").lower()
        for repo in repos:
            if repo.lower() in names or f"/{repo.split('/')[1].lower()}" in f"/{names}":
                found.setdefault(repo, git)
    return found


def _git_folders(folder: Path) -> Iterator[Path]:
    for head in sorted(folder.rglob("HEAD")):
        if (head.parent / "objects").is_dir() and (head.parent / "refs").is_dir():
            yield head.parent


def build(suite: Path, rows: list[dict[str, Any]], clones: dict[str, Path]) -> dict[str, str]:
    """Write the task folders that are not there yet; instance id -> why one could not be made."""
    write_config(suite, "SWE-bench/SWE-bench_Verified", ("test",))
    reasons = {}
    for number, row in enumerate(rows, 1):
        if not (suite / "tasks" / row["instance_id"]).is_dir():
            try:
                write_one(suite, row, clones[row["repo"]])
            except (SandboxError, ValueError) as error:
                reasons[row["instance_id"]] = " ".join(str(error).split())[:300]
        print(f"\rbuilt {number}/{len(rows)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return reasons


def write_one(suite: Path, row: dict[str, Any], clone: Path) -> None:
    """One task folder: environment, tree, the official script with pip's line replaced."""
    from tasks.families import row_task

    recipe = RECIPES[row["repo"]]
    pins = recipe.pins.get(row["version"], recipe.pins[""])
    requirements = (f"python=={recipe.python}", *sorted(pins))
    environment = ensure_environment(requirements)
    tree = suite / f".{row['instance_id']}.tar"
    checkout_tree(clone, row["base_commit"], tree, {path: text.format(version=row["version"]) for path, text in recipe.files.items()})
    task = row_task(row)
    task = replace(task, image=Image(environment, tree), requirements=requirements, eval_script=adapt(task, recipe), test_seconds=SECONDS)
    write_task(suite, task, dockerfile(environment), "SWE-bench/SWE-bench_Verified")
    tree.unlink()


def adapt(task: Task, recipe: Recipe) -> str:
    """The official script with the import path in the place of the installation."""
    lines = task.eval_script.split("\n")
    place = next(number for number, line in enumerate(lines) if line.startswith("python -m pip install"))
    return "\n".join(
        [*lines[:place], f"export PYTHONPATH={recipe.path} PYTHONDONTWRITEBYTECODE=1\n{recipe.setup}".rstrip(), *lines[place + 1 :]]
    )


def read_graded(out: Path, suite: Path) -> dict[str, tuple[str, str, bool]]:
    """Instance id -> outcome, reason, whether the official functions say of the same log what we say."""
    tasks = {task.instance_id: task for task in load_suite(suite).tasks}
    found = {}
    for verdict in read_verdicts(out):
        official = bool(verdict.log) and read_log(tasks[verdict.instance_id], verdict.log).resolved
        found[verdict.instance_id] = (verdict.outcome.value, verdict.reason, official is (verdict.outcome.value == "resolved"))
    return found


def tell(out: Path, rows: list[dict[str, Any]], graded: dict[str, dict[str, tuple[str, str, bool]]], reasons: dict[str, str]) -> None:
    """Print the table and write every instance to table.json."""
    counts: dict[str, Counter[str]] = {}
    table = []
    for row in rows:
        name, count = row["instance_id"], counts.setdefault(row["repo"], Counter())
        gold, noop = (graded[kind].get(name, ("not built", reasons.get(name, ""), True)) for kind in ("gold", "noop"))
        good = gold[0] == "resolved" and noop[0] == "unresolved"
        count.update({"attempted": 1, "good": int(good), "official agrees": int(gold[2] and noop[2])})
        table.append(
            {"instance_id": name, "version": row["version"], "gold": gold[0], "noop": noop[0], "reason": "" if good else gold[1] or noop[1]}
        )
    (out / "table.json").write_text(json.dumps(table, indent=1))
    print("\n| repository | attempted | gold resolves, no-op does not | official functions agree |\n|---|---|---|---|")
    for repo, count in counts.items():
        print(f"| {repo} | {count['attempted']} | {count['good']} | {count['official agrees']} |")
    for one in table:
        if one["reason"]:
            print(f"{one['instance_id']} ({one['version']}): gold {one['gold']}, no-op {one['noop']}: {one['reason'][:200]}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path(os.environ.get("GREENGRAD_DATA") or Path(__file__).parents[3] / "shared" / "data")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--repos", type=Path, metavar="DIR")
    source.add_argument("--images", action="store_true", help="the official images, from their registry")
    parser.add_argument("--data", type=Path, default=home / "SWE-bench_Verified.test.parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repo", action="append", help="only this one (may be repeated)")
    parser.add_argument("--limit", type=int)
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--sandbox", default="bubblewrap", choices=("bubblewrap", "docker"))
    options = parser.parse_args()
    if options.images:
        options.sandbox = "docker"
    return options


if __name__ == "__main__":
    sys.exit(main())
