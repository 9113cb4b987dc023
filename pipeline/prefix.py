"""Training that starts in the middle of recorded episodes (rollout.prefix): which turns an episode starts from; knows no machine.

The turns before turn K are carried out in the new episode's machine and stand in its first prompt: the policy sees them, they carry no
loss (no token of theirs is sampled by it), and credit counts only the turns after them. All episodes of a group start from the
same turns, so that the group's mean stays a baseline of the state that it starts from. Prefixes are of resolved episodes alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tasks import Task

from .config import PrefixConfig
from .journal import Journal
from .prompt import Chat
from .types import Completion, Episode, Turn

Prefixes = Mapping[str, Sequence[tuple[Turn, ...]]]
"""Instance id -> what its groups start from, one after the other."""


def load_prefixes(prefix: PrefixConfig | None, chat: Chat, tasks: Sequence[Task]) -> Prefixes:
    """Of every task the resolved episodes of the run that have the turn, in the order of their ids; ValueError where there is none."""
    if prefix is None:
        return {}
    of_task = {task.instance_id: task for task in tasks}
    found: dict[str, list[tuple[Turn, ...]]] = {}
    with Journal(prefix.run, readonly=True) as journal:
        for row in sorted(journal.rows(), key=lambda one: one.episode_id):
            task = of_task.get(row.instance_id)
            if task is None or row.reward != 1.0:
                continue
            episode = journal.episode(row.episode_id)
            turns = episode.played
            turn = prefix.turn if prefix.turn > 0 else len(turns) + 1 + prefix.turn
            if 1 <= turn <= len(turns):
                found.setdefault(row.instance_id, []).append(retell(chat, task, cut_before(episode, turn)))
    if not found:
        raise ValueError(f"rollout.prefix: {prefix.run} holds no resolved episode of these tasks that has a turn {prefix.turn}")
    return found


def choose_prefix(prefixes: Prefixes, instance_id: str, step: int) -> tuple[Turn, ...]:
    """What the group of a task at a step starts from; nothing where the task has no prefix."""
    of_task = prefixes.get(instance_id, ())
    return of_task[step % len(of_task)] if of_task else ()


def cut_before(episode: Episode, turn: int) -> tuple[Turn, ...]:
    """The turns before `turn` (from 1, those of the episode's own prefix included); ValueError where it has no such turn."""
    turns = episode.played
    if not 1 <= turn <= len(turns):
        raise ValueError(f"{episode.episode_id} has turns 1 to {len(turns)}: it cannot go on from turn {turn}")
    return turns[: turn - 1]


def retell(chat: Chat, task: Task, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The same turns in the tokens of `chat`: as they are where it made them, else written anew, an answer that was cut without an end."""
    prompt = chat.start_prompt(task)
    if not turns or tuple(prompt) == turns[0].prompt:
        return tuple(turns)
    told = []
    for turn in turns:
        text, stopped = turn.completion.text, turn.completion.stopped
        ids = tuple(chat.write(text) if stopped else chat.template.encode(text))
        completion = Completion(ids, (0.0,) * len(ids), text, 0, stopped)
        told.append(replace(turn, prompt=tuple(prompt), completion=completion))
        prompt = chat.extend(prompt, completion, turn.observation)
    return tuple(told)
