"""Actions of other scaffolds -> ours: bash, str_replace_editor and submit, as OpenHands, SWE-agent 1.x and SWE-smith write them.

What none of our tools does (SWE-agent 0.7's open and scroll, an insert, an undo) is an UnknownTool: nothing is guessed.
"""

import json
import re
import shlex
from dataclasses import dataclass

from .action import REQUIRED, FormatError, check_call
from .types import ToolCall

SHELLS = frozenset({"bash", "execute_bash", "shell", "run", "terminal"})
ENDS = frozenset({"submit", "finish"})
EDITORS = frozenset({"str_replace_editor", "str_replace_based_edit_tool"})
COMMANDS = frozenset(
    {"open", "goto", "scroll_up", "scroll_down", "create", "edit", "insert", "find_file", "search_dir", "search_file", "undo_edit", "think"}
)
"""Words that were no programs where they came from."""
LISTED = "files and directories up to 2 levels deep in"
"""What their editor says to a view of a folder; ours views files."""
FUNCTION_END, PARAMETER_END = "</function>", "</parameter>"
_FUNCTION = re.compile(r"<function=([\w-]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([\w-]+)>(.*?)</parameter>", re.DOTALL)
_FENCE = re.compile(r"^ *`{3,}.*\n?", re.MULTILINE)
_FENCED = re.compile(r"^```(?:bash|sh)?\n(.*?)\n?^```\s*$", re.DOTALL | re.MULTILINE)


class UnknownTool(Exception):
    """An action that no tool of ours does."""


@dataclass(frozen=True, slots=True)
class Said:
    """One turn: what was said, the tool calls that came beside it, and what came back."""

    text: str
    calls: tuple[ToolCall, ...]
    """Of theirs; () where the text itself holds the action."""
    observation: str
    fenced: bool = True
    """Whether a fence may hold an action: not in a trajectory that has another form for them."""

    @property
    def thought(self) -> str:
        """The text without the action in it, and without fences, in which our actions stand."""
        end = 0 if self.calls else _end_of(FUNCTION_END, self.text)
        rest = _FUNCTION.sub("", self.text[:end]) + self.text[end:]
        return _FENCE.sub("", _FENCED.sub("", rest) if self.fenced and not self.calls else rest).strip()


def actions_of(said: Said) -> list[ToolCall]:
    """The actions in our tools; [] where there is none."""
    theirs = said.calls or [*map(_read_function, _FUNCTION.findall(said.text, 0, _end_of(FUNCTION_END, said.text)))]
    if not theirs and said.fenced:
        theirs = [*map(command_of, _FENCED.findall(said.text))]
    calls = [translate(call) for call in theirs if call.name]
    listed = LISTED in said.observation.partition("\n")[0]
    return [_list(call.arguments["path"]) if listed and call.name == "view" else call for call in calls]


def has_functions(text: str) -> bool:
    """Whether a text holds an action as <function=...>."""
    return _FUNCTION.search(text, 0, _end_of(FUNCTION_END, text)) is not None


def _end_of(mark: str, text: str) -> int:
    """After the last such mark: each beginning behind it would be followed to the end of the text."""
    return text.rfind(mark) + len(mark) if mark in text else 0


def read_arguments(name: str, text: str) -> ToolCall:
    """A call whose arguments are JSON: values that are no text are told as JSON. UnknownTool where they are not an object."""
    try:
        values = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise UnknownTool(f"{name}, whose arguments are not JSON") from None
    if not isinstance(values, dict):
        raise UnknownTool(f"{name}, whose arguments are no object")
    return ToolCall(name, {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()})


def translate(call: ToolCall) -> ToolCall:
    """One action of theirs in ours."""
    if call.name in SHELLS and call.arguments.get("is_input", "").lower() == "true":
        raise UnknownTool("input to a program that runs")
    if call.name in SHELLS:
        return _checked("bash", {"command": call.arguments.get("command", "")})
    if call.name in ENDS:
        return ToolCall("submit", {})
    if call.name in EDITORS:
        return _translate_edit(call.arguments)
    if call.name in REQUIRED:
        return _checked(call.name, call.arguments)
    raise UnknownTool(call.name)


def command_of(line: str) -> ToolCall:
    """A command line of SWE-agent: a program of the shell, or one of its tools with words or JSON as arguments; nameless where empty."""
    line = line.strip()
    name, _, rest = line.partition(" ")
    if name in ENDS and not rest:
        return ToolCall("submit", {})
    if name in REQUIRED and rest.startswith("{"):  # as `greengrad export` writes them
        return read_arguments(name, rest)
    if name in EDITORS:
        return ToolCall(name, _words(rest))
    return ToolCall(name if name in COMMANDS else "bash" if line else "", {"command": line})


def _words(rest: str) -> dict[str, str]:
    """`view /testbed/a.py --view_range 1 10` as arguments."""
    try:
        command, path, *options = shlex.split(rest)
    except ValueError as error:
        raise UnknownTool(f"an editor's command that cannot be read: {error}") from None
    found, key = {"command": command, "path": path}, ""
    for word in options:
        if word.startswith("--") and word[2:].isidentifier():
            key = word[2:]
            found[key] = ""
        elif key:
            found[key] = f"{found[key]} {word}".strip() if key == "view_range" else word
    return found


def _read_function(found: tuple[str, str]) -> ToolCall:
    name, body = found
    values = _PARAMETER.findall(body, 0, _end_of(PARAMETER_END, body))
    return ToolCall(name, {key: value.removeprefix("\n").removesuffix("\n") for key, value in values})


def _translate_edit(arguments: dict[str, str]) -> ToolCall:
    path = arguments.get("path", "")
    match arguments.get("command"):
        case "view":
            return _view(path, [int(number) for number in re.findall(r"-?\d+", arguments.get("view_range", ""))])
        case "create":
            return _checked("edit", {"path": path, "old": "", "new": arguments.get("file_text", "")})
        case "str_replace":
            return _checked("edit", {"path": path, "old": arguments.get("old_str", ""), "new": arguments.get("new_str", "")})
        case other:
            raise UnknownTool(f"{other} of the editor")


def _view(path: str, lines: list[int]) -> ToolCall:
    """A view to the end of the file is a command: ours names both ends."""
    if len(lines) == 2 and lines[1] < 0:
        return ToolCall("bash", {"command": f"tail -n +{max(lines[0], 1)} {shlex.quote(path)}"})
    return _checked("view", {"path": path, **({"lines": f"{max(lines[0], 1)}-{lines[1]}"} if len(lines) == 2 else {})})


def _list(path: str) -> ToolCall:
    """As their editor lists a folder."""
    return ToolCall("bash", {"command": f"find {shlex.quote(path)} -maxdepth 2 -not -path '*/.*'"})


def _checked(name: str, arguments: dict[str, str]) -> ToolCall:
    call = check_call(name, arguments)
    if isinstance(call, FormatError) or (name == "bash" and not arguments["command"].strip()):
        raise UnknownTool(call.message if isinstance(call, FormatError) else "an empty command")
    return call
