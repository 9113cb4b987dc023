"""A pytest plugin of scripts/test: says what was not run and why, and under CI=true makes a skip a failure (the marker gpu may skip)."""

import os
from collections import Counter

import pytest

ALLOWED = "gpu"
reasons: Counter[str] = Counter()
forbidden: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count a skipped test by its reason."""
    if report.skipped and not hasattr(report, "wasxfail"):
        note(report, allowed=ALLOWED in report.keywords)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that skips itself is a skip of everything in it."""
    if report.skipped:
        note(report, allowed=False)


def note(report: pytest.TestReport | pytest.CollectReport, allowed: bool) -> None:
    """Remember one skip."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reasons[reason.removeprefix("Skipped: ")] += 1
    if not allowed:
        forbidden.append(report.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under CI, green means that everything ran."""
    if os.environ.get("CI") == "true" and forbidden and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line: what was not run, and why."""
    parts = [f"{count} x {reason}" for reason, count in reasons.most_common()]
    deselected = len(terminalreporter.stats.get("deselected", []))
    if deselected:
        parts.append(f"{deselected} deselected (scripts/test --long runs the long ones)")
    terminalreporter.write_line("not run: " + ("; ".join(parts) or "nothing was left out"))
    if os.environ.get("CI") == "true" and forbidden:
        terminalreporter.write_line(f"CI=true and skipped, which is a failure: {', '.join(forbidden)}", red=True)
