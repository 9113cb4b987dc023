"""The out-of-band record of a test run: its plugin's text, and its signed lines read back; knows neither sandbox nor task."""

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLUGIN = "greengrad_witness"
_SHAPES = ({"id", "when", "raised", "outcome", "xfail"}, {"end", "changed", "rewritten"})
"""What a record holds: a phase of a test, and the end. One with another shape was signed by somebody else with our key."""


@dataclass(frozen=True, slots=True)
class Witness:
    """What our plugin saw inside the test process."""

    statuses: dict[str, str] = field(default_factory=dict)
    """Test id -> PASSED, FAILED, ERROR, SKIPPED, XFAIL or XPASS, as pytest would name it."""
    finished: bool = False
    """False where the run ended before its session did (os._exit, a kill)."""
    changed: tuple[str, ...] = ()
    """Functions of the runner that were replaced while the tests ran."""
    rewritten: tuple[str, ...] = ()
    """Hidden tests and conftest.py files that were not, at some moment, what they were before the code under test was loaded."""
    exit_status: int = -1
    """Of the session, as the runner told it; -1 where it did not come to its end."""
    forged: str = ""
    """What is wrong with the record itself: a line without our signature, a number missing."""


def plugin_text(name: str = PLUGIN) -> str:
    """Source of the plugin."""
    return (Path(__file__).parent / "inside" / f"{name}.py").read_text(encoding="utf-8")


def read_witness(data: bytes, key: bytes) -> Witness:
    """The record as the plugin wrote it with this key; reading stops at the first line that is not the plugin's."""
    phases: dict[str, dict[str, dict[str, Any]]] = {}
    for number, line in enumerate(data.splitlines()):
        record = _verify(line, key)
        if record is None or record.pop("n", -1) != number or set(record) not in _SHAPES:
            return Witness(_statuses(phases), forged=f"line {number + 1} of the record is not the plugin's")
        if "end" in record:
            extra = data.count(b"\n") != number + 1
            return Witness(
                _statuses(phases),
                finished=not extra,
                changed=tuple(record["changed"]),
                rewritten=tuple(record["rewritten"]),
                exit_status=record["end"],
                forged="lines after the end of the record" if extra else "",
            )
        test = phases.setdefault(record["id"], {})
        test[record["when"]] = max(test.get(record["when"], record), record, key=_gravity)  # subtests report a phase again
    return Witness(_statuses(phases))


def _gravity(record: dict[str, Any]) -> tuple[int, bool]:
    return ("passed", "skipped", "failed").index(record["outcome"]), bool(record["raised"])


def _verify(line: bytes, key: bytes) -> dict[str, Any] | None:
    body, _, mac = line.rpartition(b" ")
    if not hmac.compare_digest(hmac.new(key, body, hashlib.sha256).hexdigest().encode(), mac):
        return None
    record: dict[str, Any] = json.loads(body)
    return record


def _statuses(phases: dict[str, dict[str, dict[str, Any]]]) -> dict[str, str]:
    return {test: _status(records) for test, records in phases.items()}


def _status(records: dict[str, dict[str, Any]]) -> str:
    """As `pytest -rA` prints it; what a test raised outweighs what its report says."""
    for record in records.values():
        if record["raised"] and record["outcome"] == "passed":
            return "FAILED"
    if "collect" in records or "setup" not in records:
        return "ERROR"
    call = records.get("call")
    if call is not None and call["outcome"] == "failed":
        return "FAILED"
    if any(record["outcome"] == "failed" for record in records.values()):
        return "ERROR"
    skipped = next((record for record in records.values() if record["outcome"] == "skipped"), None)
    if skipped is not None:
        return "XFAIL" if skipped["xfail"] else "SKIPPED"
    if call is None:
        return "ERROR"
    return "XPASS" if call["xfail"] else "PASSED"
