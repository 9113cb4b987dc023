"""Other people's trajectories -> a run folder of episodes for rft and srl; knows no model and starts nothing.

Read: rows of SWE-smith and SWE-Gym, OpenAI's chat format (JSON, JSON lines or parquet; tool calls as objects, as <function=...> text, or
fenced commands), and SWE-agent's .traj. Their tools become ours (foreign.py); a trajectory with an action that none of ours can do is
left out whole and counted, as one whose task is not in the suite and one that nothing says is resolved. Nothing is graded here: the
verdict's reason says whose word it is. Texts are told in bytes; whoever trains on them tells them anew in its model's template.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import Outcome, Task, Verdict, read_rows

from .action import ActionFormat, FormatError, render
from .foreign import Said, UnknownTool, actions_of, command_of
from .journal import Journal
from .prompt import ByteTemplate, Chat
from .tools import clip
from .types import Completion, Episode, Stop, ToolCall, Turn

HOME = "/testbed"
SUFFIXES = (".parquet", ".jsonl", ".json")
_UPLOADED = re.compile(r"<uploaded_files>\s*(/\S+)\s*</uploaded_files>")
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
    if (run / "journal.sqlite").exists():
        raise ValueError(f"{run}: holds a run already; choose a new folder")
    of_task = {task.instance_id: task for task in tasks}
    left_out, episodes = Counter[str](), list[Episode]()
    for trajectory in (one for source in sources for one in read_source(source)):
        told = tell(trajectory, of_task, reading, len(episodes))
        if isinstance(told, Episode):
            episodes.append(told)
        else:
            left_out[told] += 1
    if not episodes:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common()) or "they hold no trajectories"
        raise ValueError(f"{sources[0]}{' and others' if len(sources) > 1 else ''}: nothing can be used: {why}")
    with Journal(run) as journal:
        for episode in episodes:
            journal.issue(episode.episode_id, episode.group_id, episode.instance_id, 0)
            journal.record_episode(episode, 0)
    return Imported(len(episodes), left_out)


def tell(trajectory: Trajectory, of_task: Mapping[str, Task], reading: Reading, number: int) -> Episode | str:
    """The episode, or why there is none."""
    name = next((name for name in (trajectory.instance_id, _RUN_NUMBER.sub("", trajectory.instance_id)) if name in of_task), None)
    if trajectory.resolved is None and not reading.trust:
        return "of which nothing says that they are resolved (--trust takes them)"
    if trajectory.resolved is False:
        return "not resolved"
    if name is None:
        return "of tasks that are not in the suite"
    if not trajectory.turns:
        return "without a turn"
    try:
        turns = tuple(tell_turns(trajectory.turns, of_task[name], reading))
    except UnknownTool as unknown:
        return f"with an action that no tool here does ({unknown})"
    why = f"resolved by the word of {trajectory.source}; not graded here"
    verdict = Verdict(name, Outcome.RESOLVED, why)
    stop = Stop.SUBMITTED if turns[-1].call and turns[-1].call.name == "submit" else Stop.MAX_TURNS
    return Episode(f"{name}.{number:05d}", name, name, turns, stop, trajectory.patch, verdict)


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
        yield _of_traj(_object(name, path.read_text(encoding="utf-8")), path)
        return
    if path.exists() and path.suffix not in SUFFIXES:
        raise ValueError(f"{name}: {', '.join(SUFFIXES)} and .traj can be read")
    for place, row in read_rows(name):
        found = _object(place, row) if isinstance(row, str) else row
        if "messages" not in found:
            raise ValueError(f"{place} has no messages: its columns are {', '.join(found)}")
        yield _of_messages(found, place)


def _object(place: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{place}: must be an object")
    return found


def _of_traj(row: Mapping[str, Any], path: Path) -> Trajectory:
    """SWE-agent's own file says nothing of a grade; one of ours (greengrad export) does."""
    info = row.get("info") or {}
    ours = info.get("greengrad") or {}
    steps = row.get("trajectory")
    if not isinstance(steps, list):
        raise ValueError(f"{path}: holds no trajectory")
    said = tuple(
        Said(str(step.get("thought", "")), (command_of(str(step.get("action", ""))),), _text(step.get("observation"))) for step in steps
    )
    reward = ours.get("reward")
    return Trajectory(
        path.name, ours.get("instance_id") or path.stem, None if reward is None else reward == 1.0, info.get("submission") or "", said
    )


def _of_messages(row: Mapping[str, Any], where: str) -> Trajectory:
    messages = json.loads(row["messages"]) if isinstance(row["messages"], str) else row["messages"]
    ours = row.get("metadata") or {}
    name = row.get("instance_id") or ours.get("instance_id") or ""
    resolved = row.get("resolved", ours.get("reward"))
    home = next((found[1] for one in messages if (found := _UPLOADED.search(_text(one.get("content"))))), HOME)
    patch = row.get("patch") or row.get("git_patch") or ours.get("patch") or ""
    return Trajectory(where, name, None if resolved is None else bool(resolved), patch, tuple(_pair(messages, home)))


def _pair(messages: Sequence[Mapping[str, Any]], home: str) -> Iterator[Said]:
    """Each answer with what came back, paths below our home."""
    for place, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        after = messages[place + 1] if place + 1 < len(messages) and messages[place + 1].get("role") in ("user", "tool") else {}
        text, back = [_text(one.get("content")).replace(home, HOME) for one in (message, after)]
        calls = [one["function"] for one in message.get("tool_calls") or ()]
        given = tuple(ToolCallText(one["name"], str(one["arguments"]).replace(home, HOME)).read() for one in calls)
        yield Said(text, given, back.removeprefix("OBSERVATION:\n"))


@dataclass(frozen=True, slots=True)
class ToolCallText:
    """A tool call as it stands in a message: its arguments are JSON in a string."""

    name: str
    arguments: str

    def read(self) -> ToolCall:
        """Its parts; ValueError where the arguments are not an object."""
        try:
            values = json.loads(self.arguments or "{}")
        except ValueError as error:
            raise ValueError(f"the arguments of {self.name} are not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"the arguments of {self.name} are no object")
        return ToolCall(self.name, {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()})


def _text(content: Any) -> str:
    """A message's text, of parts as well."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
