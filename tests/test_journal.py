"""The journal: exact round trips, what a crash leaves, a full disk, a foreign file, two writers."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec import decode_episode, decode_turns, encode_episode, encode_turn
from pipeline.journal import Journal, JournalError
from pipeline.journal_file import APPLICATION, EPISODES
from pipeline.types import Completion, Episode, Stop, ToolCall, Turn
from tasks import Outcome, Verdict

ids = st.lists(st.integers(0, 2**32 - 1), max_size=12).map(tuple)
texts = st.text(max_size=20)
floats = st.floats(allow_nan=False)


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    sampled = draw(ids)
    logprobs = tuple(draw(st.lists(floats, min_size=len(sampled), max_size=len(sampled))))
    return Completion(sampled, logprobs, draw(texts), draw(st.integers(0, 9)), draw(st.booleans()))


calls = st.builds(ToolCall, texts, st.dictionaries(texts, texts, max_size=3))
turns = st.builds(Turn, ids, completions(), st.none() | calls, texts, floats, floats, texts, st.none() | floats, texts)
statuses = st.dictionaries(texts, texts, max_size=3)
verdicts = st.builds(
    Verdict,
    instance_id=texts,
    outcome=st.sampled_from(Outcome),
    reason=texts,
    tests=statuses,
    seconds=floats,
    log=texts,
    witness=statuses,
    dropped=st.lists(texts).map(tuple),
)
episodes = st.builds(
    Episode,
    *(texts, texts, texts, st.lists(turns, max_size=4).map(tuple), st.sampled_from(Stop)),
    *(texts, st.none() | verdicts, texts, st.integers(0, 3), floats, st.lists(turns, max_size=2).map(tuple)),
)


def episode(name: str, reward: bool = True, group: str = "g0") -> Episode:
    """Two turns, the second of which continues the first."""
    first = Turn((1, 2), Completion((3, 4), (-0.1, -0.7), "x", 0, True), ToolCall("bash", {"command": "ls"}), "seen")
    second = Turn((1, 2, 3, 4, 5), Completion((6,), (-1e-7,), "y", 0, True), None, "malformed")
    verdict = Verdict("task", Outcome.RESOLVED if reward else Outcome.UNRESOLVED)
    return Episode(name, group, "task", (first, second), Stop.SUBMITTED, "patch", verdict)


@given(episodes)
@settings(max_examples=150, deadline=None)
def test_an_episode_comes_back_exactly(original: Episode) -> None:
    assert decode_episode(encode_episode(original)) == original


@given(episodes)
@settings(max_examples=50, deadline=None)
def test_turns_that_are_kept_one_by_one_come_back_exactly(original: Episode) -> None:
    before = (None, *original.turns)
    assert decode_turns([encode_turn(turn, last) for last, turn in zip(before, original.turns, strict=False)]) == original.turns


def test_a_prompt_that_rewrites_history_comes_back_exactly() -> None:
    original = episode("e")
    rewritten = Turn((1, 9, 9), original.turns[0].completion, None, "")
    changed = Episode("e", "g", "t", (*original.turns, rewritten), Stop.TIME, "", None)
    assert decode_episode(encode_episode(changed)) == changed


def test_a_long_episode_does_not_keep_each_prompt_in_full() -> None:
    context = tuple(i * 7919 % 49152 for i in range(4000))
    long = Episode("e", "g", "t", tuple(_growing_turns(context, 60)), Stop.MAX_TURNS, "", None)
    one = Episode("e", "g", "t", tuple(_growing_turns(context, 1)), Stop.MAX_TURNS, "", None)
    assert len(encode_episode(long)) < 3 * len(encode_episode(one))


def _growing_turns(context: tuple[int, ...], count: int) -> list[Turn]:
    found = []
    for number in range(count):
        completion = Completion((number, 7), (-0.5, -0.5), "", 0, True)
        found.append(Turn(context, completion, None, ""))
        context = (*context, *completion.ids, 8)
    return found


def test_episodes_come_back_by_step_and_by_group(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.record_episode(episode("a", group="g0"), step=0)
        journal.record_episode(episode("b", group="g1"), step=0)
        journal.record_episode(episode("c", group="g0"), step=0)
        journal.record_episode(episode("d", group="g9"), step=1)
        assert [e.episode_id for e in journal.episodes(0)] == ["a", "b", "c"]
        assert [(g.group_id, len(g.episodes)) for g in journal.groups(0)] == [("g0", 2), ("g1", 1)]
        assert [e.episode_id for e in journal.episodes()] == ["a", "b", "c", "d"]
        assert journal.episode("d") == episode("d", group="g9")
        assert [row.episode_id for row in journal.rows()] == ["a", "b", "c", "d"]
        with pytest.raises(ValueError, match="no episode zzz"):
            journal.episode("zzz")


def test_steps_and_phases_survive_a_new_process(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        assert journal.next_step == 0
        journal.commit_step(0, {"reward/mean": 0.25})
        journal.commit_step(1, {"reward/mean": 0.5})
        journal.mark_phase("suite", 12.5, {"tasks": 40})
    with Journal(tmp_path) as journal:
        assert journal.next_step == 2
        assert journal.phase_done("suite") and not journal.phase_done("model")
        assert journal.phases()[0].notes == {"tasks": 40}
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "reward/mean": 0.25}\n{"step": 1, "reward/mean": 0.5}\n'


def test_an_open_step_can_be_thrown_away_and_a_committed_one_cannot(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.record_episode(episode("a"), step=0)
        journal.commit_step(0, {})
        journal.record_episode(episode("b"), step=1)
        assert journal.discard_step(1) == 1
        assert list(journal.episodes(1)) == []
        with pytest.raises(ValueError, match="committed"):
            journal.discard_step(0)


def test_the_same_episode_twice_is_an_error(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.record_episode(episode("a"), step=0)
        with pytest.raises(JournalError, match="recorded before"):
            journal.record_episode(episode("a"), step=0)


def test_the_turns_of_an_episode_under_way_are_there_until_it_has_finished(tmp_path: Path) -> None:
    whole = episode("a")
    with Journal(tmp_path) as journal:
        journal.issue("a", "g0", "task", 0)
        journal.record_turn("a", whole.turns[:1])
        journal.record_turn("a", whole.turns)
    with Journal(tmp_path) as journal:
        assert journal.turns("a") == whole.turns and journal.turns("b") == ()
        journal.issue("a", "g0", "task", 0)
        journal.cut("a", 1, "it came out differently")
        assert journal.turns("a") == whole.turns[:1]
        assert journal.ledger().open_turns == {"a": 1}
        journal.record_episode(whole, step=0)
        assert journal.turns("a") == () and journal.ledger().open_turns == {}
        assert journal.ledger().issued == {"a": ("g0", "task", 0)}
        assert journal.ledger().events == [("a", "resumed", "after turn 2"), ("a", "cut", "it came out differently")]


def test_a_turn_that_was_recorded_before_a_kill_is_there_afterwards(tmp_path: Path) -> None:
    killed = python(
        f"journal = Journal(Path({str(tmp_path)!r}))\n"
        "from pipeline.types import Completion, Turn\n"
        "turns = [Turn((1, n), Completion((3,), (-0.5,), 'x', 0, True), None, 'seen') for n in range(30)]\n"
        "for n in range(30): journal.record_turn('e', turns[:n + 1])\n"
        "os.kill(os.getpid(), 9)"
    )
    assert killed.returncode == -9
    with Journal(tmp_path) as journal:
        assert [turn.prompt[1] for turn in journal.turns("e")] == list(range(30))


def test_a_batch_is_recorded_once_and_another_one_for_its_step_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        assert journal.batch(0) is None
        journal.record_batch(0, "abc", {"e": "trained"})
        journal.record_batch(0, "abc", {"e": "trained"})
        with pytest.raises(JournalError, match="the batch of step 0 is not the recorded one"):
            journal.record_batch(0, "abd", {"e": "trained"})
        assert journal.batch(0) == "abc" and journal.ledger().fates == {"e": (0, "trained")}


def test_what_is_thrown_away_leaves_an_event(tmp_path: Path) -> None:
    lost = Episode("lost", "g", "task", (), Stop.INFRA, "", Verdict("task", Outcome.INFRA))
    with Journal(tmp_path) as journal:
        journal.record_episode(episode("a"), step=0)
        journal.record_episode(lost, step=0)
        assert journal.forget_infra(0) == 1
        journal.forget_episode(episode("a"), 0, "of weights that do not exist")
        assert journal.rows() == []
        assert [(name, what) for name, what, _ in journal.ledger().events] == [("lost", "forgotten"), ("a", "forgotten")]


@pytest.fixture
def first_version(tmp_path: Path) -> Path:
    """A run folder as version 1 left it, with one episode."""
    with Journal(tmp_path / "new") as journal:
        journal.record_episode(episode("a"), step=0)
        journal.commit_step(0, {"train/version": 1.0})
    run = tmp_path / "old"
    run.mkdir()
    db = sqlite3.connect(run / "journal.sqlite")
    db.executescript(f"PRAGMA journal_mode=WAL; {EPISODES} PRAGMA application_id={APPLICATION}; PRAGMA user_version=1;")
    db.execute("ATTACH ? AS new", (str(tmp_path / "new" / "journal.sqlite"),))
    for table in ("episodes", "steps"):
        db.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")
    db.commit()
    db.close()
    return run


def test_a_journal_of_the_first_version_is_read_as_it_is_and_a_writer_adds_what_is_new(first_version: Path) -> None:
    before = (first_version / "journal.sqlite").read_bytes()
    with Journal(first_version, readonly=True) as journal:
        assert [row.episode_id for row in journal.rows()] == ["a"] and journal.turns("a") == ()
        assert journal.ledger().issued == {"a": ("g0", "task", 0)} and journal.batch(0) is None
    assert (first_version / "journal.sqlite").read_bytes() == before
    with Journal(first_version) as journal:
        journal.issue("b", "g1", "task", 1)
        journal.record_turn("b", episode("b").turns[:1])
    with Journal(first_version) as journal:
        assert journal.episode("a") == episode("a") and journal.turns("b") == episode("b").turns[:1]
        assert list(journal.ledger().issued) == ["a", "b"]


def test_a_journal_of_a_later_version_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    db = sqlite3.connect(tmp_path / "journal.sqlite")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(JournalError, match="version 99"):
        Journal(tmp_path)


def test_metrics_that_a_kill_kept_from_being_copied_are_there_when_the_run_is_opened_again(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.commit_step(0, {"reward/mean": 0.25})
    (tmp_path / "metrics.jsonl").unlink()
    Journal(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "reward/mean": 0.25}\n'


def test_a_second_process_on_the_same_run_is_told_who_writes(tmp_path: Path) -> None:
    with Journal(tmp_path):
        second = python(f"Journal(Path({str(tmp_path)!r}))")
    assert second.returncode == 1
    assert f"another process (pid {os.getpid()}) is writing to this run" in second.stderr


def test_a_reader_does_not_wait_for_the_writer(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.record_episode(episode("a"), step=0)
        reader = python(f"print(len(Journal(Path({str(tmp_path)!r}), readonly=True).rows()))")
    assert reader.stdout == "1\n"


def test_what_was_recorded_before_a_kill_is_there_afterwards(tmp_path: Path) -> None:
    killed = python(
        f"journal = Journal(Path({str(tmp_path)!r}))\n"
        "for n in range(20): journal.record_episode(Episode(str(n), 'g', 't', (), Stop.TIME, '', None), 0)\n"
        "os.kill(os.getpid(), 9)"
    )
    assert killed.returncode == -9
    with Journal(tmp_path) as journal:
        assert len(list(journal.episodes(0))) == 20
        journal.record_episode(episode("next"), step=0)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    full = python(
        "import resource, random\n"
        f"journal = Journal(Path({str(tmp_path)!r}))\n"
        "journal.record_episode(Episode('small', 'g', 't', (), Stop.TIME, '', None), 0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "patch = random.Random(0).randbytes(300_000).hex()\n"
        "journal.record_episode(Episode('large', 'g', 't', (), Stop.TIME, patch, None), 0)"
    )
    assert full.returncode == 1
    assert "make room and run the same command again" in full.stderr.splitlines()[-1]
    with Journal(tmp_path) as journal:
        assert [row.episode_id for row in journal.rows()] == ["small"]
        journal.record_episode(episode("after"), step=0)


def test_a_disk_that_fills_up_in_mid_episode_is_one_line_and_the_turns_before_are_there(tmp_path: Path) -> None:
    full = python(
        "import resource, random\n"
        "from pipeline.types import Completion, Turn\n"
        f"journal = Journal(Path({str(tmp_path)!r}))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "turns = [Turn((1,), Completion((3,), (-0.5,), random.Random(n).randbytes(20_000).hex(), 0, True), None, '') for n in range(99)]\n"
        "for n in range(99): print(n, flush=True); journal.record_turn('e', turns[:n + 1])"
    )
    assert full.returncode == 1 and "make room and run the same command again" in full.stderr.splitlines()[-1]
    with Journal(tmp_path) as journal:
        assert len(journal.turns("e")) == int(full.stdout.split()[-1]) > 1
        journal.record_turn("f", episode("f").turns[:1])


@pytest.mark.parametrize("content", [b"not a database at all, only text" * 50, b"\x00" * 4096])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.sqlite").write_bytes(content)
    with pytest.raises(JournalError, match="not a readable journal of greengrad"):
        Journal(tmp_path)
    assert (tmp_path / "journal.sqlite").read_bytes() == content


def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "journal.sqlite") as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = (tmp_path / "journal.sqlite").read_bytes()
    with pytest.raises(JournalError, match="not a readable journal of greengrad"):
        Journal(tmp_path)
    assert (tmp_path / "journal.sqlite").read_bytes() == before


def test_reading_a_folder_without_a_journal_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is this a run folder"):
        Journal(tmp_path, readonly=True)


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the journal at hand in a process of its own."""
    head = "import os\nfrom pathlib import Path\nfrom pipeline.journal import Journal\nfrom pipeline.types import Episode, Stop\n"
    return subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, timeout=60)
