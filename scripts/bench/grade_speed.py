#!/usr/bin/env python3
"""How fast grading is: `greengrad grade` beside the official harness on the same tasks, patches and Docker daemon; and `regrade`.

    python scripts/bench/grade_speed.py --suite SUITE [-n 16] [-j 2] [--data DIR] [--skip-harness | --skip-regrade]

The harness runs twice: as it is, and with its containers killed instead of stopped (each waits 15 seconds for a process that does not
listen). Images are built before the clock starts, on both sides; neither side's container has a network. Half of the patches are gold,
half change nothing that counts. Verdicts are compared, instance by instance.

regrade: 500 real logs of 2024 (model runs and gold, see parity.py) in a folder of ours, read, parsed and judged again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import docker

sys.path.insert(0, str(Path(__file__).parents[2]))

from parity import read_cases, read_tasks

from pipeline.cli import main as greengrad
from tasks import Outcome, Prediction, Suite, Task, Verdict, load_suite, write_predictions
from tasks.artefacts import write_logs
from tasks.swebench import official_image

HOME = Path(__file__).parents[2]
HARNESS = Path(__file__).with_name("harness.py")
NOTE = "diff --git a/NOTES.txt b/NOTES.txt\nnew file mode 100644\n--- /dev/null\n+++ b/NOTES.txt\n@@ -0,0 +1 @@\n+nothing\n"
LOGS = 500


def main() -> None:
    """Print both tables."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="greengrad-speed-") as scratch:
        if not options.skip_harness:
            beside_the_harness(options, Path(scratch))
        if not options.skip_regrade:
            regraded(options.data, Path(scratch) / "regrade")


def beside_the_harness(options: argparse.Namespace, scratch: Path) -> None:
    """Three runs of the same work."""
    suite = load_suite(options.suite)
    chosen = suite.tasks[:: max(1, len(suite.tasks) // options.number)][: options.number]
    patches = [Prediction(t.instance_id, "m", NOTE if number % 2 else t.gold_patch) for number, t in enumerate(chosen)]
    write_predictions(scratch / "predictions.jsonl", patches)
    _build_images(suite, chosen)
    greengrad(["grade", *_ours(options, scratch, "warm")])  # builds what ours needs; not counted
    times, verdicts = {}, {}
    for name in ("harness", "harness, killed at once"):
        times[name], verdicts[name] = _harness(suite, chosen, scratch, name != "harness", options.jobs)
    command = [sys.executable, "-m", "pipeline.cli", "grade", *_ours(options, scratch, "ours")]
    times["greengrad grade"] = _timed(command, HOME)
    verdicts["greengrad grade"] = set(json.loads((scratch / "ours" / "report.json").read_text())["resolved_ids"])
    assert len({frozenset(found) for found in verdicts.values()}) == 1, verdicts
    print(f"\n{len(chosen)} instances, -j {options.jobs}, {len(verdicts['harness'])} resolved, the same ones by all\n")
    print("| | wall, s | s an instance | times ours |\n|---|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.1f} | {seconds / len(chosen):.2f} | {seconds / times['greengrad grade']:.1f} |")


def regraded(data: Path, out: Path) -> None:
    """`greengrad regrade` on real logs."""
    tasks = read_tasks(data)
    size = 0
    for number, case in enumerate(read_cases(data, tasks)):
        if number == LOGS:
            break
        task = tasks[case.instance_id]
        verdict = Verdict(case.instance_id, Outcome.RESOLVED if case.ours else Outcome.UNRESOLVED, tests=case.tests, log=case.log)
        name = f"{case.instance_id}--{number}"
        write_logs(out / "all", replace(task, instance_id=name), "", replace(verdict, instance_id=name))
        size += len(case.log)
    seconds = _timed([sys.executable, "-m", "pipeline.cli", "regrade", str(out / "all")], HOME)
    print(f"\nregrade: {LOGS} real logs, {size / 1e6:.0f} MB, in {seconds:.1f} s of wall time, start of Python included")


def _ours(options: argparse.Namespace, scratch: Path, name: str) -> list[str]:
    words = [str(options.suite.resolve()), "--predictions", str(scratch / "predictions.jsonl"), "--out", str(scratch / name)]
    return [*words, "-j", str(options.jobs), "--sandbox", "docker", "--audit", "0"]


def _build_images(suite: Suite, chosen: Sequence[Task]) -> None:
    client = docker.from_env(timeout=300)
    for task in chosen:
        folder = suite.path / "tasks" / task.instance_id
        client.images.build(path=str(folder), tag=official_image(task.instance_id), rm=True, network_mode="none")


def _harness(suite: Suite, chosen: Sequence[Task], scratch: Path, quick: bool, jobs: int) -> tuple[float, set[str]]:
    """Seconds of `swebench eval`, and what it says is resolved."""
    from swebench.task.repo import load_task_repo

    names, run = {task.instance_id for task in chosen}, "quick" if quick else "plain"
    rows = [row for row in load_task_repo(str(suite.path)) if row["instance_id"] in names]
    (scratch / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = [sys.executable, str(HARNESS), *(["--quick-stop"] if quick else []), "eval", "rows.jsonl"]
    seconds = _timed([*command, "--predictions", "predictions.jsonl", "--run-id", run, "-j", str(jobs)], scratch)
    return seconds, set(json.loads((scratch / f"m.{run}.json").read_text())["resolved_ids"])


def _timed(command: Sequence[str], folder: Path) -> float:
    begin = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=3600, check=False)
    seconds = time.monotonic() - begin
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, help="a folder that `greengrad tasks build small` made")
    parser.add_argument("-n", "--number", type=int, default=16)
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GREENGRAD_DATA") or HOME.parent / "shared" / "data"))
    parser.add_argument("--skip-harness", action="store_true")
    parser.add_argument("--skip-regrade", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
