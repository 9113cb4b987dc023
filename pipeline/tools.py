"""The tools: a ToolCall in a Sandbox -> what the model sees; knows nothing of models, tokens or grades.

The agent's own mistakes are observations. SandboxError (the machine failed) and ResourceExhausted (the agent used it up) are not:
they pass through to the rollout.
"""

import difflib
import posixpath
from dataclasses import dataclass

from sandbox import WORKDIR, ExecResult, Sandbox

from .edit import EditError, replace_once
from .outline import Definition, Unparsed, find, outline
from .types import ToolCall


@dataclass(frozen=True, slots=True)
class Shown:
    """How much the model sees, and how long a command may take."""

    chars: int
    seconds: float | None = None
    """None: the sandbox's own limit."""


async def run_tool(sandbox: Sandbox, call: ToolCall, shown: Shown) -> str:
    """The observation of one action."""
    match call.name:
        case "bash":
            return await _bash(sandbox, call.arguments["command"], shown)
        case "view":
            return await _view(sandbox, call.arguments, shown.chars)
        case "edit":
            return await _edit(sandbox, call.arguments, shown.chars)
        case "submit":
            return "submitted"
        case _:
            raise ValueError(f"no such tool: {call.name}")


def clip(text: str, limit: int) -> str:
    """Head and tail of a text that is longer than `limit` characters, with the number left out in between."""
    if len(text) <= limit:
        return text
    head = limit // 2
    tail = limit - head
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[-tail:]}"


async def _bash(sandbox: Sandbox, command: str, shown: Shown) -> str:
    result = await sandbox.run(command, seconds=shown.seconds)
    output = clip(result.text.strip("\n"), shown.chars)
    return f"{output}\n{_ending(result)}" if output else _ending(result)


def _ending(result: ExecResult) -> str:
    if result.timed_out:
        return f"[stopped after {result.seconds:.0f} s: over the time limit]"
    if result.out_of_memory:
        return f"[exit code {result.exit_code}: out of memory]"
    return f"[exit code {result.exit_code}]"


# --- files ---------------------------------------------------------------------------------------------------


async def _load(sandbox: Sandbox, path: str) -> str | OSError:
    """A file's text (bytes that are not UTF-8 survive a round trip), or why there is none."""
    try:
        return (await sandbox.read(_absolute(path))).decode("utf-8", "surrogateescape")
    except OSError as error:
        return error
    except ValueError as error:  # a NUL in the path
        return OSError(str(error))


def _absolute(path: str) -> str:
    return posixpath.normpath(posixpath.join(WORKDIR, path))


def _refusal(path: str, error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return f"error: no such file: {path}"
        case IsADirectoryError():
            return f"error: {path} is a directory; list it with bash: ls {path}"
        case PermissionError():
            return f"error: no permission: {path}"
        case _:
            return f"error: {path}: {error.strerror or error}"


# --- view ----------------------------------------------------------------------------------------------------


async def _view(sandbox: Sandbox, arguments: dict[str, str], chars: int) -> str:
    path = arguments["path"]
    text = await _load(sandbox, path)
    if isinstance(text, OSError):
        return _refusal(path, text)
    lines = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    if name := arguments.get("name"):
        return _view_function(path, text, lines, name, chars)
    if span := arguments.get("lines"):
        return _view_lines(path, lines, span, chars)
    return _view_file(path, text, lines, chars)


def _view_lines(path: str, lines: list[str], span: str, chars: int) -> str:
    low, dash, high = span.partition("-")
    try:
        first, last = int(low), int(high) if dash else len(lines)
    except ValueError:
        return f"error: lines must look like 10-40, not {span!r}"
    if not 1 <= first <= len(lines) or last < first:
        return f"error: {path} has lines 1-{len(lines)}"
    return show(path, lines, first, min(last, len(lines)), chars)


def _view_function(path: str, text: str, lines: list[str], name: str, chars: int) -> str:
    found = outline(text)
    if isinstance(found, Unparsed):
        return f"error: {path} cannot be parsed ({found.reason}); ask for lines instead"
    matches = find(found, name)
    if len(matches) == 1:
        return show(path, lines, matches[0].first, matches[0].last, chars)
    if matches:
        return f"error: {name} is defined {len(matches)} times in {path}: {_list(matches, chars)}; name one of them, or lines"
    near = difflib.get_close_matches(name, [one.name for one in found], n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else f"; it defines {_list(found, chars // 2) or 'nothing'}"
    return f"error: no function {name} in {path}{hint}"


def _view_file(path: str, text: str, lines: list[str], chars: int) -> str:
    if len(text) <= chars:
        return show(path, lines, 1, len(lines), chars)
    found = outline(text) if path.endswith(".py") else Unparsed("not Python")
    if isinstance(found, Unparsed) or not found:
        return show(path, lines, 1, len(lines), chars)
    return f"{show(path, lines, 1, len(lines), chars // 2)}\nIt defines: {_list(found, chars // 2)}"


def show(path: str, lines: list[str], first: int, last: int, chars: int) -> str:
    """Lines first..last under a header that says which; what does not fit is left out whole lines at a time, and said."""
    if not lines:
        return f"{path} is empty"
    kept: list[str] = []
    used, end = 0, first - 1
    for line in lines[first - 1 : last]:
        used += len(line) + 1
        if used > chars and kept:
            break
        kept.append(clip(line, chars))
        end += 1
    more = f"\n[lines {end + 1}-{last} not shown]" if end < last else ""
    return f"{path} lines {first}-{end} of {len(lines)}:\n" + "\n".join(kept) + more


def _list(definitions: list[Definition], chars: int) -> str:
    names = [f"{one.name} ({one.first}-{one.last})" for one in definitions]
    kept: list[str] = []
    for name in names:
        if sum(len(one) + 2 for one in kept) + len(name) > chars:
            return ", ".join(kept) + f" and {len(names) - len(kept)} more"
        kept.append(name)
    return ", ".join(kept)


# --- edit ----------------------------------------------------------------------------------------------------


async def _edit(sandbox: Sandbox, arguments: dict[str, str], chars: int) -> str:
    path, old, new = arguments["path"], arguments["old"], arguments["new"]
    text = await _load(sandbox, path)
    if isinstance(text, FileNotFoundError) and not old:
        return await _store(sandbox, path, new + "\n" if new else "", f"created {path}")
    if isinstance(text, OSError):
        return _refusal(path, text)
    changed = replace_once(text, old, new)
    if isinstance(changed, EditError):
        return clip(f"error: {changed.message} in {path}{changed.hint}", chars)
    line = text[: changed.at].count("\n") + 1
    return await _store(sandbox, path, changed.text, f"edited {path}, line {line}")


async def _store(sandbox: Sandbox, path: str, text: str, done: str) -> str:
    try:
        await sandbox.write(_absolute(path), text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return "error: the new text is not valid Unicode; nothing changed"
    except OSError as error:
        return _refusal(path, error)
    broken = outline(text) if path.endswith(".py") else []
    return f"{done}\nwarning: the file does not parse now: {broken.reason}" if isinstance(broken, Unparsed) else done
