"""The worked example of one-shot collection (rollout.demonstration): a file's text, or another task's episode; knows no tokens.

Base models that never saw the tools write them after one example (arXiv:2508.03501 collects so for rejection fine-tuning). It is in the
prompt at collection alone: an episode keeps what its start would have been without (Episode.plain_start), and stages/rft.py puts that in.
A task never sees an episode of its own, nor one that leaves no room in the context for an answer: it sees the first that fits, or none.
"""

from collections.abc import Callable
from pathlib import Path

from tasks import Task

from .config_io import read_text
from .journal import Journal
from .types import Episode

HEAD = "\n\nHere is how another bug was fixed, turn by turn:\n"
FEWEST = 2
"""Tasks that a run must have resolved: one to show, and another for the task that it is of."""
KEPT = 8
"""Episodes of as many tasks are kept, those of the fewest turns, in that order."""


def anything(task: Task, text: str) -> bool:
    """Where nothing counts tokens."""
    return True


def load_demonstration(path: Path, fits: Callable[[Task, str], bool] = anything) -> Callable[[Task], str]:
    """What a task's prompt begins with: the first that fits, "" where none does.

    ValueError or FileNotFoundError where there is nothing to show.
    """
    found = _of_run(path) if path.is_dir() else _of_file(path)
    return lambda task: next((HEAD + text for name, text in found.items() if name != task.instance_id and fits(task, HEAD + text)), "")


def _of_file(path: Path) -> dict[str, str]:
    text = read_text(path).strip()
    if not text:
        raise ValueError(f"rollout.demonstration: {path} is empty")
    return {"": text}


def _of_run(path: Path) -> dict[str, str]:
    """Instance id -> its shortest episode."""
    with Journal(path, readonly=True) as journal:
        rows = sorted((row for row in journal.rows() if row.reward == 1.0 and row.turns), key=lambda row: (row.turns, row.episode_id))
        shortest = {row.instance_id: row.episode_id for row in reversed(rows)}
        first = list(dict.fromkeys(row.instance_id for row in rows))[:KEPT]
        texts = {name: tell(journal.episode(shortest[name])) for name in first}
    if len(texts) < FEWEST:
        raise ValueError(f"rollout.demonstration: {path} needs resolved episodes of {FEWEST} tasks, it has them of {len(texts)}")
    return texts


def tell(episode: Episode) -> str:
    """What was said and what came back."""
    return "\n".join(f"{turn.completion.text.strip()}\n[{turn.observation.strip()}]" for turn in episode.turns)
