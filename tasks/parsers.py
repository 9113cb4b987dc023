"""Logs of suites whose parsers the swebench package does not have -> statuses of tests; pure functions of text."""

import json
import re
from collections.abc import Callable

START = ">>>>> Start Test Output"
END = ">>>>> End Test Output"
"""The official markers around what the tests print."""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_REWARD = re.compile(r"^>>>>> Reward: (\S+)$", re.MULTILINE)


def read_r2e(text: str) -> dict[str, str]:
    """R2E-Gym: the lines of pytest's short summary; a test is named without its file, "Class.name", and without the reason of its
    failure."""
    found: dict[str, str] = {}
    for line in _COLOUR.sub("", text.partition("short test summary info")[2]).strip().split("\n"):
        status = next((status for status in ("PASSED", "FAILED", "ERROR") if status in line), None)
        if status:
            found[".".join(line.split("::")[1:]).split(" - ")[0]] = status
    return found


def read_json(text: str) -> dict[str, str]:
    """SWE-bench Pro: what its parser wrote, {"tests": [{"name": ..., "status": ...}]}, on one line."""
    for line in reversed(text.split("\n")):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("tests"), list):
            return {str(test["name"]): str(test["status"]).upper() for test in found["tests"] if {"name", "status"} <= test.keys()}
    return {}


def read_reward(text: str) -> dict[str, str]:
    """Harbor: the last reward; no number means that there is no verdict."""
    try:
        reward = float(_REWARD.findall(text)[-1])
    except (ValueError, IndexError):
        return {}
    return {"reward": "PASSED" if reward >= 1 else "FAILED"}


PARSERS: dict[str, Callable[[str], dict[str, str]]] = {
    "greengrad_r2e": read_r2e,
    "greengrad_json": read_json,
    "greengrad_reward": read_reward,
}
"""Names as in Task.log_parser."""


def read_statuses(parser: str, log: str) -> dict[str, str]:
    """What stands between the markers, read by a parser of ours; empty where a marker is missing."""
    if START not in log or END not in log:
        return {}
    return PARSERS[parser](log.split(START)[1].split(END)[0])
