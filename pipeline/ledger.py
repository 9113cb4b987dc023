"""Does the ledger of a run add up? Every episode issued, finished, trained or dropped and why, each once; changes nothing.

What the journal says is compared with itself, with metrics.jsonl, and with what the recorded episodes give when their batch is made
again from the run's configuration: the same samples to the bit, the same fate for each episode. Not looked at: weights, checkpoints.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import Outcome, load_suite

from .actor import open_chat
from .config import Config
from .config_io import load_config
from .evaluate import AGAIN
from .journal import EpisodeRow, Journal, LedgerRows
from .prompt import ByteTemplate, Chat
from .stages.hindsight import Source, plan_lesson
from .staleness import StaleError
from .types import Episode


@dataclass(frozen=True, slots=True)
class Ledger:
    """One journal, counted and checked."""

    run: Path
    issued: int
    finished: int
    steps: int
    fates: dict[str, int]
    """"trained" and each reason for not being -> episodes."""
    outcomes: dict[str, int]
    """Each verdict, or "not graded" (srl scores single actions), -> episodes."""
    events: dict[str, int]
    """resumed, cut, forgotten -> how often."""
    notes: tuple[str, ...]
    """What could not be checked."""
    faults: tuple[str, ...]
    """Contradictions, one line each; empty: the ledger adds up."""


def check_run(run: Path) -> list[Ledger]:
    """The journal of a run folder and those of the folders in it (evaluations while it trained); ValueError where there is none."""
    folders = [folder for folder in (run, *sorted(run.glob("*/"))) if (folder / "journal.sqlite").is_file()]
    if not folders:
        raise ValueError(f"{run}: no journal.sqlite here; is this a run folder?")
    return [check_journal(folder, run) for folder in folders]


def check_journal(folder: Path, run: Path) -> Ledger:
    """One journal; the configuration is the run's."""
    path = next((place / "config.yaml" for place in (folder, run) if (place / "config.yaml").is_file()), None)
    config = load_config(path, [], Config) if path else None
    with Journal(folder, readonly=True) as journal:
        found, rows, steps = journal.ledger(), journal.rows(), journal.steps()
        notes: list[str] = []
        faults = [] if found.whole == "ok" else [f"the file is damaged: {found.whole}"]
        unreadable = list(check_bodies(journal, rows))
        faults += [*check_issued(found, rows, set(steps)), *unreadable, *check_steps(journal, steps)]
        if unreadable:
            notes.append("batches are not made again from a damaged record")
        elif found.fates or any(row.step in steps for row in rows):
            faults += check_batches(journal, found, config, notes)
        else:
            faults += check_attempts(rows)
    return Ledger(
        run=folder,
        issued=len(found.issued),
        finished=len(rows),
        steps=len(steps),
        fates=dict(Counter(fate for _, fate in found.fates.values())),
        outcomes=dict(Counter(row.outcome or "not graded" for row in rows)),
        events=dict(Counter(what for _, what, _ in found.events)),
        notes=tuple(notes),
        faults=tuple(faults),
    )


def check_issued(found: LedgerRows, rows: Sequence[EpisodeRow], committed: set[int]) -> Iterator[str]:
    """Whatever is finished was issued, whatever was issued is finished or under way in an open step."""
    finished = {row.episode_id for row in rows}
    for row in rows:
        issued = found.issued.get(row.episode_id)
        if issued is None:
            yield f"{row.episode_id}: finished, and was never issued"
        elif issued != (row.group_id, row.instance_id, row.step):
            yield f"{row.episode_id}: issued as {issued}, finished as {(row.group_id, row.instance_id, row.step)}"
    for name, (_, _, step) in found.issued.items():
        if name not in finished and step in committed:
            yield f"{name}: issued for step {step}, which is committed, and never finished"
    for name in found.open_turns:
        if name not in found.issued:
            yield f"{name}: has turns, and was never issued"
        if name in finished:
            yield f"{name}: is finished, and has turns under way"


def check_bodies(journal: Journal, rows: Sequence[EpisodeRow]) -> Iterator[str]:
    """Each episode can be read and is what its row says."""
    for row in rows:
        try:
            episode = journal.episode(row.episode_id)
        except ValueError as error:
            yield str(error)
            continue
        outcome = episode.verdict.outcome.value if episode.verdict else None
        told = (episode.episode_id, episode.group_id, episode.instance_id, episode.stop.value, outcome, episode.reward, len(episode.turns))
        if told != (row.episode_id, row.group_id, row.instance_id, row.stop, row.outcome, row.reward, row.turns):
            yield f"{row.episode_id}: its record and its row differ: {told}"


