"""Scripted agents: they act through the same prompts, tools and sandboxes as a model; know no model and no grade.

Their turns are real turns: what they say is tokenised once, in the template of the model at hand, so that a passing episode
is a demonstration whose prompts are those that the model will see. Their log-probs are zeros and mean nothing.
"""

import base64
import json
import posixpath
import shlex
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tasks import Task

from .action import REQUIRED, FormatError, Tools, check_call, render
from .hunks import Change, changes_of, edits_of
from .outline import Unparsed, find, outline
from .prompt import Chat
from .types import Completion, Policy, ToolCall
from .weights import Digests

LONGEST_FUNCTION = 40
"""Lines; of a longer function the expert views a window around the change."""

SUBMIT = ToolCall("submit", {})


class ScriptedPolicy:
    """Says prepared texts, one a turn, then submits; which turn it is, it reads off the prompt. The first `after` there are another's."""

    version = 0

    def __init__(self, chat: Chat, task: Task, texts: Sequence[str], after: int = 0) -> None:
        self._chat = chat
        self._task = task
        self._texts = tuple(texts)
        self._after = after

    async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
        """The text of this turn, cut at max_tokens like any other."""
        turn = self._chat.count_turns(self._task, prompt) - self._after
        text = self._texts[turn] if turn < len(self._texts) else render(SUBMIT, self._chat.action_format)
        whole = self._chat.write(text)
        ids = tuple(whole[:max_tokens])
        said = text if len(ids) == len(whole) else self._chat.template.decode(ids)
        return Completion(ids, (0.0,) * len(ids), said, self.version, stopped=len(ids) == len(whole))

    async def logprobs(self, ids: Sequence[int], wanted_T: np.ndarray | None = None) -> np.ndarray:
        """Zeros: a script has no probabilities."""
        return np.zeros(len(ids), np.float32)

    async def load(self, folder: Path, version: int) -> Digests:
        """A script learns nothing."""
        raise ValueError("a scripted policy takes no weights")

    async def close(self) -> None:
        """Nothing to stop."""


def make_expert(spec: str, chat: Chat, after: int = 0) -> Callable[[Task], Policy]:
    """The agent that `--policy gold | noop | script:FILE` names, as a policy for each task; it begins after so many turns of another."""
    kind, _, name = spec.partition(":")
    match kind:
        case "gold":
            return lambda task: _speak(chat, task, gold_steps(task), after)
        case "noop":
            return lambda task: _speak(chat, task, [], after)
        case "script" if name:
            scripts = read_scripts(Path(name), chat.tools)
            return lambda task: _speak(chat, task, [("", call) for call in script_calls(scripts, task)], after)
        case _:
            raise ValueError(f"unknown scripted policy {spec!r}: gold, noop or script:FILE")


def _speak(chat: Chat, task: Task, steps: Sequence[tuple[str, ToolCall]], after: int) -> Policy:
    actions = [(thought, render(call, chat.action_format)) for thought, call in steps]
    return ScriptedPolicy(chat, task, [f"{thought}\n{action}" if thought else action for thought, action in actions], after)


# --- script:FILE ---------------------------------------------------------------------------------------------


