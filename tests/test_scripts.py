"""The scripts' own promises: nothing is skipped silently."""

import os
import subprocess
import sys
from pathlib import Path

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
