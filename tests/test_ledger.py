"""`greengrad audit`: an honest run adds up, and every kind of contradiction is found and named."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.config import RolloutConfig
from pipeline.config_io import dump_config
from pipeline.journal import Journal
from pipeline.ledger import check_run
from pipeline.train import train
from pipeline.types import Episode, Scored, Stop
from tasks import Outcome, Verdict
from tests.toy_loop import CHAT, TEXTS, DyingLearner, make_config, make_world


async def make_run(run: Path) -> None:
    config = make_config(2).model_copy(update={"rollout": RolloutConfig(tasks_per_step=2, group_size=8, max_turns=4)})
    with Journal(run) as journal:
        dump_config(config, run / "config.yaml")
        learner = DyingLearner(CHAT, TEXTS)
        learner.left = 2
        with pytest.raises(KeyboardInterrupt):
            await train(config, journal, make_world(learner=learner))
    with Journal(run) as journal:
        await train(config, journal, make_world())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, killed once in the middle."""
    run = tmp_path_factory.mktemp("made") / "run"
    asyncio.run(make_run(run))
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def change(run: Path, *statements: str) -> None:
    with sqlite3.connect(run / "journal.sqlite") as db:
        for statement in statements:
            assert db.execute(statement).rowcount != 0
    db.close()


def test_a_run_that_was_killed_adds_up(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ledger,) = check_run(run)
    assert ledger.faults == () and ledger.notes == () and ledger.steps == 2
    assert ledger.issued == ledger.finished == sum(ledger.fates.values()) == 2 * 2 * 8
    assert main(["audit", str(run)]) == 0
    assert "32 episodes issued, 32 finished, 0 under way, 2 steps" in capsys.readouterr().out


FIRST = "(SELECT episode_id FROM episodes WHERE step = 1 ORDER BY episode_id LIMIT 1)"
CONTRADICTIONS = [
    ((f"DELETE FROM issued WHERE episode_id = {FIRST}",), "finished, and was never issued"),
    ((f"UPDATE issued SET step = 0 WHERE episode_id = {FIRST}",), "issued as"),
    (("INSERT INTO issued VALUES ('x', 'g', 'i', 1, 0)",), "x: issued for step 1, which is committed, and never finished"),
    (("INSERT INTO turns VALUES ('x', 0, x'00', 0)",), "x: has turns, and was never issued"),
    ((f"INSERT INTO turns VALUES ({FIRST}, 0, x'00', 0)",), "is finished, and has turns under way"),
    ((f"DELETE FROM fates WHERE episode_id = {FIRST}",), "finished in step 1, neither trained nor dropped"),
    (("INSERT INTO fates VALUES ('x', 1, 'trained')",), "x: trained or dropped in step 1, and not in the record"),
    ((f"UPDATE fates SET fate = 'surplus' WHERE episode_id = {FIRST}",), "surplus in step 1, but its batch, made again, says"),
    (("UPDATE batches SET digest = 'x' WHERE step = 1",), "step 1: its batch, made again, is another one than was trained on"),
    ((f"UPDATE episodes SET body = x'00' WHERE episode_id = {FIRST}",), "cannot be read: not an encoded episode"),
    ((f"UPDATE episodes SET reward = 0.25 WHERE episode_id = {FIRST}",), "its record and its row differ"),
    ((f"DELETE FROM episodes WHERE episode_id = {FIRST}",), "7 episodes of 8"),
    (("DELETE FROM steps WHERE step = 0",), "steps are missing: [1]"),
    (("UPDATE steps SET metrics = '{}' WHERE step = 0",), "metrics.jsonl is not what the journal holds"),
    (
        ("UPDATE steps SET metrics = '{\"train/version\": 0}' WHERE step = 0",),
        "sampled by version 1, and step 1 was trained from version 0",
    ),
    (("UPDATE steps SET metrics = '{\"train/version\": 9}' WHERE step = 0",), "versions of the weights go back"),
]


@pytest.mark.parametrize(("statements", "told"), CONTRADICTIONS, ids=[told for _, told in CONTRADICTIONS])
def test_a_contradiction_is_one_line_and_exit_code_1(
    run: Path, statements: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run, *statements)
    assert main(["audit", str(run)]) == 1
    assert told in capsys.readouterr().out


def test_an_episode_under_way_in_an_open_step_is_no_contradiction(run: Path) -> None:
    with Journal(run) as journal:
        episode = next(iter(journal.episodes(0)))
        journal.issue("x", "g", "i", 2)
        journal.record_turn("x", episode.turns[:1])
    (ledger,) = check_run(run)
    assert ledger.faults == () and ledger.issued == ledger.finished + 1


def test_a_damaged_file_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((run / "journal.sqlite").read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    (run / "journal.sqlite").write_bytes(data)
    assert main(["audit", str(run)]) == 1
    told = capsys.readouterr().err
    assert "not a readable journal of greengrad" in told and len(told.strip().splitlines()) == 1


def attempts(*outcomes: Outcome) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        with Journal(run) as journal:
            for number, outcome in enumerate(outcomes):
                name = f"task~{number}" if number else "task"
                journal.issue(name, "task", "task", 0)
                journal.record_episode(Episode(name, "task", "task", (), Stop.SUBMITTED, "", Verdict("task", outcome)), 0)

    return write


@pytest.mark.parametrize(
    ("write", "faults"),
    [
        (attempts(Outcome.INFRA, Outcome.INFRA, Outcome.RESOLVED), ()),
        (attempts(Outcome.INFRA), ()),
        (attempts(Outcome.NO_PATCH, Outcome.RESOLVED), ("task: attempted again although it had a verdict",)),
    ],
)
def test_an_evaluation_has_one_verdict_for_each_piece_of_work(
    tmp_path: Path, write: Callable[[Path], None], faults: tuple[str, ...]
) -> None:
    write(tmp_path / "eval-00003")
    (ledger,) = check_run(tmp_path)
    assert ledger.faults == faults


def test_episodes_without_a_verdict_are_told_as_not_graded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path) as journal:
        for number in range(2):
            journal.issue(f"task#0{number}", "task", "task", 0)
            journal.record_episode(Episode(f"task#0{number}", "task", "task", (), Stop.STEP, "", None, scored=Scored(0.5)), 0)
    assert main(["audit", str(tmp_path)]) == 0
    assert "verdicts: 2 not graded\n" in capsys.readouterr().out


def test_a_folder_without_a_journal_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(tmp_path)]) == 2
    assert "is this a run folder" in capsys.readouterr().err
