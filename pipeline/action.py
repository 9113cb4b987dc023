"""The action format: text <-> ToolCall; knows nothing of tokens, models or sandboxes.

One fenced block a turn, whose tag is the tool (CommonMark's rule: a longer fence may hold a shorter one, and
markers of an edit may be longer than seven for the same reason):

    ```view            ```edit              ```bash                 ```submit
    pkg/mod.py         pkg/mod.py           python -m pytest -q     ```
    parse              <<<<<<<              ```
    ```                old text
                       =======
                       new text
                       >>>>>>>
                       ```

Where the task is interactive, `ask_user` is one more: its text is the question.
The other format, `tool_json`, is {"name": ..., "arguments": {...}} between <tool_call> tags (Qwen, Hermes, SmolLM).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, assert_never

from .types import ToolCall

ActionFormat = Literal["fenced", "tool_json"]

REQUIRED = {"bash": ("command",), "view": ("path",), "edit": ("path", "old", "new"), "submit": ()}
OPTIONAL = {"view": ("name", "lines")}
ASK_USER = "ask_user"
WITH_USER = REQUIRED | {ASK_USER: ("question",)}
"""The tools of interactive tasks (user.py)."""
Tools = Mapping[str, tuple[str, ...]]

_FENCE = re.compile(r"(`{3,})([^`]*)")
_RANGE = re.compile(r"\d+(-\d+)?")
_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FormatError:
    """The turn holds no valid action; the message is what the model is told."""

    message: str


@dataclass(frozen=True, slots=True)
class _Block:
    tag: str
    body: list[str]
    closed: bool
    lines: range
    """Where it stands in the text, its fences included."""


def parse(text: str, action_format: ActionFormat = "fenced", tools: Tools = REQUIRED) -> ToolCall | FormatError:
    """The one action in a turn's text."""
    match action_format:
        case "fenced":
            return _parse_fenced(text, tools)
        case "tool_json":
            return _parse_json(text, tools)
        case _:
            assert_never(action_format)


def render(call: ToolCall, action_format: ActionFormat = "fenced") -> str:
    """The text of an action: parse(render(call)) == call."""
    match action_format:
        case "fenced":
            body = _render_body(call)
            fence = _longer_than("`", 3, body)
            return f"{fence}{call.name}\n{body}{fence}"
        case "tool_json":
            return f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': call.arguments})}\n</tool_call>"
        case _:
            assert_never(action_format)


def prose(text: str, action_format: ActionFormat = "fenced") -> str:
    """What a turn's text says beside its actions, without blank ends."""
    if action_format == "tool_json":
        spans = prose_spans(text, action_format)
        return "".join(text[start:end] for start, end in spans).strip()
    taken = {number for block in _find_blocks(text) for number in block.lines}
    return "\n".join(line for number, line in enumerate(text.split("\n")) if number not in taken).strip()


def prose_spans(text: str, action_format: ActionFormat = "fenced") -> list[tuple[int, int]]:
    """Where a turn's text stands beside its actions: [start, end) in characters."""
    if action_format == "tool_json":
        taken = [found.span() for found in _find_tagged(text)]
    else:
        starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
        taken = [(starts[block.lines.start], starts[block.lines.stop]) for block in _find_blocks(text)]
    edges = [0, *(edge for span in taken for edge in span), len(text)]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def check_call(name: object, arguments: object, tools: Tools = REQUIRED) -> ToolCall | FormatError:
    """A ToolCall from untyped parts (JSON of a model or of a script file)."""
    if not isinstance(name, str) or name not in tools:
        return FormatError(f"Unknown tool {name!r}; the tools are {', '.join(tools)}.")
    if not isinstance(arguments, dict) or not all(isinstance(value, str) for value in arguments.values()):
        return FormatError(f"The arguments of {name} must be an object whose values are strings.")
    required, known = tools[name], (*tools[name], *OPTIONAL.get(name, ()))
    if missing := [key for key in required if key not in arguments]:
        return FormatError(f"{name} needs {', '.join(missing)}.")
    if unknown := [str(key) for key in arguments if key not in known]:
        return FormatError(f"{name} does not know {', '.join(unknown)}; it takes {', '.join(known) or 'nothing'}.")
    return ToolCall(name, dict(arguments))


def _parse_fenced(text: str, tools: Tools) -> ToolCall | FormatError:
    blocks = _find_blocks(text)
    if not blocks:
        return FormatError("No fenced block found. Write exactly one: ```TOOL, its text, ```.")
    if len(blocks) > 1:
        return FormatError(f"{len(blocks)} fenced blocks found. Write exactly one per turn.")
    block = blocks[0]
    if block.tag not in tools:
        return FormatError(f"The block's tag is {block.tag!r}; it must be one of {', '.join(tools)}.")
    if not block.closed:
        return FormatError(f"The {block.tag} block is not closed: end it with a line of ```.")
    return _parse_body(block.tag, block.body)


