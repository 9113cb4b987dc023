"""Other people's trajectories -> a run folder of episodes for rft and srl; knows no model and starts nothing.

Read: rows of SWE-smith and SWE-Gym, OpenAI's chat format (JSON, JSON lines or parquet; tool calls as objects, as <function=...> text, or
fenced commands), and SWE-agent's .traj. Their tools become ours (foreign.py); a trajectory with an action that none of ours can do is
left out whole and counted, as one whose task is not in the suite and one that nothing says is resolved. Nothing is graded here: the
verdict's reason says whose word it is. Texts are told in bytes; whoever trains on them tells them anew in its model's template.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks import Outcome, Task, Verdict, read_rows

from .action import ActionFormat, FormatError, render
from .config_io import read_text
from .foreign import Said, UnknownTool, actions_of, command_of, has_functions, read_arguments
from .journal import Journal
from .prompt import ByteTemplate, Chat
from .tools import clip
from .types import Completion, Episode, Stop, ToolCall, Turn

NOTE = "import.json"
"""Beside the journal: what was read, and how."""
HOME = "/testbed"
SUFFIXES = (".parquet", ".jsonl", ".json")
_UPLOADED = re.compile(r"<uploaded_files>\s*(/[^\s<]+)\s*</uploaded_files>")
_RUN_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One row, as far as it is known before its actions are looked at."""

    source: str
    """File and row."""
    instance_id: str
    resolved: bool | None
    """None: nothing says so."""
    patch: str
    turns: tuple[Said, ...]
    unknown: str = ""
    """What stands there in place of an action, where one of them cannot be read; there are no turns then."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How trajectories are told."""

    action_format: ActionFormat = "fenced"
    observation_chars: int = 1500
    """What a turn shows of a command's output, as rollout.observation_chars."""
    trust: bool = False
    """What nothing says is resolved counts as resolved."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of the trajectories."""

    episodes: int
    left_out: Mapping[str, int]
    """Reason -> how many."""


