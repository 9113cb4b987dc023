"""The scripts' own promises: nothing is skipped silently."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.arguments import parse

REPOSITORY = Path(__file__).parent.parent
SKIPPING = """
import pytest

def test_runs(): pass

@pytest.mark.skip(reason="no daemon here")
def test_needs_docker(): pass
"""
SKIPPING_ON_GPU = SKIPPING.replace("def test_needs_docker", "@pytest.mark.gpu\ndef test_needs_gpu")


def run_pytest(folder: Path, text: str, ci: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_sample.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  gpu: needs a GPU\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.no_silent_skips", "-p", "no:cacheprovider", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_under_ci_a_skipped_test_is_a_failure(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, SKIPPING, ci="true")
    assert result.returncode == 1
    assert "CI=true and skipped, which is a failure: " in result.stdout
    assert "test_needs_docker" in result.stdout


def test_elsewhere_a_skipped_test_is_named_with_its_reason(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, SKIPPING, ci="")
    assert result.returncode == 0
    assert "not run: 1 x no daemon here\n" in result.stdout


def test_under_ci_the_gpu_tests_alone_may_skip(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, SKIPPING_ON_GPU, ci="true")
    assert result.returncode == 0
    assert "not run: 1 x no daemon here\n" in result.stdout


@pytest.mark.parametrize("path", [*sorted((REPOSITORY / "scripts").rglob("*")), REPOSITORY / ".ci" / "run"], ids=lambda path: path.name)
def test_every_shell_script_is_valid_bash(path: Path) -> None:
    if path.is_dir() or path.suffix == ".pyc" or not path.read_text().startswith("#!/usr/bin/env bash"):
        return
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["test", "quickstart"])
def test_python_keeps_what_it_compiles(name: str) -> None:
    """An engine and a learner are five processes, and to compile what they import takes each of them 8 to 15 s."""
    lines = (REPOSITORY / "scripts" / name).read_text().splitlines()
    kept = next(place for place, line in enumerate(lines) if line.startswith("unset PYTHONDONTWRITEBYTECODE"))
    assert kept < next(place for place, line in enumerate(lines) if line.startswith("bash scripts/setup"))


def test_every_version_that_an_extra_pins_is_the_one_in_the_constraints() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for extra in ("cpu", "gpu"):
        lines = (REPOSITORY / "constraints" / f"{extra}.txt").read_text().splitlines()
        pinned = {line.split("==")[0].lower().replace("_", "-"): line.split("==")[1] for line in lines if "==" in line and line[0] != "#"}
        for wanted in [*project["dependencies"], *project["optional-dependencies"][extra], *project["optional-dependencies"]["dev"]]:
            name, _, version = wanted.partition("==")
            name = re.split(r"[<>=!\[ ]", name)[0].lower().replace("_", "-")
            assert name in pinned, f"{name} has no version in constraints/{extra}.txt"
            assert not version or pinned[name].split("+")[0] == version


def test_what_the_cluster_manifests_start_is_a_command_of_ours() -> None:
    job = yaml.safe_load((REPOSITORY / "scripts/kuberay/train.yaml").read_text())["spec"]
    _, *words = job["entrypoint"].split()
    assert parse(words).cluster == "auto"
    script = (REPOSITORY / "scripts/slurm/train.sbatch").read_text()
    (line,) = re.findall(r"\.venv/bin/greengrad (train .*)", script)
    words = [{"$config": "c.yaml", "$run": "r", "$head:$port": "10.0.0.1:6379"}.get(word.strip('"'), word) for word in line.split()]
    assert parse([word for word in words if word != '"$@"']).cluster == "10.0.0.1:6379"
    groups = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    mounts = [mount for group in groups for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]]
    assert sum(mount["mountPath"] == "/shared" for mount in mounts) == len(groups), "a node that does not see the run folder is refused"
