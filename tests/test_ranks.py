"""The crew of processes, on ranks that do trivial work: answers, deaths, hangs, and an owner that dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.ranks import RankError, Ranks


def answer_with_rank(seat, setup):
    """A rank that doubles numbers; "die" raises, "hang" sleeps."""
    while True:
        try:
            command = seat.pipe.recv()
        except EOFError:
            return
        if command == "die" and seat.rank == 1:
            raise RuntimeError("the disk is made of cheese")
        if command in ("hang", "die"):
            time.sleep(60)
        seat.pipe.send((seat.rank, setup, command * 2))


@pytest.fixture
def crew(tmp_path):
    ranks = Ranks(answer_with_rank, "setup", 2, tmp_path / "logs")
    yield ranks
    ranks.kill()


def test_each_rank_gets_its_own_command_and_answers_come_in_order(crew):
    assert crew.call([1, 2], 60) == [(0, "setup", 2), (1, "setup", 4)]
    assert crew.call([3, 4], 60) == [(0, "setup", 6), (1, "setup", 8)]


def test_a_rank_that_raises_takes_the_crew_with_it_and_its_traceback_is_in_the_error(crew):
    with pytest.raises(RankError, match=r"(?s)rank 1 of 2 died: exit code 1.*Traceback.*the disk is made of cheese"):
        crew.call(["die", "die"], 60)
    assert not any(process.is_alive() for process in crew._processes)


def test_a_killed_rank_is_named_with_its_signal_even_when_nothing_was_asked(crew):
    crew.call([1, 1], 60)
    os.kill(crew._processes[0].pid, signal.SIGKILL)
    with pytest.raises(RankError, match="rank 0 of 2 died: killed by SIGKILL"):
        crew.call([1, 1], 60)


def test_no_answer_in_time_is_an_error_that_says_who_and_what(crew):
    crew.call([1, 1], 60)
    with pytest.raises(RankError, match=r"no answer to str within 1 s from ranks \[0, 1\]"):
        crew.call(["hang", "hang"], 1)


def test_close_lets_idle_ranks_end_and_may_be_called_twice(crew):
    crew.call([1, 1], 60)
    crew.close()
    crew.close()
    assert [process.exitcode for process in crew._processes] == [0, 0]


OWNER = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_ranks import answer_with_rank
from pipeline.ranks import Ranks
if __name__ == "__main__":
    crew = Ranks(answer_with_rank, None, 2, Path({logs!r}))
    crew.call([1, 1], 60)
    print(*[process.pid for process in crew._processes], flush=True)
    crew.call(["hang", "hang"], 60)
"""


def test_ranks_do_not_outlive_a_killed_owner(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER.format(here=str(Path(__file__).parent), logs=str(tmp_path / "logs")))
    owner = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    owner.kill()
    owner.wait(30)
    deadline = time.monotonic() + 30
    while any(running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(running(pid) for pid in pids)


def running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
