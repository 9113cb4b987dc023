#!/usr/bin/env python3
"""What `greengrad export` and `greengrad tasks export` write, read by the tools that it is for, in a throwaway virtual environment.

    python scripts/bench/interop.py --suite SUITE --run RUN [--sweagent CHECKOUT] [--json FILE] [--quick]

Harbor comes from PyPI: its models of trajectories (ATIF) and its Task with all of its checks. It asks for Python 3.12; on 3.11 its wheel is
installed all the same and given typing.override, the one thing that it lacks there. SWE-agent is not on PyPI, so CHECKOUT is its
repository: its types, its quick_stats, its merge_predictions and its inspector, which shows every step. --quick: Harbor alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HARBOR = "harbor==0.26.0"
HARBOR_NEEDS = ("pydantic==2.14.3", "toml==0.10.2", "typing_extensions", "pathspec==1.1.1")
SWEAGENT_NEEDS = ("swe-rex", "packaging", "requests", "litellm", "rich", "numpy", "pyyaml", "textual", "GitPython", "ruamel.yaml")

READ_HARBOR = """
import json, sys, typing
from pathlib import Path
if not hasattr(typing, "override"):
    import typing_extensions
    typing.override = typing_extensions.override
from harbor.models.task.task import Task
from harbor.models.trajectories import Trajectory
atif, tasks = (Path(word) for word in sys.argv[1:])
read = [Trajectory.model_validate_json(path.read_text()) for path in sorted(atif.rglob("trajectory.json"))]
folders = sorted(tasks.iterdir())
loaded = [Task(folder) for folder in folders if Task.is_valid_dir(folder)]
assert len(loaded) == len(folders) and all(task.instruction.strip() for task in loaded)
rewards = [one.extra["reward"] for one in read]
print(json.dumps({"trajectories": len(read), "steps": sum(len(one.steps) for one in read), "rewards": sum(map(bool, rewards)),
                  "tasks": len(loaded), "schema": sorted({task.config.schema_version for task in loaded})}))
"""
READ_SWEAGENT = """
import asyncio, json, sys
from pathlib import Path
checkout, folder = (Path(word) for word in sys.argv[1:])
sys.path.insert(0, str(checkout))
from sweagent.run.inspector_cli import TrajectoryInspectorApp
from sweagent.run.merge_predictions import merge_predictions
from sweagent.run.quick_stats import quick_stats
from sweagent.types import AgentRunResult
trajs = sorted(folder.rglob("*.traj"))
steps = 0
for path in trajs:
    found = json.loads(path.read_text())
    result = AgentRunResult.model_validate({"info": found["info"], "trajectory": found["trajectory"]})
    steps += len(result.trajectory)
attempts = [path for path in sorted(folder.glob("attempt_*"))] or [folder]
merged = 0
for place in attempts:
    merge_predictions([place], place / "merged.json")
    assert json.loads((place / "merged.json").read_text()) == json.loads((place / "preds.json").read_text())
    merged += len(json.loads((place / "merged.json").read_text()))
async def show():
    shown = 0
    app = TrajectoryInspectorApp(folder)
    async with app.run_test() as pilot:
        for _ in trajs:
            for _ in range(len(app.query_one("TrajectoryViewer").trajectory["trajectory"])):
                await pilot.press("l")
                shown += "Step" in app.sub_title
            await pilot.press("L")
    return shown
print(json.dumps({"trajs": len(trajs), "steps": steps, "predictions": merged, "shown": asyncio.run(show()),
                  "exits": [line[4:-1] for line in quick_stats(folder).splitlines() if line.startswith("## ")]}))
"""


def main() -> int:
    """Export, install, read; 1 where a tool refuses what we wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="a run folder with episodes")
    parser.add_argument("--sweagent", type=Path, help="a checkout of SWE-agent")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="greengrad-interop-") as scratch:
        found = _read_all(arguments, Path(scratch))
    for tool, told in found.items():
        print(f"{tool}: {json.dumps(told)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(any("error" in told for told in found.values()))


def _read_all(arguments: argparse.Namespace, scratch: Path) -> dict[str, dict[str, Any]]:
    _greengrad("export", arguments.run, "--format", "atif", "--out", scratch / "atif")
    _greengrad("tasks", "export", arguments.suite, "--format", "harbor", "--out", scratch / "harbor")
    python = _venv(scratch / "harbor-env", HARBOR_NEEDS)
    _pip(python, "--no-deps", "--ignore-requires-python", HARBOR)
    found = {HARBOR: _read(python, READ_HARBOR, scratch / "atif", scratch / "harbor")}
    if arguments.sweagent and not arguments.quick:
        _greengrad("export", arguments.run, "--format", "sweagent", "--out", scratch / "trajs")
        python = _venv(scratch / "sweagent-env", SWEAGENT_NEEDS)
        found["SWE-agent"] = _read(python, READ_SWEAGENT, arguments.sweagent, scratch / "trajs")
    return found


def _greengrad(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pipeline.cli", *map(str, words)], cwd=ROOT, check=True, timeout=1800)


def _venv(folder: Path, needs: tuple[str, ...]) -> Path:
    venv.EnvBuilder(with_pip=True).create(folder)
    _pip(folder / "bin" / "python", *needs)
    return folder / "bin" / "python"


def _pip(python: Path, *words: str) -> None:
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-compile", *words], check=True, timeout=1800)


def _read(python: Path, program: str, *words: Path) -> dict[str, Any]:
    command = [str(python), "-c", program, *(str(word.absolute()) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        return {"error": done.stderr.strip()[-2000:]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
