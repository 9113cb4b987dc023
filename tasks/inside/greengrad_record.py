"""A pytest plugin for the build sandbox: how each test ended, what it called and which lines it came to; imports nothing of ours.

Writes JSON to $GREENGRAD_RECORD: {"tests": {id: [outcome, seconds, message]}, "calls": {"path:first line": [ids]},
"lines": {path: {line: [numbers of tests]}}}. Calls are followed where $GREENGRAD_FOLLOW is set, lines in the files and folders that it
names, of a function only for the first $GREENGRAD_CROWD tests that call it. Calls that are made while no test runs (imports, collection)
have the id "", and no lines. A line costs once a test: Python 3.12 can switch an event off where it was seen, before that a function is
traced until all its lines were.
"""

import dis
import json
import os
import sys
import threading
from collections.abc import Callable, Generator
from types import CodeType, FrameType
from typing import Any

import pytest

_ROOT = os.getcwd() + os.sep
_GRAVITY = ("passed", "skipped", "failed")
_IDLE = 1000
"""So many lines in a row, in one function and test, that were all seen before: what comes later is not looked for (Python < 3.12)."""
_TOOL = 4
"""One of the numbers that sys.monitoring has for nobody in particular."""


class _Footprints:
    """Who called what and came where."""

    def __init__(self, tops: list[str], crowd: int) -> None:
        self.tops, self.crowd = tuple(_ROOT + top for top in tops), crowd
        self.test = ""
        self.calls: dict[tuple[str, int], set[str]] = {}
        self.lines: dict[tuple[str, int], set[str]] = {}

    def called(self, code: CodeType) -> bool:
        """Note a call of a function of the repository; whether its lines matter."""
        path = code.co_filename
        if not path.startswith(_ROOT) or code.co_name == "<module>":
            return False
        tests = self.calls.setdefault((path, code.co_firstlineno), set())
        tests.add(self.test)
        return bool(self.test) and len(tests) <= self.crowd and any(path == top or path.startswith(top + os.sep) for top in self.tops)

    def came(self, path: str, line: int) -> None:
        """Note a line."""
        self.lines.setdefault((path, line), set()).add(self.test)


class _Tracer:
    """Follows with sys.settrace."""

    def __init__(self, prints: _Footprints) -> None:
        self.prints = prints
        self.traces: dict[int, tuple[CodeType, Any]] = {}
        """By identity, because the hash of a code object reads all of it; what was noted of a function in a test is not noted again."""

    def __call__(self, frame: FrameType, event: str, argument: object) -> "Callable[..., Any] | None":
        """The trace function: a call of anything."""
        code = frame.f_code
        found = self.traces.get(id(code))
        if found is None:
            found = self.traces[id(code)] = (code, self.follow(code) if self.prints.called(code) else None)
        return found[1]

    def follow(self, code: CodeType) -> "Callable[..., Any]":
        """The trace function of one function in one test; it is given up where all lines were seen, or no new one for long."""
        left, idle = {line for _, line in dis.findlinestarts(code) if line} - {code.co_firstlineno}, 0

        def trace(frame: FrameType, event: str, argument: object) -> "Callable[..., Any]":
            nonlocal idle
            line = frame.f_lineno
            if line in left:
                if event == "line":
                    left.discard(line)
                    self.prints.came(code.co_filename, line)
                    idle = 0
            else:
                idle += 1
            if not left or idle > _IDLE:
                self.traces[id(code)] = (code, None)
                frame.f_trace_lines = False
            return trace

        return trace

    def again(self) -> None:
        """A test begins or ends: the same calls count again (and it may have set a trace function of its own)."""
        self.traces.clear()
        sys.settrace(self)
        threading.settrace(self)

    def stop(self) -> None:
        """The end of all."""
        sys.settrace(None)


if sys.version_info >= (3, 12):

    class _Monitor:
        """Follows with sys.monitoring."""

        def __init__(self, prints: _Footprints) -> None:
            self.prints, self.events = prints, sys.monitoring.events
            sys.monitoring.use_tool_id(_TOOL, "greengrad")
            sys.monitoring.register_callback(_TOOL, self.events.PY_START, self.called)
            sys.monitoring.register_callback(_TOOL, self.events.LINE, self.came)
            sys.monitoring.set_events(_TOOL, self.events.PY_START)

        def called(self, code: CodeType, offset: int) -> Any:
            """A function starts."""
            wanted = self.events.LINE if self.prints.called(code) else 0
            if wanted != sys.monitoring.get_local_events(_TOOL, code):
                sys.monitoring.set_local_events(_TOOL, code, wanted)
            return sys.monitoring.DISABLE

        def came(self, code: CodeType, line: int) -> Any:
            """A line of a function that is followed starts."""
            if self.prints.test:
                self.prints.came(code.co_filename, line)
            return sys.monitoring.DISABLE

        def again(self) -> None:
            """A test begins or ends: the same calls count again."""
            sys.monitoring.restart_events()

        def stop(self) -> None:
            """The end of all."""
            sys.monitoring.set_events(_TOOL, 0)
            sys.monitoring.free_tool_id(_TOOL)


def _follower(prints: _Footprints) -> Any:
    if sys.version_info >= (3, 12):
        return _Monitor(prints)
    return _Tracer(prints)


class _Record:
    def __init__(self, path: str, tops: list[str], crowd: int) -> None:
        self.path, self.prints = path, _Footprints(tops, crowd)
        self.tests: dict[str, list[Any]] = {}
        self.follower: Any = None
        if tops:
            self.follower = _follower(self.prints)
            self.enter("")

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, None]:
        self.enter(item.nodeid)
        yield
        self.enter("")

    def enter(self, test: str) -> None:
        self.prints.test = test
        if self.follower:
            self.follower.again()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome, seconds, message = self.tests.get(report.nodeid, ["passed", 0.0, ""])
        crash = getattr(report.longrepr, "reprcrash", None)
        worse = max(outcome, report.outcome, key=_GRAVITY.index)
        self.tests[report.nodeid] = [worse, seconds + report.duration, message or getattr(crash, "message", "")]

    def pytest_sessionfinish(self) -> None:
        if self.follower:
            self.follower.stop()
        calls = {f"{path[len(_ROOT) :]}:{line}": sorted(ids) for (path, line), ids in self.prints.calls.items()}
        number = {test: at for at, test in enumerate(self.tests)}
        lines: dict[str, dict[int, list[int]]] = {}
        for (path, line), ids in self.prints.lines.items():
            lines.setdefault(path[len(_ROOT) :], {})[line] = sorted(number[test] for test in ids if test in number)
        with open(self.path, "w", encoding="utf-8", errors="replace") as file:
            json.dump({"tests": self.tests, "calls": calls, "lines": lines}, file)


def pytest_configure(config: pytest.Config) -> None:
    """Start before anything of the repository is imported."""
    path = os.environ.pop("GREENGRAD_RECORD", "")
    tops = os.environ.pop("GREENGRAD_FOLLOW", "")
    crowd = int(os.environ.pop("GREENGRAD_CROWD", "0"))
    for name in ("PYTEST_ADDOPTS", "PYTHONPATH"):
        os.environ.pop(name, None)
    if path:
        config.pluginmanager.register(_Record(path, tops.split(os.pathsep) if tops else [], crowd))
