"""A real run, killed again and again at random moments, ends as an undisturbed one: same episodes, same actions, same weights."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.journal import Journal, JournalError
from pipeline.ledger import check_run
from tasks import toy_suite

REPOSITORY = Path(__file__).parent.parent


def start(run: Path, suite: Path, steps: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.killed_loop", str(run), str(suite), str(steps)]
    with (run.parent / f"{run.name}.log").open("ab") as told:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=told, stderr=told)


def finish(run: Path, suite: Path, steps: int) -> None:
    process = start(run, suite, steps)
    try:
        assert process.wait(300) == 0, (run.parent / f"{run.name}.log").read_text()[-3000:]
    finally:
        process.kill()


def recorded(run: Path) -> tuple[int, int]:
    """Finished episodes, and turns of those that are under way."""
    try:
        with Journal(run, readonly=True) as journal:
            return len(journal.rows()), sum(journal.ledger().open_turns.values())
    except (FileNotFoundError, JournalError):  # it is being made
        return 0, 0


def kill_once(run: Path, suite: Path, steps: int, wait: float) -> bool:
    """Start, wait until it has recorded something and then `wait` seconds, kill; whether it was still running."""
    before, process = recorded(run), start(run, suite, steps)
    try:
        limit = time.monotonic() + 120
        while process.poll() is None and recorded(run) == before:
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


@pytest.mark.bubblewrap
@pytest.mark.parametrize(("kills", "steps"), [(5, 8), pytest.param(20, 30, marks=pytest.mark.long)])
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path, kills: int, steps: int) -> None:
    suite = tmp_path / "suite"
    toy_suite(suite)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(whole, suite, steps)
    chance, alive = random.Random(kills), 0
    for number in range(kills):  # the first at once, while a first turn is under way; the others whenever it falls
        alive += kill_once(cut, suite, steps, 0.0 if number == 0 else chance.uniform(0.0, 0.8))
    finish(cut, suite, steps)
    assert alive == kills, "the run was over before it could be killed: make it longer"
    ledgers = []
    for run in (whole, cut):
        (ledger,) = check_run(run)
        assert ledger.faults == () and ledger.notes == ()
        assert ledger.issued == ledger.finished == steps * 2 * 3 and ledger.steps == steps
        assert sum(ledger.fates.values()) == ledger.finished and ledger.fates["trained"] > 0
        ledgers.append(ledger)
    assert ledgers[0].events == {} and ledgers[1].events["resumed"] >= 1 and "cut" not in ledgers[1].events
    assert what_happened(cut) == what_happened(whole)
    assert measured(cut) == measured(whole)
    np.testing.assert_array_equal(np.load(cut / "weights" / "weights.npy"), np.load(whole / "weights" / "weights.npy"))
