"""How far an episode came, by hand and by chance: marks are set once, each by what shows it, and nothing else depends on them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import build_batch
from pipeline.config import CreditConfig
from pipeline.task_state import MARKS, TaskState, conclude, follow, measure_states
from pipeline.telemetry import measure_traces
from pipeline.types import Completion, Episode, Group, Stop, ToolCall, Turn
from tasks import Outcome, Verdict
from tests.toy_loop import make_task

FILES = ("pkg/mod.py",)


def turn(name: str, observation: str = "", tree: str = "", **arguments: str) -> Turn:
    return Turn((1,), Completion((2,), (0.0,), "", 0, True), ToolCall(name, arguments), observation, tree=tree)


def bash(command: str, observation: str = "[exit code 0]", tree: str = "") -> Turn:
    return turn("bash", observation, tree, command=command)


def edit(path: str = "pkg/mod.py", observation: str = "edited pkg/mod.py, line 3") -> Turn:
    return turn("edit", observation, path=path, old="a", new="b")


def episode(*turns: Turn, patch: str = "", name: str = "e", solved: bool = False) -> Episode:
    verdict = Verdict("t", Outcome.RESOLVED if solved else Outcome.UNRESOLVED)
    return Episode(name, "g", "toy-0", tuple(turns), Stop.SUBMITTED, patch, verdict)


FAILING = bash("python -m pytest -q", "1 failed in 0.1s\n[exit code 1]")


def test_a_whole_episode_by_hand() -> None:
    turns = [FAILING, turn("view", "pkg/mod.py lines 1-2:", path="/testbed/pkg/mod.py"), edit(), FAILING, turn("submit", "submitted")]
    assert conclude(episode(*turns, patch="+++ b/pkg/mod.py\n"), FILES) == TaskState(1, 2, 3, 4, 5)
    assert [state.submitted for state in follow(turns, FILES)] == [None] * 4 + [5]
    assert follow(turns, FILES)[0] == TaskState(reproduced=1)


@pytest.mark.parametrize(
    ("turns", "marks"),
    [
        ([bash("python x.py", "ValueError: no\n[exit code 1]")], {"reproduced"}),
        ([bash("python x.py | tail", "Traceback (most recent call last)\n[exit code 0]")], {"reproduced"}),
        ([bash("python x.py", "ok\n[exit code 0]")], set()),
        ([bash("ls nothing", "ls: cannot access\n[exit code 2]")], set()),
        ([bash("python -m pytest", "python: No module named pytest\n[exit code 1]")], set()),
        ([bash("python x.py", "[stopped after 5 s: over the time limit]")], set()),
        ([edit(), bash("python x.py", "ValueError\n[exit code 1]")], {"edited", "localised"}),
        ([edit(), bash("pytest -q", "[exit code 0]")], {"edited", "localised", "tested"}),
        ([edit(), bash("pytest -q", "bash: pytest: command not found\n[exit code 127]")], {"edited", "localised"}),
        ([bash("pytest -q", "3 passed\n[exit code 0]")], set()),
        ([edit(observation="error: the old text occurs 2 times in pkg/mod.py")], set()),
        ([edit("other.py", "created other.py")], {"edited"}),
        ([edit("tests/test_mod.py", "edited tests/test_mod.py, line 1")], {"edited", "tests_edited"}),
        ([edit("/testbed/conftest.py", "created /testbed/conftest.py")], {"edited", "tests_edited"}),
        ([edit("latest.py", "created latest.py")], {"edited"}),
        ([turn("view", "error: no such file: pkg/mod.py", path="pkg/mod.py")], set()),
        ([turn("view", "other.py lines", path="other.py")], set()),
        ([bash("grep -n x pkg/mod.py")], {"localised"}),
        ([bash("cat /testbed/pkg/mod.py")], {"localised"}),
        ([bash("cat other/pkg/mod.py")], set()),
        ([bash("cat pkg/mod.py", "[exit code 1]")], set()),
        ([bash("true", tree="a"), bash("sed -i s/a/b/ x", tree="b")], {"edited"}),
        ([bash("true", tree="a"), bash("true", tree="a")], set()),
        ([bash("sed -i s/a/b/ x", tree="b")], set()),
        ([turn("ask_user", "It fails.", question="What?")], set()),
        ([turn("submit", "submitted")], {"submitted"}),
        ([replace(edit(), call=None)], set()),
        ([], set()),
    ],
)
def test_what_a_trace_shows(turns: list[Turn], marks: set[str]) -> None:
    found = conclude(episode(*turns), FILES)
    assert {name for name in MARKS if getattr(found, name) is not None} == marks


def test_a_patch_shows_what_no_turn_did() -> None:
    turns = [bash("sed -i s/a/b/ tests/test_x.py"), turn("submit", "submitted")]
    assert conclude(episode(*turns, patch="--- a/tests/test_x.py\n+++ b/tests/test_x.py\n")) == TaskState(
        edited=2, submitted=2, tests_edited=2
    )


TURNS = st.lists(
    st.one_of(
        st.just(replace(edit(), call=None)),
        st.sampled_from([edit(), edit("tests/x.py", "created tests/x.py"), FAILING, turn("submit", "submitted")]),
        st.builds(bash, st.sampled_from(["pytest", "python x", "cat pkg/mod.py", "ls"]), st.text(), st.sampled_from(["", "a", "b"])),
        st.builds(lambda path, seen: turn("view", seen, path=path), st.sampled_from(["pkg/mod.py", "", "../x"]), st.text()),
        st.builds(lambda text: turn("ask_user", text, question=text), st.text()),
    ),
    max_size=9,
)


@given(turns=TURNS)
def test_a_mark_that_is_set_stays_and_the_end_of_a_trace_changes_nothing_before(turns: list[Turn]) -> None:
    states = follow(turns, FILES)
    assert states == follow(turns, FILES) and len(states) == len(turns)
    for number, (before, after) in enumerate(zip((TaskState(), *states), states, strict=False), start=1):
        for name in MARKS:
            was, now = getattr(before, name), getattr(after, name)
            assert now == was if was is not None else now in (None, number)
    assert all(follow(turns[:cut], FILES) == states[:cut] for cut in range(len(turns)))


def test_shares_are_of_episodes_with_turns_and_localised_only_where_the_files_are_known() -> None:
    found = measure_states([(episode(edit()), FILES), (episode(FAILING), ()), (episode(), FILES)])
    assert found == {
        "ledger/reproduced": 0.5,
        "ledger/localised": 1.0,
        "ledger/edited": 0.5,
        "ledger/tested": 0.0,
        "ledger/submitted": 0.0,
        "ledger/tests_edited": 0.0,
    }
    assert "ledger/localised" not in measure_states([(episode(edit()), ())]) and measure_states([]) == {}
    infra = replace(episode(edit()), stop=Stop.INFRA)
    assert measure_traces([Group("g", "toy-0", 0, (infra,))], [make_task(0)]) == {}


def test_the_ledger_is_no_reward() -> None:
    """Two groups with the same outcomes and tokens, and all else different, give the same batch."""
    far = [episode(FAILING, edit(), name=str(number), solved=not number) for number in range(3)]
    near = [episode(*[turn("submit", "submitted")] * 2, name=str(number), solved=not number) for number in range(3)]
    batches = [build_batch([Group("g", "t", 0, tuple(group))], CreditConfig(), 8).digest for group in (far, near)]
    assert batches[0] == batches[1]