def check_steps(journal: Journal, steps: Mapping[int, Mapping[str, float]]) -> Iterator[str]:
    """Steps follow each other, versions do not go back, and metrics.jsonl holds the same."""
    if list(steps) != list(range(len(steps))):
        yield f"steps are missing: {list(steps)}"
    versions = [metrics.get("train/version", 0.0) for metrics in steps.values()]
    if versions != sorted(versions):
        yield f"versions of the weights go back: {versions}"
    path = journal.run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if [json.loads(line) for line in lines] != [{"step": step, **metrics} for step, metrics in steps.items()]:
        yield "metrics.jsonl is not what the journal holds (a writer puts it right when it opens the run)"


def check_batches(journal: Journal, found: LedgerRows, config: Config | None, notes: list[str]) -> Iterator[str]:
    """Every episode of a committed step was trained on or dropped, once and for the reason that its batch gives again."""
    unrecorded = 0
    source = open_source(config, notes) if config else None
    for step in journal.steps():
        groups, recorded = journal.groups(step), journal.batch(step)
        names = {episode.episode_id for group in groups for episode in group.episodes}
        fates = {name: fate for name, (of, fate) in found.fates.items() if of == step}
        if recorded is None:
            unrecorded += 1
            continue
        yield from (f"{name}: finished in step {step}, neither trained nor dropped" for name in sorted(names - set(fates)))
        yield from (f"{name}: trained or dropped in step {step}, and not in the record" for name in sorted(set(fates) - names))
        yield from check_versions(step, journal.steps(), [episode for group in groups for episode in group.episodes])
        if config is None or source is None:
            continue
        yield from (
            f"{group.group_id}: {len(group.episodes)} episodes of {config.rollout.group_size}"
            for group in groups
            if len(group.episodes) != config.rollout.group_size
        )
        try:
            lesson = plan_lesson(config, source, groups, version_before(step, journal.steps()))
        except (StaleError, ValueError) as error:
            yield f"step {step}: {error}"
            continue
        if lesson.digest != recorded:
            yield f"step {step}: its batch, made again, is another one than was trained on"
        yield from (
            f"{name}: {fates[name]} in step {step}, but its batch, made again, says {fate}"
            for name, fate in lesson.batch.fates.items()
            if fates.get(name, fate) != fate
        )
    if unrecorded:
        notes.append(f"{unrecorded} steps were made by an older version, which did not record batches")
    if config is None:
        notes.append("no config.yaml: batches are not made again")


def open_source(config: Config, notes: list[str]) -> Source | None:
    """What batches are made with beside the episodes, which without `hindsight` is nothing; None, and a note, where it is gone."""
    if config.hindsight is None:
        return Source(Chat(ByteTemplate()), 0, ())
    try:
        context = config.model.context if config.model else sys.maxsize
        return Source(open_chat(config), context, load_suite(config.tasks.suite).tasks)
    except (OSError, ValueError) as error:
        notes.append(f"batches are not made again without the suite and the model's chat template: {error}")
        return None


def version_before(step: int, steps: Mapping[int, Mapping[str, float]]) -> int:
    """Of the weights that the step was trained from."""
    return int(steps.get(step - 1, {}).get("train/version", 0))


def check_versions(step: int, steps: Mapping[int, Mapping[str, float]], episodes: Sequence[Episode]) -> Iterator[str]:
    """No token is of weights that did not exist yet when the step was trained."""
    before = version_before(step, steps)
    for episode in episodes:
        late = {turn.completion.newest for turn in episode.turns if turn.completion.newest > before}
        if late:
            yield f"{episode.episode_id}: sampled by version {max(late)}, and step {step} was trained from version {before}"


def check_attempts(rows: Sequence[EpisodeRow]) -> Iterator[str]:
    """Without training: each piece of work has at most one verdict, its last attempt; the others were infrastructure."""
    attempts: dict[str, list[EpisodeRow]] = defaultdict(list)
    for row in rows:
        attempts[row.episode_id.partition(AGAIN)[0]].append(row)
    for name, found in attempts.items():
        if any(row.outcome not in (None, Outcome.INFRA) for row in found[:-1]):
            yield f"{name}: attempted again although it had a verdict"
