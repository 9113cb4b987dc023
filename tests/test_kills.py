"""A real run, killed again and again at random moments, ends as an undisturbed one: same episodes, same actions, same weights."""

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.journal import Journal, JournalError
from pipeline.ledger import Ledger, check_run
from tasks import toy_suite

REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Job:
    """A run to be killed."""

    run: Path
    suite: Path
    steps: int
    max_lag: int = 0


def start(job: Job) -> subprocess.Popen[bytes]:
    run = job.run
    command = [sys.executable, "-m", "tests.killed_loop", str(run), str(job.suite), str(job.steps), str(job.max_lag)]
    with (run.parent / f"{run.name}.log").open("ab") as told:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=told, stderr=told)


def finish(job: Job) -> None:
    process = start(job)
    try:
        assert process.wait(300) == 0, (job.run.parent / f"{job.run.name}.log").read_text()[-3000:]
    finally:
        process.kill()


def recorded(run: Path) -> tuple[int, int]:
    """Finished episodes, and turns of those that are under way."""
    try:
        with Journal(run, readonly=True) as journal:
            return len(journal.rows()), sum(journal.ledger().open_turns.values())
    except (FileNotFoundError, JournalError):  # it is being made
        return 0, 0


def kill_once(job: Job, wait: float) -> bool:
    """Start, wait until it has recorded something and then `wait` seconds, kill; whether it was still running."""
    before, process = recorded(job.run), start(job)
    try:
        limit = time.monotonic() + 120
        while process.poll() is None and recorded(job.run) == before:
            assert time.monotonic() < limit
            time.sleep(0.02)
        time.sleep(wait)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        return alive
    finally:
        process.kill()
        process.wait(30)


def what_happened(run: Path) -> dict[str, object]:
    with Journal(run, readonly=True) as journal:
        return {
            episode.episode_id: ([turn.completion.text for turn in episode.turns], episode.stop, episode.reward)
            for episode in journal.episodes()
        }


def measured(run: Path) -> list[dict[str, float]]:
    """What a step's metrics say of its batch and its weights; speeds and times are others each time."""
    with Journal(run, readonly=True) as journal:
        return [
            {
                key: value
                for key, value in metrics.items()
                if key.startswith(("batch/", "reward/", "loss/", "train/")) and "tokens" not in key
            }
            for metrics in journal.steps().values()
        ]


def kill_again_and_again(job: Job, kills: int) -> Ledger:
    """The ledger of a run that was killed so often, and then ended; it adds up, and every episode is there once."""
    chance, alive = random.Random(kills), 0
    for number in range(kills):  # the first at once, while a first turn is under way; the others whenever it falls
        alive += kill_once(job, 0.0 if number == 0 else chance.uniform(0.0, 0.8))
    finish(job)
    assert alive == kills, "the run was over before it could be killed: make it longer"
    return check(job)


def check(job: Job) -> Ledger:
    """The ledger adds up; all episodes of all steps are there, each once and with its fate."""
    (ledger,) = check_run(job.run)
    assert ledger.faults == () and ledger.notes == ()
    with Journal(job.run, readonly=True) as journal:
        names = [row.episode_id for row in journal.rows()]
    places = [
        f"{step:05d}.{place:05d}.greengrad__toy-add.{number:02d}" for step in range(job.steps) for place in (0, 1) for number in range(3)
    ]
    assert sorted(names) == places and ledger.issued == len(places) and ledger.steps == job.steps
    assert sum(ledger.fates.values()) == len(places) and ledger.fates["trained"] > 0
    return ledger


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "suite"
    toy_suite(folder)
    return folder


@pytest.mark.bubblewrap
@pytest.mark.parametrize(("kills", "steps"), [(5, 8), pytest.param(20, 30, marks=pytest.mark.long)])
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(suite: Path, tmp_path: Path, kills: int, steps: int) -> None:
    whole, cut = Job(tmp_path / "whole", suite, steps), Job(tmp_path / "cut", suite, steps)
    finish(whole)
    assert check(whole).events == {}
    events = kill_again_and_again(cut, kills).events
    assert events["resumed"] >= 1 and "cut" not in events
    assert what_happened(cut.run) == what_happened(whole.run)
    assert measured(cut.run) == measured(whole.run)
    np.testing.assert_array_equal(*[np.load(run / "weights" / "weights.npy") for run in (cut.run, whole.run)])


@pytest.mark.bubblewrap
@pytest.mark.long
def test_an_asynchronous_run_that_is_killed_again_and_again_has_every_episode_once(suite: Path, tmp_path: Path) -> None:
    """Which version samples a turn depends on when it was killed, so that its weights are others than those of an undisturbed run."""
    assert kill_again_and_again(Job(tmp_path / "cut", suite, 30, max_lag=2), 20).events["resumed"] >= 1