def read_scripts(path: Path, tools: Tools = REQUIRED) -> dict[str, list[ToolCall]]:
    """JSON, instance id (or "*") -> list of tool calls."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict) or not all(isinstance(calls, list) for calls in data.values()):
        raise ValueError(f'{path}: must be an object: instance id (or "*") -> list of tool calls')
    return {instance: [_read_call(path, instance, call, tools) for call in calls] for instance, calls in data.items()}


def _read_call(path: Path, instance: str, value: object, tools: Tools) -> ToolCall:
    fields = value if isinstance(value, dict) else {}
    call = check_call(fields.get("name"), fields.get("arguments", {}), tools)
    if isinstance(call, FormatError):
        raise ValueError(f"{path}: {instance}: {call.message}")
    return call


def script_calls(scripts: dict[str, list[ToolCall]], task: Task) -> list[ToolCall]:
    """The calls for one task, `{gold_patch}` in a command replaced by the path of a file that the command makes first."""
    calls = scripts.get(task.instance_id, scripts.get("*", []))
    return [_with_gold_file(call, task) for call in calls]


def _with_gold_file(call: ToolCall, task: Task) -> ToolCall:
    command = call.arguments.get("command", "")
    if "{gold_patch}" not in command:
        return call
    return ToolCall("bash", {"command": f"{_write_gold(task)}\n{command.replace('{gold_patch}', '/tmp/gold.patch')}"})


def _write_gold(task: Task) -> str:
    packed = base64.b64encode(task.gold_patch.encode("utf-8", "surrogateescape")).decode()
    return f"base64 -d > /tmp/gold.patch <<'END'\n{packed}\nEND"


# --- gold ----------------------------------------------------------------------------------------------------


def gold_steps(task: Task) -> list[tuple[str, ToolCall]]:
    """View what the gold patch changes, make its edits, check, submit; a patch that edits cannot make is applied whole."""
    files = _Tree(task.image.tree)
    changes = changes_of(task.gold_patch)
    edits = edits_of(changes, files.read) if changes else None
    if changes is None or edits is None:
        apply = f"{_write_gold(task)}\ngit apply /tmp/gold.patch && git status --short"
        return [("I apply the fix.", ToolCall("bash", {"command": apply})), ("The bug is fixed.", SUBMIT)]
    steps = [(f"I look at {_what(call)}.", call) for call in _views(changes, files)]
    for edit in edits:
        steps.append(("Here is the bug. I fix it.", ToolCall("edit", {"path": edit.path, "old": edit.old, "new": edit.new})))
    steps.append(("I check it.", ToolCall("bash", {"command": _check(changes[0].path, files)})))
    return [*steps, ("The bug is fixed.", SUBMIT)]


def _what(call: ToolCall) -> str:
    return call.arguments.get("name") or call.arguments["path"]


def _views(changes: Sequence[Change], files: "_Tree") -> list[ToolCall]:
    """One view for each function that is changed, or for lines around a change outside of functions."""
    calls = [_view(change, files.read(change.path) or "") for change in changes]
    return [call for number, call in enumerate(calls) if call not in calls[:number]]


def _view(change: Change, text: str) -> ToolCall:
    first, last = change.first + 1, change.first + max(len(change.old), 1)
    found = outline(text)
    around = [] if isinstance(found, Unparsed) else [one for one in found if one.first <= first and last <= one.last and not one.is_class]
    if around and around[-1].last - around[-1].first < LONGEST_FUNCTION and not isinstance(found, Unparsed):
        name = around[-1].name
        if len(find(found, name)) == 1:
            return ToolCall("view", {"path": change.path, "name": name})
    total = text.count("\n") + 1
    return ToolCall("view", {"path": change.path, "lines": f"{max(first - 8, 1)}-{min(last + 8, total)}"})


def _check(path: str, files: "_Tree") -> str:
    """The visible tests of a module where a file is named after it, else an import of it; a few lines of output."""
    stem = posixpath.basename(path).removesuffix(".py")
    tests = [name for name in files.names if posixpath.basename(name) in (f"test_{stem}.py", f"{stem}_test.py")]
    if tests:
        return f"python -m pytest -q -x {shlex.quote(min(tests, key=len))} 2>&1 | tail -n 2"
    return f"python -m py_compile {shlex.quote(path)} && echo ok"


class _Tree:
    """The files of a tree's tar; none where the image holds the repository itself."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.names = self._list() if path else []

    def _list(self) -> list[str]:
        with tarfile.open(self._path) as tar:
            return [posixpath.normpath(name) for name in tar.getnames()]

    def read(self, name: str) -> str | None:
        """A file's text; None where there is none, or it is not UTF-8."""
        if self._path is None:
            return None
        with tarfile.open(self._path) as tar:
            member = next((one for one in tar if posixpath.normpath(one.name) == name and one.isfile()), None)
            source = tar.extractfile(member) if member else None
            try:
                return source.read().decode() if source else None
            except UnicodeDecodeError:
                return None
