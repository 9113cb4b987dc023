#!/usr/bin/env python3
"""Published verdicts on real evaluation logs of 2024 beside ours.

    python scripts/bench/parity.py [--data DIR] [--json FILE] [--slice FILE]

--data: folder with evaluation_logs.tar.xz and the SWE-bench .parquet files (default $GREENGRAD_DATA, else ../shared/data).
--slice FILE: writes one log per parser and verdict, with what the official 5.0.2 functions say of each test, as JSON under xz (tests/data).

A log of 2024 has no markers: what its tests printed stands between "Test Script:" and ">>>>> All|Some Tests"; it is put between the
markers of today. Tests and lists are those of the rows as published now; where they have changed since, verdicts differ (KNOWN).
"""

import argparse
import json
import lzma
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tasks import Outcome, Task, load_suite
from tasks.evaluation import Evaluation
from tasks.grade import judge
from tasks.swebench import END, START, read_log
from tasks.witness import Witness

SETS = ("SWE-bench_Lite.test", "SWE-bench_Lite.dev", "SWE-bench.dev", "SWE-bench_Verified.test")
"""Where a row is looked for, first found first taken."""
KNOWN = {
    *("django__django-11039", "django__django-13660", "matplotlib__matplotlib-25311", "matplotlib__matplotlib-25332"),
    *("matplotlib__matplotlib-25433", "matplotlib__matplotlib-25442", "matplotlib__matplotlib-25498", "psf__requests-2317"),
    "sympy__sympy-13177",
}
"""Instances whose lists of tests were changed after the logs were graded."""
_TESTS = re.compile(r"^Test Script: .*?$(.*?)^>>>>> (?:All|Some) Tests", re.MULTILINE | re.DOTALL)
_FAILED = re.compile(r">>>>> (?:Patch Apply Failed|Reset Failed|Tests Errored|Tests Timed Out)")


@dataclass(frozen=True, slots=True)
class Case:
    """One log: the published verdict, ours, and the statuses that we read."""

    run: str
    instance_id: str
    published: bool
    ours: bool
    tests: dict[str, str]
    log: str


def main() -> None:
    """Print a table, and write what was asked for."""
    options = _options()
    tasks = read_tasks(options.data)
    cases = [case for case in read_cases(options.data, tasks)]
    for run in sorted({case.run for case in cases}):
        mine = [case for case in cases if case.run == run]
        differ = sorted(case.instance_id for case in mine if case.ours != case.published)
        known = [name for name in differ if name in KNOWN]
        equal = f"{len(mine) - len(differ)} of {len(mine)} equal the published verdict"
        print(f"{run}: {equal}; lists changed since: {len(known)}; other: {sorted(set(differ) - KNOWN)}")
    print(dict(Counter(tasks[case.instance_id].log_parser for case in cases)))
    if options.json:
        options.json.write_text(json.dumps([{k: v for k, v in asdict(case).items() if k != "log"} for case in cases]))
    if options.slice:
        write_slice(options.slice, cases, tasks)
    sys.exit(any(case.ours != case.published and case.instance_id not in KNOWN for case in cases))


def read_tasks(data: Path) -> dict[str, Task]:
    """Instance id -> task, of all published sets."""
    found: dict[str, Task] = {}
    for name in SETS:
        found = {task.instance_id: task for task in load_suite(data / f"{name}.parquet").tasks} | found
    return found


def read_cases(data: Path, tasks: dict[str, Task]) -> Iterator[Case]:
    """Every log of the archive whose row is known, graded."""
    with tarfile.open(data / "evaluation_logs.tar.xz") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive if member.isreg()}  # type: ignore[union-attr]
    for path, raw in sorted(files.items()):
        if not (match := re.fullmatch(r"(.*/(.*))/logs/([^/]+?)\.[^/]*eval\.log", path)):
            continue
        folder, run, name = match.groups()
        report = json.loads(files[f"{folder}/report.json"])
        if name in tasks and name in report["generated"]:
            yield grade_log(run, tasks[name], name in report["resolved"], raw.decode("utf-8", "replace"))


def grade_log(run: str, task: Task, published: bool, text: str) -> Case:
    """Our verdict on one log of 2024."""
    log = with_markers(text)
    verdict = judge(replace(task, requirements=()), Evaluation(log, Witness()))
    return Case(run, task.instance_id, published, verdict.outcome is Outcome.RESOLVED, verdict.tests, log)


def with_markers(text: str) -> str:
    """What the tests printed, between the markers of version 5; what failed before them stays in front."""
    found = _TESTS.search(text)
    failed = "\n".join(_FAILED.findall(text))
    return f"{failed}\n+ : '{START}'\n{found[1] if found else ''}\n+ : '{END}'\n"


def write_slice(path: Path, cases: list[Case], tasks: dict[str, Task]) -> None:
    """The shortest log of each parser and verdict, with what is needed to grade it and what the official functions say."""
    chosen: dict[tuple[str, bool], Case] = {}
    for case in sorted(cases, key=lambda case: len(case.log)):
        if case.tests and case.ours == case.published:
            chosen.setdefault((tasks[case.instance_id].log_parser, case.published), case)
    rows: list[dict[str, Any]] = []
    for case in chosen.values():
        task = tasks[case.instance_id]
        lists = {"FAIL_TO_PASS": task.fail_to_pass, "PASS_TO_PASS": task.pass_to_pass}
        report = read_log(task, case.log).report[task.instance_id]["tests_status"]
        rows.append({"run": case.run, "instance_id": task.instance_id, "log_parser": task.log_parser, **lists, "log": case.log})
        rows[-1] |= {"resolved": case.published, "tests": case.tests, "tests_status": report}
    path.write_bytes(lzma.compress(json.dumps(rows).encode(), preset=9))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path(os.environ.get("GREENGRAD_DATA") or Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=home)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--slice", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
