"""The house: which way imports point, where heavy packages may be, how fast and light --help is, what no tracked file may hold."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
RANK = {"sandbox": 0, "tasks": 1, "pipeline": 2}
ROOMS = {
    "torch": {
        "pipeline/loss.py",
        "pipeline/head.py",
        "pipeline/attention.py",
        "pipeline/rank.py",
        "pipeline/workshop.py",
        "pipeline/model.py",
        "pipeline/ulysses.py",
        "pipeline/checkpoint.py",
        "pipeline/lora.py",
        "pipeline/convert.py",
        "pipeline/weights.py",
        "pipeline/rank_export.py",
        "pipeline/transfer.py",
        "pipeline/worker.py",
    },
    "vllm": {"pipeline/worker.py", "pipeline/transfer.py"},
    "deepspeed": {"pipeline/workshop.py", "pipeline/rank_export.py", "pipeline/checkpoint.py", "pipeline/ulysses.py"},
    "peft": {"pipeline/lora.py"},
    "docker": {"sandbox/docker.py", "sandbox/docker_images.py"},
    "git": {"sandbox/repo.py", "tasks/mine.py"},
    "libcst": {"tasks/spans.py", "tasks/operators.py", "tasks/operators_flow.py"},
    "datasets": {"tasks/sources.py", "tasks/export.py"},
    "ray": {"pipeline/cluster.py", "pipeline/actors.py"},
    "tensorboard": {"pipeline/sinks.py"},
    "wandb": {"pipeline/sinks.py"},
    "trackio": {"pipeline/sinks.py"},
}
"""Package -> the only files that may import it."""
LIGHT_PACKAGES = (
    "torch",
    "vllm",
    "deepspeed",
    "docker",
    "swebench",
    "datasets",
    "transformers",
    "ray",
    "git",
    "numpy",
    "pydantic",
    "rich",
    "libcst",
)
SOURCES = sorted(path for top in RANK for path in (REPOSITORY / top).rglob("*.py"))


def imports_of(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, is relative) of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, False
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno, node.level > 0


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_down_and_go_through_the_face(path: Path) -> None:
    own = name_of(path).split("/")[0]
    for module, line, relative in imports_of(path):
        top, _, inner = module.partition(".")
        if relative or top not in RANK:
            continue
        assert RANK[top] < RANK[own], (
            f"{name_of(path)}:{line} imports {module}: inside a folder imports are relative, across they point down"
        )
        assert not inner, f"{name_of(path)}:{line} imports {module}: only the face of another folder is imported (from {top} import ...)"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    for module, line, relative in imports_of(path):
        rooms = None if relative else ROOMS.get(module.split(".")[0])
        assert rooms is None or name_of(path) in rooms, f"{name_of(path)}:{line} imports {module}; it may only be in {rooms}"


def blocking(*arguments: str) -> list[str]:
    """Python in which the heavy and the light packages cannot be imported, running the greengrad command."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {LIGHT_PACKAGES!r}: raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pipeline.cli import main\n"
        "sys.exit(main())"
    )
    return [sys.executable, "-c", code, *arguments]


COMMANDS = [
    "doctor",
    "tasks build",
    "tasks list",
    "tasks mine",
    "tasks validate",
    "rollout",
    "eval",
    "train",
    "plan",
    "grade",
    "regrade",
    "show",
    "curriculum",
    "view",
    "compare",
    "replay",
    "audit",
]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_needs_no_package_but_the_standard_library(command: str) -> None:
    done = subprocess.run(blocking(*command.split(), "--help"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"usage: {' '.join(['greengrad', command]).strip()}" in " ".join(done.stdout.split())
    assert "examples:" in done.stdout or not command


def test_help_answers_in_half_a_second_of_processor_time() -> None:
    """Processor time, because a busy machine cannot promise wall time; the best of three."""
    seconds = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-m", "pipeline.cli", "--help"], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        assert status == 0
        seconds.append(used.ru_utime + used.ru_stime)
    assert min(seconds) < 0.5


def test_a_command_that_misses_a_package_says_which() -> None:
    done = subprocess.run(blocking("plan", "configs/quickstart.yaml"), capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    assert done.returncode == 1
    assert re.fullmatch(r"greengrad plan: \w+ is not installed here; scripts/setup installs it\n", done.stderr)


def tracked() -> list[Path]:
    done = subprocess.run(["git", "-C", str(REPOSITORY), "ls-files", "-z"], capture_output=True, check=True, timeout=30)
    return [REPOSITORY / name for name in done.stdout.decode().split("\0") if name]


FORBIDDEN = {
    "a path of one machine": re.compile(
        r"(?<![\w.$}])/(?:work|farm|opt/wheels|opt/pypi|root|mnt|Users|tmp/(?:gv|h\d))/\w|/home/(?!agent\b)\w"
    ),
    "a package index or registry": re.compile(
        r"https?://(?:pypi\.|files\.pythonhosted|download\.pytorch|docker\.io|ghcr\.io|quay\.io|registry)", re.I
    ),
}


def test_no_tracked_file_names_a_machine_or_a_registry() -> None:
    found = []
    for path in tracked():
        if (
            path == Path(__file__) or not path.is_file() or name_of(path).startswith("tests/data/")
        ):  # texts of others are quoted as they are
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, pattern in FORBIDDEN.items():
            found += [f"{name_of(path)}: {match.group()} is {what}" for match in pattern.finditer(text)]
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_broad_except_outside_of_the_command_line(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler) and name_of(path) != "pipeline/cli.py":
            broad = node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
            assert not broad or reraises(node), f"{name_of(path)}:{node.lineno} catches everything"


def reraises(handler: ast.ExceptHandler) -> bool:
    """Cleaning up and raising on is no swallowing."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None
