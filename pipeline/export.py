"""`greengrad export`: the episodes of a run folder into files that other tools read; knows the formats by their functions alone.

openai     DIR/episodes.jsonl                             one line an episode
atif       DIR/EPISODE/trajectory.json                    one folder an episode
sweagent   DIR/INSTANCE/INSTANCE.traj and .pred, DIR/preds.json; where instances were attempted several times, DIR/attempt_00/... each
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, assert_never

from tasks import file_name, new_folder

from .actor import actor_name, open_chat
from .config import Config
from .config_io import load_config, override, read_yaml
from .export_account import Account, dump, tell
from .export_atif import atif_trajectory
from .export_openai import openai_row
from .export_sweagent import sweagent_pred, sweagent_traj
from .imports import NOTE, read_note
from .journal import Journal

Form = Literal["sweagent", "atif", "openai"]
_ORIGIN = ("model.path", "policy.api", "policy.model", "policy.url", "rollout.policy", "rollout.action_format", "user.ask")


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of a run's episodes."""

    written: int
    empty: int
    """Left out: without a turn (`grade` makes such, and machines that failed at once)."""


def export_run(run: Path, form: Form, out: Path) -> Exported:
    """Write every episode that has a turn.

    FileNotFoundError where RUN is no run folder, ValueError where it cannot be read or DIR is in use.
    """
    with Journal(run, readonly=True) as journal:
        rows = journal.rows()
        filled = sum(row.turns > 0 for row in rows)
        if not filled:
            raise ValueError(f"{run}: no episode with a turn in it ({len(rows)} recorded): nothing to export")
        config = _imported(run / NOTE) if (run / NOTE).is_file() else _origin(run / "config.yaml")
        with new_folder(out) as draft:
            _write(form, _accounts(journal, config), draft)
    return Exported(filled, len(rows) - filled)


def _origin(path: Path) -> Config:
    """What says who acted, out of a run's configuration; the rest may be of another version."""
    tree, words = read_yaml(path), override("tasks.suite", "-")
    for key in _ORIGIN:
        section, _, name = key.partition(".")
        found = tree.get(section)
        value = found.get(name) if isinstance(found, dict) else None
        words += [] if value is None else override(key, str(value))
    return load_config(None, words, Config)


def _imported(path: Path) -> Config:
    """The same for a folder of `greengrad import`: nothing says who acted; the action format is that of its note."""
    words = [*override("tasks.suite", "-"), *override("rollout.policy", "imported")]
    return load_config(None, [*words, *override("rollout.action_format", read_note(path))], Config)


def _accounts(journal: Journal, config: Config) -> Iterator[Account]:
    chat, model = open_chat(config), actor_name(config)
    real_ids = config.model is not None and config.policy.api == "tokens" and config.rollout.policy == "model"
    steps = {row.episode_id: row.step for row in journal.rows()}
    for episode in journal.episodes():
        if episode.turns:
            episode = replace(episode, turns=episode.played, prefix=())  # a reader wants to see where it started from
            yield tell(episode, steps[episode.episode_id], model, chat, real_ids)


def _write(form: Form, accounts: Iterator[Account], folder: Path) -> None:
    match form:
        case "openai":
            _write_lines(folder / "episodes.jsonl", (dump(openai_row(one)) for one in accounts))
        case "atif":
            for one in accounts:
                _put(folder / file_name(one.episode.episode_id) / "trajectory.json", dump(atif_trajectory(one)))
        case "sweagent":
            _write_sweagent(accounts, folder)
        case _:
            assert_never(form)


def _write_sweagent(accounts: Iterator[Account], folder: Path) -> None:
    """The n-th episode of an instance goes to the n-th attempt; a single attempt needs no folder of its own."""
    attempts: Counter[str] = Counter()
    preds: list[dict[str, dict[str, str]]] = []
    for one in accounts:
        instance_id = one.episode.instance_id
        number = attempts[instance_id]
        attempts[instance_id] += 1
        preds += [{}] if number == len(preds) else []
        preds[number][instance_id] = sweagent_pred(one)
        place = folder / f"attempt_{number:02d}" / file_name(instance_id)
        _put(place / f"{place.name}.traj", dump(sweagent_traj(one)))
        _put(place / f"{place.name}.pred", dump(sweagent_pred(one)))
    for number, found in enumerate(preds):
        _put(folder / f"attempt_{number:02d}" / "preds.json", dump(found))
    if len(preds) == 1:
        _lift(folder / "attempt_00")


def _lift(folder: Path) -> None:
    """Its contents, one folder up."""
    for path in list(folder.iterdir()):
        path.rename(folder.parent / path.name)
    folder.rmdir()


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="ascii")


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="ascii") as file:
        for line in lines:
            file.write(line + "\n")
