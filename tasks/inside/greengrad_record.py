"""A pytest plugin for the build sandbox: how each test ended, and which functions it called; imports nothing of ours.

Writes JSON to $GREENGRAD_RECORD: {"tests": {id: [outcome, seconds, message]}, "calls": {"path:first line": [ids]}}. Calls are
followed only where $GREENGRAD_CALLS is set; those made while no test runs (imports, collection) have the id "".
"""

import json
import os
import sys
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest

_ROOT = os.getcwd() + os.sep
_GRAVITY = ("passed", "skipped", "failed")


class _Record:
    def __init__(self, path: str, follow: bool) -> None:
        self.path, self.follow, self.current = path, follow, ""
        self.calls: dict[tuple[str, int], set[str]] = {}
        self.tests: dict[str, list[Any]] = {}
        self.watch()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """The trace function: calls only, no lines."""
        code = frame.f_code
        if code.co_filename.startswith(_ROOT):
            self.calls.setdefault((code.co_filename, code.co_firstlineno), set()).add(self.current)

    def watch(self) -> None:
        """Follow calls from here on; again for each test, because tests may set a trace function of their own."""
        if self.follow:
            sys.settrace(self)
            threading.settrace(self)

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, None]:
        self.current = item.nodeid
        self.watch()
        yield
        self.current = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome, seconds, message = self.tests.get(report.nodeid, ["passed", 0.0, ""])
        crash = getattr(report.longrepr, "reprcrash", None)
        worse = max(outcome, report.outcome, key=_GRAVITY.index)
        self.tests[report.nodeid] = [worse, seconds + report.duration, message or getattr(crash, "message", "")]

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        calls = {f"{path.removeprefix(_ROOT)}:{line}": sorted(ids) for (path, line), ids in self.calls.items()}
        with open(self.path, "w", encoding="utf-8", errors="replace") as file:
            json.dump({"tests": self.tests, "calls": calls}, file)


def pytest_configure(config: pytest.Config) -> None:
    """Start before anything of the repository is imported."""
    path = os.environ.pop("GREENGRAD_RECORD", "")
    follow = os.environ.pop("GREENGRAD_CALLS", "")
    for name in ("PYTEST_ADDOPTS", "PYTHONPATH"):
        os.environ.pop(name, None)
    if path:
        config.pluginmanager.register(_Record(path, bool(follow)))
