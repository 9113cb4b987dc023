"""Which files of a patch could decide its own grade; knows paths, no sandbox.

Everything here runs before, or beside, the code under test: what the test runner loads by itself (conftest.py, its settings,
plugins found by entry points), what the interpreter loads by itself (sitecustomize, *.pth), what would be imported instead of
the runner, git's own files, and the tests that the task brings. A file that the gold patch touches is part of the task and stays.
"""

import sys
from collections.abc import Callable
from pathlib import PurePosixPath

from .base import Task
from .patches import drop_files, patch_paths
from .witness import PLUGIN

_SETTINGS = {"pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg", "pyproject.toml", "noxfile.py"}
_RUNNER = {"pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "unittest", "exceptiongroup", "tomli", PLUGIN}
_STARTUP = {"conftest", "sitecustomize", "usercustomize"}


def kept_protected(task: Task, patch: str) -> tuple[str, ...]:
    """Paths of a patch that could decide the grade and stay, because the gold patch touches them: this task's policy."""
    gold, protected = set(patch_paths(task.gold_patch)), _protected(task)
    return tuple(path for path in patch_paths(patch) if path in gold and protected(path))


def drop_protected(task: Task, patch: str) -> tuple[str, tuple[str, ...]]:
    """The patch without the files that could decide the grade, and the paths left out."""
    gold, protected = set(patch_paths(task.gold_patch)), _protected(task)
    return drop_files(patch, lambda path: path not in gold and protected(path))


def _protected(task: Task) -> Callable[[str], bool]:
    """Tells which files could decide the grade: by their name, as one of the task's tests, or because they lie among them."""
    tests = set(patch_paths(task.test_patch))
    roots = {root for path in tests if (root := _tests_root(path))}
    return lambda path: _decides(path) or path in tests or _tests_root(path) in roots


def _decides(path: str) -> bool:
    """Whether a file of this name is loaded by the runner, the interpreter or git without being asked for."""
    parts = PurePosixPath(path).parts
    return (
        parts[-1] in _SETTINGS
        or parts[-1].endswith((".pth", ".egg-link"))
        or bool({part.removesuffix(".py") for part in parts} & _STARTUP)
        or any(part.startswith(".git") or part.endswith((".dist-info", ".egg-info")) for part in parts)
        or _shadows(parts[1:] if parts[0] == "src" and len(parts) > 1 else parts)
    )


def _shadows(parts: tuple[str, ...]) -> bool:
    """Whether a file at the top of the import path would be imported instead of the runner or the standard library."""
    if parts[0].removesuffix(".py") in _RUNNER:
        return True
    module = (
        parts[0].removesuffix(".py") if len(parts) == 1 and parts[0].endswith(".py") else parts[0] if parts[1:] == ("__init__.py",) else ""
    )
    return module in sys.stdlib_module_names


def _tests_root(path: str) -> str:
    """The outermost directory called test or tests above a file; "" where there is none."""
    parts = PurePosixPath(path).parts[:-1]
    return next(("/".join(parts[: at + 1]) for at, part in enumerate(parts) if part in ("test", "tests")), "")
