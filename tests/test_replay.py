"""Replay: what counts as the same, what is found where it is not, and another policy that goes on from a turn."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.arguments import parse
from pipeline.config import Config
from pipeline.config_io import load_config
from pipeline.export import export_run
from pipeline.jobs_runs import recorded_config
from pipeline.journal import Journal
from pipeline.redo import EDGE, VOLATILE, normalise, read_ending, same_text
from pipeline.replay import Replayed, replay_run
from pipeline.tools import clip
from tasks import toy_suite

REPOSITORY = Path(__file__).parent.parent
SAME = [
    ("3 passed in 0.12s", "3 passed in 10.31s"),
    ("=== 1 failed in 62.10s (0:01:02) ===", "=== 1 failed in 63.05s (0:01:03) ==="),
    ("real\t0m0.003s", "real\t1m2.125s"),
    ("Wed Nov 25 10:00:00 UTC 2026", "Thu Nov  5 23:59:59 UTC 2026"),
    ("-rw-r--r-- 1 agent agent 8 Nov 25 10:00 a.py", "-rw-r--r-- 1 agent agent 8 Nov  5 23:59 a.py"),
    ("2026-11-25 10:00:00.123456 start", "2026-11-26T03:01:02.5 start"),
    ("at 1764065000.25", "at 1764069999.75"),
    ("<object object at 0x7f2a11bc>", "<object object at 0x7faa00000100>"),
    ("/tmp/tmpab12_x9z/file", "/tmp/tmpzz98aaaa/file"),
    ("/tmp/tmp.AbCdEf1234", "/tmp/tmp.0123456789"),
    ("/tmp/pytest-of-agent/pytest-0/x", "/tmp/pytest-of-agent/pytest-12/x"),
    ("[1] 4021\ndone", "[1] 77\ndone"),
    ("[stopped after 60 s: over the time limit]", "[stopped after 7 s: over the time limit]"),
]
DIFFERENT = [
    ("3 passed in 0.12s", "2 passed in 0.12s"),
    ("x = 1", "x = 2"),
    ("version 1.2", "version 1.3"),
    ("10 items", "11 items"),
    ("tmpfile", "tmpname"),
    ("0x10", "0x11"),
    ("in 3 seconds", "in 4 seconds"),
    ("a", "a\nb"),
]


@pytest.mark.parametrize(("recorded", "found"), SAME)
def test_what_differs_by_its_nature_is_the_same(recorded: str, found: str) -> None:
    assert recorded != found and same_text(recorded, found)


@pytest.mark.parametrize(("recorded", "found"), DIFFERENT)
def test_what_differs_otherwise_is_different(recorded: str, found: str) -> None:
    assert not same_text(recorded, found)


def test_every_pattern_of_the_list_is_needed() -> None:
    for place in range(len(VOLATILE)):
        assert any(normalise(text) != _without(place, text) for pair in (*SAME, ("pid 12", "pid 13")) for text in pair), VOLATILE[place]


def _without(place: int, text: str) -> str:
    for number, (pattern, mark) in enumerate(VOLATILE):
        text = text if number == place else re.sub(pattern, mark, text)
    return text


def test_a_duration_that_moves_the_cut_of_a_long_output_is_no_difference() -> None:
    def told(seconds: str, word: str = "same") -> str:
        lines = [f"line {number} of {word}" for number in range(40)]
        return clip("\n".join([f"begin {seconds}", *lines, f"end {seconds} of it"]), 400)

    assert told("0.5s") != told("12.25s") and same_text(told("0.5s"), told("12.25s"))
    assert not same_text(told("0.5s"), told("0.5s", "others")) and not same_text(told("0.5s"), "short")
    assert EDGE < 100


def test_an_exit_code_is_read_from_the_end() -> None:
    assert read_ending("a\n[exit code 3]") == "3" and read_ending("x\n[exit code 137: out of memory]") == "137"
    assert (
        read_ending("[stopped after 60 s: over the time limit]") == "timeout"
        and read_ending("m.py lines 1-2 of 2:\n[exit code 3]\nx") == ""
    )


# --- in real machines ------------------------------------------------------------------------------------------

SCRIPT = [
    "date; date +%s.%N; ls -la; time true",
    "python -c 'print(object(), hex(id(object())))'; python -c 'import tempfile; print(tempfile.mkdtemp())'; mktemp",
    "python -m pytest -q 2>&1 | tail -n 3; sleep 1 & jobs -l > /dev/null; exit 3",
    "seq 100000",
    "python - <<'E'\nimport pathlib\npathlib.Path('new.txt').write_text('x')\nE",
    "exec 2>&1; no-such-command; cat missing",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An episode of a script that prints all sorts of things, recorded in bubblewrap; the suite lies beside the run."""
    folder = tmp_path_factory.mktemp("recorded")
    toy_suite(folder / "suite")
    calls = [{"name": "bash", "arguments": {"command": command}} for command in SCRIPT]
    calls.append({"name": "edit", "arguments": {"path": "calc.py", "old": "", "new": "no"}})
    (folder / "script.json").write_text(json.dumps({"*": calls}))
    words = ("--policy", f"script:{folder}/script.json", "--out", folder / "run", "--limit", 1, "--sandbox", "bubblewrap", "--audit", 0)
    done = greengrad("eval", folder / "suite", *words)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def greengrad(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
    return subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=300, cwd=REPOSITORY)


