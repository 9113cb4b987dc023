"""Texts that were made to hold the rules up: what an agent, a user, a judge or a task's author writes is read in time that grows with it.

Without that each of these takes minutes to days, in which nothing else of the run goes on; the limit tells a hang and measures nothing.
"""

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from pipeline.action import parse, prose, prose_spans
from pipeline.alignment import reward_answer
from pipeline.brief import make_brief
from pipeline.drift import Answer
from pipeline.foreign import Said, actions_of, has_functions
from pipeline.goal import Component, Goal, Kind
from pipeline.grams import grams_of
from pipeline.hints import find_failure, find_fault
from pipeline.imports import _UPLOADED
from pipeline.jury import read_vote
from pipeline.planning import Plan, find_grams, load_grams, measure_plans
from pipeline.probe import read_share
from pipeline.reward import read_score
from pipeline.types import Completion, ToolCall, Turn

SIZE = 200_000
LIMIT = 60
"""Seconds."""
GOAL = Goal(
    (
        Component(Kind.PROFILE, "p"),
        Component(Kind.POLICY, "q"),
        Component(Kind.OBJECTIVE, "It breaks."),
        Component(Kind.REQUIREMENT, "The limit must not be 5 lines."),
    )
)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """TimeoutError in the test that hangs."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fill(part: str) -> str:
    return part * (SIZE // len(part))


def ran(output: str) -> Turn:
    return Turn((), Completion((), (), "", 0, True), ToolCall("bash", {"command": "x"}), f"{output}\n[exit code 2]")


def answer(text: str) -> float:
    return reward_answer(Answer(GOAL, GOAL.begin(), (("what?", "x"),), "What is the limit?", text, "It breaks."))


def follow(text: str) -> object:
    grams, told = load_grams(None), f"the root cause is {text}"
    return measure_plans([Plan(tuple(find_grams(told, grams)), ())], [told])


@pytest.mark.parametrize("text", [fill("1"), "1 failed\nE" + fill(" ") + "[ 1%]", fill("a."), fill("Traceback (most recent call last):\n")])
def test_an_observation(text: str) -> None:
    for turn in (ran(text), ran(f"Traceback (most recent call last):\n{text}")):
        assert isinstance(find_fault([turn], 0) + find_failure(turn), str)
    read_share(text)


@pytest.mark.parametrize("text", [fill("a"), fill("a."), "It is not" + fill(" ") + "5x", "lines" + fill(" ") + "x", fill("`"), fill("' ")])
def test_an_answer_of_a_user(text: str) -> None:
    assert 0.0 <= answer(text) <= 2.5
    assert 0.0 <= answer(f"The limit of lines is{text}") <= 2.5


@pytest.mark.parametrize("text", ["A." + fill(" ") + "b", "A." + fill("\t\r"), fill("\n"), fill("A. "), fill("<!-- -->"), fill("- x\n")])
def test_a_statement(text: str) -> None:
    assert make_brief("toy", f"It breaks. {text}", 0.5, 0).goal.components


@pytest.mark.parametrize("part", ["a", ".", "=", "[", ",", "`", "`a", "a`b`", "_a", "a "])
def test_reasoning(part: str) -> None:
    grams_of(fill(part))
    follow(fill(part))


@pytest.mark.parametrize("part", ["```\n", "<tool_call>", "<tool_call></tool_call>", "\n", "`"])
def test_an_action(part: str) -> None:
    for text in (fill(part), f"```edit\na\n{fill(part)}\n```", f"<tool_call>{fill(part)}"):
        parse(text)
        parse(text, "tool_json")
        assert prose(text, "tool_json") == "".join(text[start:end] for start, end in prose_spans(text, "tool_json")).strip()
        prose_spans(text)


@pytest.mark.parametrize("part", ["<function=a>", "<parameter=a>", "<uploaded_files>/", "```\n"])
def test_somebody_else_s_trajectory(part: str) -> None:
    said = Said(f"<function=submit>{fill(part)}", (), "")
    assert actions_of(said) == [] and not has_functions(said.text) and not _UPLOADED.search(fill(part))
    assert part == "```\n" or len(said.thought) > SIZE // 2
    assert [call.name for call in actions_of(Said(f"<function=submit>{fill(part)}</function>", (), ""))] == ["submit"]


@pytest.mark.parametrize(
    "text", [fill("SCORE: \n"), "SCORE: " + fill(" "), fill("VOTE:"), "VOTE: " + fill("\n") + "x", "SCORE: " + fill("1")]
)
def test_a_judge_s_reply(text: str) -> None:
    assert read_vote(text) is None
    assert read_score(text).value is None
