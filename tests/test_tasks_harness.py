"""The official harness itself, `swebench eval` on local Docker, beside our grading: the same suite, the same patches, the same verdicts.

Its own reader reads our task repository. Its own image builder wants buildx, which Debian's docker.io lacks, so the images are built
here, from the same Dockerfiles.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from sandbox import Backend, open_backend
from tasks import Outcome, Prediction, Suite, Task, grade, load_suite, prepare_suite, toy_suite, write_predictions, write_report, write_task
from tasks.patches import diff_text
from tasks.script import dockerfile
from tasks.store import official_image, write_config

pytestmark = pytest.mark.docker
HARNESS = Path(__file__).parents[1] / "scripts" / "bench" / "harness.py"
SECONDS = 10
ADD = "def add(a, b):\n    return a - b\n\n\ndef double(a):\n    return a * 2\n"
WORDS = "def words(text):\n    return text.split()[1:]\n\n\ndef first(text):\n    return text[:1]\n"

CASES = {
    "gold": ("add", ADD.replace("a - b", "a + b"), Outcome.RESOLVED),
    "noop": ("add", None, Outcome.UNRESOLVED),
    "partial": ("words", WORDS.replace("text.split()[1:]", "[text]"), Outcome.UNRESOLVED),
    "regression": ("add", ADD.replace("a - b", "a + b").replace("a * 2", "a * 3"), Outcome.UNRESOLVED),
    "elsewhere": ("add", "", Outcome.PATCH_INVALID),
    "empty": ("add", ADD, Outcome.NO_PATCH),
    "timeout": ("add", "import time\n\ntime.sleep(600)\n" + ADD, Outcome.TESTS_TIMEOUT),
    "syntax": ("add", "def add(:\n", Outcome.UNRESOLVED),
    "crash": ("add", "import os\n\nos.abort()\n", Outcome.UNRESOLVED),
}
"""Name -> toy task, calc.py as the patch leaves it, our verdict."""


def case_of(task: Task) -> str:
    """The name of a task's case."""
    return task.instance_id.removeprefix("greengrad__case-")


def patch(name: str) -> str:
    """The patch of a case."""
    task, after, _ = CASES[name]
    if name == "noop":
        return diff_text("notes.txt", None, "nothing that counts\n")
    if name == "elsewhere":
        return diff_text("calc.py", "what was never there\n", "x = 1\n")
    before = ADD if task == "add" else WORDS
    return "" if before == after else diff_text("calc.py", before, str(after))


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    """One task a case."""
    toys = {task.instance_id.removeprefix("greengrad__toy-"): task for task in toy_suite(tmp_path_factory.mktemp("toys")).tasks}
    folder = tmp_path_factory.mktemp("suite")
    write_config(folder, "greengrad/toy", ("test",))
    for name, (toy, _, _) in CASES.items():
        task = replace(toys[toy], instance_id=f"greengrad__case-{name}", split="test", test_seconds=float(SECONDS))
        write_task(folder, task, dockerfile(task.image.name), "greengrad/toy")
    return load_suite(folder)


@pytest.fixture(scope="module")
def images(suite, daemon) -> Iterator[None]:
    """The official image of each task; removed afterwards."""
    client = docker.from_env(timeout=120)
    names = {task.instance_id: official_image(task.instance_id) for task in suite.tasks}
    for instance_id, name in names.items():
        client.images.build(path=str(suite.path / "tasks" / instance_id), tag=name, rm=True, network_mode="none")
    yield
    for name in names.values():
        client.images.remove(name, force=True)


def official(suite: Suite, predictions: Path, folder: Path) -> tuple[dict, Path]:
    """The run report of `swebench eval`, and its folder of logs."""
    from swebench.task.repo import load_task_repo

    rows = load_task_repo(str(suite.path))
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = [sys.executable, str(HARNESS), "--quick-stop", "eval", str(folder / "rows.jsonl")]
    command += ["--predictions", str(predictions), "--run-id", "parity", "--timeout", str(SECONDS), "-j", "4"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "m.parity.json").read_text()), folder / "logs" / "run_evaluation" / "parity" / "m"


@pytest.fixture(scope="module")
def daemon(suite) -> Backend:
    """Docker, with the environment of the suite."""
    backend = open_backend("docker")
    asyncio.run(prepare_suite(suite))
    asyncio.run(backend.prepare(suite.tasks[0].image.name))
    return backend


async def test_the_official_harness_and_ours_agree_instance_by_instance(suite, daemon, images, tmp_path):
    predictions = [Prediction(f"greengrad__case-{name}", "m", patch(name)) for name in CASES]
    write_predictions(tmp_path / "predictions.jsonl", predictions)
    report, logs = official(suite, tmp_path / "predictions.jsonl", tmp_path)
    verdicts = await asyncio.gather(*(grade(daemon, task, patch(case_of(task))) for task in suite.tasks))
    assert {case_of(task): verdict.outcome for task, verdict in zip(suite.tasks, verdicts, strict=True)} == {
        name: outcome for name, (_, _, outcome) in CASES.items()
    }
    write_report(tmp_path / "ours", verdicts, predictions, suite)
    ours = json.loads((tmp_path / "ours" / "report.json").read_text())
    assert ours["resolved_ids"] == report["resolved_ids"] and ours["empty_patch_ids"] == report["empty_patch_ids"]
    assert set(report["error_ids"]) - set(ours["error_ids"]) == {"greengrad__case-timeout"}, "an error there, unresolved here"
    for path in sorted(logs.glob("*/report.json")):
        name = path.parent.name
        one = json.loads((tmp_path / "ours" / "logs" / name / "report.json").read_text())[name]
        assert {key: value for key, value in one.items() if key not in ("official_resolved", "evidence")} == json.loads(path.read_text())[
            name
        ]
    assert len(list(logs.glob("*/report.json"))) == report["completed_instances"] == len(CASES) - 3