@pytest.mark.bubblewrap
def test_a_recorded_run_replays_exactly(run: Path) -> None:
    done = greengrad("replay", run, "--all")
    assert (done.returncode, done.stdout) == (0, "1 of 1 episodes replay exactly\n"), done.stderr
    assert greengrad("audit", run).returncode == 0


def record_changed(run: Path, out: Path, turn: int, **fields: object) -> None:
    """The first episode with one turn recorded otherwise (-1: the episode itself)."""
    with Journal(run, readonly=True) as journal:
        episode = next(journal.episodes())
    turns = list(episode.turns)
    if turn >= 0:
        turns[turn] = replace(turns[turn], **fields)  # type: ignore[arg-type]
        episode = replace(episode, turns=tuple(turns))
    else:
        episode = replace(episode, **fields)  # type: ignore[arg-type]
    with Journal(out) as journal:
        journal.record_episode(episode, 0)


async def replay_changed(run: Path, out: Path, turn: int, **fields: object) -> Replayed:
    record_changed(run, out, turn, **fields)
    config = load_config(run / "config.yaml", [], Config)
    with Journal(out, readonly=True) as journal:
        names = [row.episode_id for row in journal.rows()]
    (found,) = await replay_run(config, out, names)
    return found


@pytest.mark.bubblewrap
@pytest.mark.parametrize(
    ("turn", "fields", "told"),
    [
        (2, {"observation": "2 passed\n[exit code 0]"}, "turn 3: exit code: recorded '0', now '3'"),
        (3, {"observation": "1\n2\n[exit code 0]"}, "turn 4: observation"),
        (4, {"tree": "f" * 64}, "turn 5: tree"),
        (-1, {"patch": "diff --git a/x b/x\n"}, "patch: recorded 'diff --git a/x b/x"),
    ],
)
async def test_the_first_difference_is_told(run: Path, tmp_path: Path, turn: int, fields: dict[str, object], told: str) -> None:
    found = await replay_changed(run, tmp_path, turn, **fields)
    assert found.error == "" and str(found.divergence).startswith(told)


@pytest.mark.bubblewrap
async def test_another_verdict_is_told(run: Path, tmp_path: Path) -> None:
    with Journal(run, readonly=True) as journal:
        verdict = next(journal.episodes()).verdict
    assert verdict is not None and verdict.tests
    name = next(iter(verdict.tests))
    found = await replay_changed(run, tmp_path, -1, verdict=replace(verdict, tests=verdict.tests | {name: "ERROR"}))
    assert str(found.divergence).startswith("verdict: recorded") and "'ERROR'" in str(found.divergence)


@pytest.mark.bubblewrap
async def test_another_policy_goes_on_from_a_turn_and_the_record_of_the_first_is_its_prefix(run: Path, tmp_path: Path) -> None:
    name, out = "greengrad__toy-add", tmp_path / "out"
    done = greengrad("replay", run, name, "--from-turn", 6, "--policy", "gold", "--out", out, "--rollout.max_turns", 20)
    assert done.returncode == 0, done.stderr
    with Journal(run, readonly=True) as journal, Journal(out, readonly=True) as forked:
        first, second = journal.episode(name), forked.episode(f"{name}@6")
    assert second.prefix == first.turns[:5] and second.reward == 1.0
    assert [turn.call and turn.call.name for turn in second.turns] == ["view", "edit", "bash", "submit"]
    assert "new.txt" in second.patch  # what the prefix did is there
    assert list(second.turns[0].prompt) == list(first.turns[5].prompt)
    told = greengrad("show", out, second.episode_id).stdout
    assert "turn 5: " in told and told.count("recorded before") == 5 and "turn 9: " in told
    assert export_run(out, "openai", tmp_path / "chats").written == 1
    messages = json.loads((tmp_path / "chats" / "episodes.jsonl").read_text())["messages"]
    assert sum(message["role"] == "assistant" for message in messages) == 9
    (again,) = await replay_run(load_config(out / "config.yaml", [], Config), out, [second.episode_id])
    assert again.divergence is None and again.error == ""


@pytest.mark.bubblewrap
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "name one EPISODE, or give --all"),
        (("nobody",), "no episode nobody"),
        (("--all", "--policy", "gold"), "--policy and --out are read only with --from-turn"),
        (("greengrad__toy-add", "--from-turn", "2"), "--from-turn needs one EPISODE and --out DIR"),
        (("greengrad__toy-add", "--from-turn", "99", "--out", "{out}"), "has turns 1 to 8: it cannot go on from turn 99"),
        (("--all", "--tasks.suite", "nowhere"), "nowhere"),
    ],
)
def test_wrong_use_is_one_line(run: Path, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    done = greengrad("replay", run, *(word.replace("{out}", str(tmp_path / "out")) for word in words))
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_configuration_is_that_of_the_run_or_of_the_run_around_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("tasks: {suite: s}\nrollout: {max_turns: 77}\n")
    (tmp_path / "inner" / "deeper").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "inner"):
        words = parse(["replay", str(folder), "--all", "-j", "3", "--policy", "noop"])
        config = recorded_config(words)
        assert (config.rollout.max_turns, config.sandbox.concurrency, config.rollout.policy) == (77, 3, "noop")
    with pytest.raises(FileNotFoundError, match=r"is .*deeper a run folder"):
        recorded_config(parse(["replay", str(tmp_path / "inner" / "deeper"), "--all"]))