def _find_blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    tag, fence, body, start = "", "", [""], 0
    lines = text.split("\n")
    for number, line in enumerate(lines):
        match = _FENCE.fullmatch(line.rstrip())
        if not fence:
            if match:
                fence, tag, body, start = match[1], match[2].strip(), [], number
        elif match and not match[2] and len(match[1]) >= len(fence):
            blocks.append(_Block(tag, body, True, range(start, number + 1)))
            fence = ""
        else:
            body.append(line)
    return [*blocks, _Block(tag, body, False, range(start, len(lines)))] if fence else blocks


def _parse_body(tag: str, body: list[str]) -> ToolCall | FormatError:
    match tag:
        case "bash":
            return _parse_bash(body)
        case "view":
            return _parse_view(body)
        case "edit":
            return _parse_edit(body)
        case "ask_user":
            question = "\n".join(body).strip()
            return ToolCall(ASK_USER, {"question": question}) if question else FormatError("The ask_user block is empty.")
        case _:
            return ToolCall("submit", {}) if not "".join(body).strip() else FormatError("The submit block must be empty.")


def _parse_bash(body: list[str]) -> ToolCall | FormatError:
    command = "\n".join(body)
    return ToolCall("bash", {"command": command}) if command.strip() else FormatError("The bash block is empty.")


def _parse_view(body: list[str]) -> ToolCall | FormatError:
    lines = [line.strip() for line in body if line.strip()]
    match lines:
        case [path]:
            return ToolCall("view", {"path": path})
        case [path, what]:
            return ToolCall("view", {"path": path, "lines" if _RANGE.fullmatch(what) else "name": what})
        case _:
            return FormatError("A view block has a path on line 1 and, if you like, a function name or lines such as 10-40 on line 2.")


def _parse_edit(body: list[str]) -> ToolCall | FormatError:
    shape = FormatError("An edit block is: the path, a line <<<<<<<, the old text, a line =======, the new text, a line >>>>>>>.")
    full = [number for number, line in enumerate(body, 1) if line.strip()]
    body = body[: full[-1]] if full else []
    marker = body[1].rstrip() if len(body) > 1 else ""
    size = len(marker)
    if size < 7 or set(marker) != {"<"} or not body[0].strip() or body[-1].rstrip() != ">" * size:
        return shape
    middles = [number for number, line in enumerate(body) if line.rstrip() == "=" * size]
    if len(middles) != 1:
        return FormatError(
            f"The edit block has {len(middles)} lines of {'=' * size}, it must have 1; use longer markers if the text has such a line."
        )
    old, new = body[2 : middles[0]], body[middles[0] + 1 : -1]
    return ToolCall("edit", {"path": body[0].strip(), "old": "\n".join(old), "new": "\n".join(new)})


def _find_tagged(text: str) -> Iterator[re.Match[str]]:
    """Up to the last end alone: each beginning after it would be followed to the end of the text."""
    return _TAGGED.finditer(text, 0, text.rfind("</tool_call>") + len("</tool_call>"))


def _parse_json(text: str, tools: Tools) -> ToolCall | FormatError:
    found = [tagged[1] for tagged in _find_tagged(text)]
    if len(found) != 1:
        return FormatError(
            f'{len(found)} tool calls found. Write exactly one: <tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call>.'
        )
    try:
        value = json.loads(found[0])
    except (ValueError, RecursionError) as error:
        return FormatError(f"The tool call is not valid JSON: {error}.")
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return FormatError('The tool call must be an object with "name" and "arguments".')
    return check_call(value["name"], value["arguments"], tools)


def _render_body(call: ToolCall) -> str:
    arguments = call.arguments
    match call.name:
        case "bash":
            return arguments["command"] + "\n"
        case "view":
            what = arguments.get("name") or arguments.get("lines")
            return arguments["path"] + "\n" + (what + "\n" if what else "")
        case "edit":
            sides = [arguments["old"], arguments["new"]]
            size = len(_longer_than("=", 7, *sides))
            old, new = (side + "\n" if side else "" for side in sides)
            return f"{arguments['path']}\n{'<' * size}\n{old}{'=' * size}\n{new}{'>' * size}\n"
        case "ask_user":
            return arguments["question"] + "\n"
        case _:
            return ""


def _longer_than(mark: str, least: int, *texts: str) -> str:
    """A run of `mark` that no line of the texts begins with."""
    runs = [len(run) for text in texts for run in re.findall(rf"^({re.escape(mark)}+)", text, re.MULTILINE)]
    return mark * max([least, *(run + 1 for run in runs if run >= least)])