def import_trajectories(sources: Sequence[str], tasks: Iterable[Task], run: Path, reading: Reading) -> Imported:
    """Write a new run folder. ValueError where a source cannot be read, or where nothing of all could be used."""
    if (run / "journal.sqlite").exists() or (run.is_dir() and any(run.iterdir())):
        raise ValueError(f"{run}: holds a run already, or something else; choose a new folder")
    of_task = {task.instance_id: task for task in tasks}
    left_out, count = Counter[str](), 0
    with new_run(run) as journal:
        for trajectory in (one for source in sources for one in read_source(source)):
            told = tell(trajectory, of_task, reading, count)
            if isinstance(told, str):
                left_out[told] += 1
                continue
            journal.issue(told.episode_id, told.group_id, told.instance_id, 0)
            journal.record_episode(told, 0)
            count += 1
        if not count:
            why = ", ".join(f"{many} {reason}" for reason, many in left_out.most_common()) or "they hold no trajectories"
            raise ValueError(f"{sources[0]}{' and others' if len(sources) > 1 else ''}: nothing can be used: {why}")
        note = {"sources": list(sources), **asdict(reading), "left_out": left_out}
        (journal.run / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return Imported(count, left_out)


def read_note(path: Path) -> str:
    """The action format of an imported run; ValueError where its note does not say."""
    found = _object(str(path), read_text(path)).get("action_format")
    if not isinstance(found, str):
        raise ValueError(f"{path}: names no action_format; import again into a new folder")
    return found


@contextmanager
def new_run(run: Path) -> Iterator[Journal]:
    """A journal whose folder is there whole when the block ends, or not at all; an episode takes megabytes, so none waits in memory."""
    run = run.absolute()
    partial = run.with_name(run.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with Journal(partial) as journal:
            yield journal
        partial.replace(run)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def tell(trajectory: Trajectory, of_task: Mapping[str, Task], reading: Reading, number: int) -> Episode | str:
    """The episode, or why there is none."""
    name = next((name for name in (trajectory.instance_id, _RUN_NUMBER.sub("", trajectory.instance_id)) if name in of_task), None)
    if trajectory.resolved is None and not reading.trust:
        return "of which nothing says that they are resolved (--trust takes them)"
    if trajectory.resolved is False:
        return "not resolved"
    if name is None:
        return "of tasks that are not in the suite"
    try:
        if trajectory.unknown:
            raise UnknownTool(trajectory.unknown)
        turns = tuple(tell_turns(cut_after_submission(trajectory.turns), of_task[name], reading))
    except UnknownTool as unknown:
        return f"with an action that no tool here does ({unknown})"
    if not any(turn.call for turn in turns):
        return "without a turn that holds an action"
    why = f"resolved by the word of {trajectory.source}; not graded here"
    verdict = Verdict(name, Outcome.RESOLVED, why)
    stop = Stop.SUBMITTED if turns[-1].call and turns[-1].call.name == "submit" else Stop.MAX_TURNS
    return Episode(f"{name}.{number:05d}", name, name, turns, stop, trajectory.patch, verdict)


def cut_after_submission(said: Sequence[Said]) -> Sequence[Said]:
    """Without what was said after a submission that no other action follows."""
    actions = [actions_of(one) for one in said]
    last = max((place for place, calls in enumerate(actions) if calls), default=len(said) - 1)
    return said[: last + 1] if said and [call.name for call in actions[last]] == ["submit"] else said


def tell_turns(said: Sequence[Said], task: Task, reading: Reading) -> Iterator[Turn]:
    """The turns in bytes. One without an action stays, malformed, as it was; a submission that was asked to think again is left out."""
    chat = Chat(ByteTemplate(), reading.action_format)
    prompt = chat.start_prompt(task)
    for place, one in enumerate(said, 1):
        calls = actions_of(one)
        if len(calls) > 1:
            raise UnknownTool("several actions in a turn")
        if calls and calls[0].name == "submit" and place < len(said):
            continue
        text = f"{one.thought.strip()}\n{render(calls[0], reading.action_format)}".strip() if calls else one.thought
        call = chat.parse(text)
        ids = tuple(chat.write(text))
        completion = Completion(ids, (0.0,) * len(ids), text, 0, stopped=True)
        known = None if isinstance(call, FormatError) else call
        observation = clip(one.observation.strip("\n"), reading.observation_chars)
        if calls and known != calls[0]:
            raise UnknownTool("text that reads as another action")
        yield Turn(tuple(prompt), completion, known, observation)
        prompt = chat.extend(prompt, completion, observation)


# --- files ---------------------------------------------------------------------------------------------------


def read_source(name: str) -> Iterator[Trajectory]:
    """The trajectories of one file, or of a data set of the hub; ValueError or FileNotFoundError where it holds none."""
    path = Path(name)
    if path.suffix == ".traj":
        yield _of_traj(_object(name, read_text(path)), path)
        return
    if path.exists() and path.suffix not in SUFFIXES:
        raise ValueError(f"{name}: {', '.join(SUFFIXES)} and .traj can be read")
    for place, row in read_rows(name):
        found = _object(place, row) if isinstance(row, str) else row
        if "messages" not in found:
            raise ValueError(f"{place} has no messages: its columns are {', '.join(found)}")
        yield _of_messages(found, place)


def _object(place: str, text: str) -> dict[str, Any]:
    found = _json(place, text)
    if not isinstance(found, dict):
        raise ValueError(f"{place}: must be an object")
    return found


def _of_traj(row: Mapping[str, Any], path: Path) -> Trajectory:
    """SWE-agent's own file says nothing of a grade; one of ours (greengrad export) does."""
    info = _inner(row.get("info"))
    ours = _inner(info.get("greengrad"))
    steps = row.get("trajectory")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError(f"{path}: holds no trajectory")
    head = path.name, _text(ours.get("instance_id")) or path.stem, read_resolved(ours.get("reward")), _text(info.get("submission"))
    try:
        said = tuple(
            Said(_text(step.get("thought")), (command_of(_text(step.get("action"))),), _text(step.get("observation"))) for step in steps
        )
    except UnknownTool as unknown:
        return Trajectory(*head, (), str(unknown))
    return Trajectory(*head, said)


def _of_messages(row: Mapping[str, Any], where: str) -> Trajectory:
    messages = _json(where, row["messages"])
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise ValueError(f"{where}: its messages are no list of objects")
    ours = _inner(row.get("metadata"))
    name = _text(row.get("instance_id") or ours.get("instance_id"))
    patch = _text(row.get("patch") or row.get("git_patch") or ours.get("patch"))
    head = where, name, read_resolved(row.get("resolved", ours.get("reward"))), patch
    home = next((found[1] for one in messages if (found := _UPLOADED.search(_text(one.get("content"))))), HOME)
    try:
        return Trajectory(*head, tuple(_pair(messages, home.rstrip("/") or HOME, where)))
    except UnknownTool as unknown:
        return Trajectory(*head, (), str(unknown))


def read_resolved(value: object) -> bool | None:
    """Of a column: true or false, in letters as well, or a reward, of which 1 alone is resolved; None for anything else.

    >>> read_resolved("False"), read_resolved(0.5), read_resolved(float("nan")), read_resolved("unknown")
    (False, False, None, None)
    """
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    if not isinstance(value, int | float) or value != value:
        return None
    return value == 1


def _pair(messages: Sequence[Mapping[str, Any]], home: str, where: str) -> Iterator[Said]:
    """Each answer with what came back, paths below our home."""
    given = [_calls_of(message, home, where) if message.get("role") == "assistant" else () for message in messages]
    fenced = not any(given) and not any(has_functions(_text(one.get("content"))) for one in messages if one.get("role") == "assistant")
    for message, calls, after in zip(messages, given, [*messages[1:], {}], strict=True):
        if message.get("role") == "assistant":
            back = _text(after.get("content")) if after.get("role") in ("user", "tool") else ""
            yield Said(move(_text(message.get("content")), home), calls, move(back, home).removeprefix("OBSERVATION:\n"), fenced)


def _calls_of(message: Mapping[str, Any], home: str, where: str) -> tuple[ToolCall, ...]:
    """The tool calls beside a message; their arguments are JSON in a string, or an object."""
    found = message.get("tool_calls") or ()
    listed = found if isinstance(found, list | tuple) else [found]
    functions = [_inner(one.get("function")) if isinstance(one, dict) else {} for one in listed]
    if not all(isinstance(one.get("name"), str) for one in functions):
        raise ValueError(f"{where}: a tool call without a function's name")
    texts = [one["arguments"] if isinstance(one.get("arguments"), str) else json.dumps(one.get("arguments") or {}) for one in functions]
    calls = [read_arguments(one["name"], text) for one, text in zip(functions, texts, strict=True)]
    return tuple(ToolCall(call.name, {key: move(_plain(value), home) for key, value in call.arguments.items()}) for call in calls)


def move(text: str, home: str) -> str:
    """The text with paths below our home; a path that only begins with the same letters stays.

    >>> move("cat /app/a.py /application/b.py /srv/app/c.py", "/app")
    'cat /testbed/a.py /application/b.py /srv/app/c.py'
    """
    return re.sub(rf"(?<![\w.]){re.escape(home)}(?![\w-]|\.\w)", HOME, text)


def _json(place: str, value: Any) -> Any:
    """What a column holds, which may be JSON in a string; ValueError where it is neither."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from None


def _inner(value: Any) -> Mapping[str, Any]:
    """An object inside of a row, in a string or not; empty where there is none."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(content: Any) -> str:
    """A message's text, of parts as well."""
    if isinstance(content, list):
        return _plain("\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict)))
    return _plain("" if content is None else str(content))


def _plain(text: str) -> str:
    """Text that can be encoded: half of a surrogate pair, which JSON can hold, is a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
