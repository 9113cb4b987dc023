"""The main job itself, small: killed in the middle, the same command goes on and repeats nothing that was finished."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.journal import Journal, Phase
from pipeline.memory import resident_bytes
from pipeline.quickstart import PHASES
from pipeline.report import evaluations

REPOSITORY = Path(__file__).parent.parent
RECIPE = """\
dataset: greengrad/tiny
seed: 0
requirements: [iniconfig==2.1.0, packaging==25.0, pluggy==1.6.0, pygments==2.19.2, pytest==8.4.1]
min_lines: 3
max_lines: 14
packages:
  - name: cachetools
    version: 8.0.1
    sha256: deb1d376d4d28c2f33f3e3058043b005e0af75c35c094bd54053e27d2906ad95
    split: train
    tasks: 4
    sources: [src]
    modules: [src/cachetools]
    exclude: [docs]
  - name: semver
    version: 3.1.1
    sha256: 149b26cabada6f63212f97e94505d21578cb1d280cf714827f328d5e70765fea
    split: test
    tasks: 2
    sources: [src]
    modules: [src/semver]
    exclude: [docs, changelog.d, uv.lock]
"""
SMALL = {
    "rollout.tasks_per_step": 2,
    "rollout.group_size": 2,
    "rollout.max_turns": 3,
    "rollout.max_new_tokens": 64,
    "rft.epochs": 1,
    "train.steps": 1,
}


def start(folder: Path) -> subprocess.Popen[str]:
    (folder / "recipe.yaml").write_text(RECIPE)
    words = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    config = str(REPOSITORY / "configs" / "quickstart.yaml")
    command = [sys.executable, "-m", "pipeline.quickstart", config, "--recipe", "recipe.yaml", *words]
    with (folder / "told.txt").open("a") as told:
        return subprocess.Popen(command, cwd=folder, stdout=told, stderr=told, text=True, start_new_session=True)


def phases(folder: Path) -> list[Phase]:
    run = folder / "runs" / "quickstart"
    if not (run / "journal.sqlite").exists():
        return []
    with Journal(run, readonly=True) as journal:
        return journal.phases()


def wait_for(folder: Path, name: str, process: subprocess.Popen[str]) -> None:
    """Until a phase is done, half an hour at most."""
    for _ in range(1800):
        if name in [phase.name for phase in phases(folder)]:
            return
        assert process.poll() is None, (folder / "told.txt").read_text()[-3000:]
        time.sleep(1)
    raise TimeoutError(name)


@pytest.mark.vllm
@pytest.mark.deepspeed
def test_a_killed_quickstart_goes_on_and_repeats_no_finished_phase(tmp_path: Path) -> None:
    first = start(tmp_path)
    try:
        wait_for(tmp_path, "demonstrate", first)
        time.sleep(5)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(60)
    before = phases(tmp_path)
    assert [phase.name for phase in before] == ["model", "tasks", "evaluate base", "demonstrate"]
    second = start(tmp_path)
    try:
        assert second.wait(1800) == 0, (tmp_path / "told.txt").read_text()[-3000:]
    finally:
        second.kill()
    after = phases(tmp_path)
    assert [phase.name for phase in after] == [phase.name for phase in PHASES]
    assert after[: len(before)] == before
    assert (tmp_path / "told.txt").read_text().count("done before") == len(before)
    run = tmp_path / "runs" / "quickstart"
    assert list(evaluations(run)) == ["1-base", "demonstrations", "2-fine-tuned", "3-reinforced"]
    with Journal(run, readonly=True) as journal:
        assert list(journal.steps()) == [0]
        assert len(journal.rows()) == 4
    for name in ("manifest.json", "metrics.jsonl", "report.html", "config.yaml"):
        assert (run / name).stat().st_size > 0


def test_memory_counts_this_process_and_its_children() -> None:
    alone = resident_bytes(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "x = b'1' * 300_000_000; print('ready', flush=True); input()"], stdin=-1, stdout=-1)
    try:
        assert child.stdout is not None and child.stdout.readline()
        assert resident_bytes(os.getpid()) > alone + 250_000_000
    finally:
        child.kill()
        child.wait()


def test_wrong_use_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.quickstart", str(REPOSITORY / "configs" / "quickstart.yaml"), "--optim.lrr", "3"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (2, "quickstart: command line: unknown key optim.lrr (did you mean optim.lr?)\n")
    assert list(tmp_path.iterdir()) == []
