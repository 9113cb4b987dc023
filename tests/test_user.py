"""Interactive tasks: what the agent is not told, who can be asked, and what becomes of an episode whose user drifts."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.action import ASK_USER, FormatError, parse, render
from pipeline.alarms import look
from pipeline.batch import build_batch
from pipeline.brief import make_brief, split_statement
from pipeline.codec import decode_episode, decode_turns, encode_episode, encode_turn
from pipeline.config import Config, CreditConfig, RolloutConfig, UserConfig
from pipeline.config_reward import JudgeConfig
from pipeline.drift import CLOSING, NO_ANSWER, Answer, find_faults, name_wanted, read_answer
from pipeline.expert import ScriptedPolicy
from pipeline.export import export_run
from pipeline.fake import MemoryMachines, SoftmaxLearner, SoftmaxPolicy
from pipeline.goal import PATHS, Component, Event, Fault, Goal, Heard, Kind, State, States, advance
from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate, Chat
from pipeline.reward import score
from pipeline.rollout import Rig, Slot, run_episode
from pipeline.stages.rft import choose_demonstrations, rft_samples
from pipeline.tables import print_episode
from pipeline.tools import clip
from pipeline.train import World, train
from pipeline.types import Episode, Group, Scored, Stop, ToolCall
from pipeline.user import Cue, ScriptedSpeaker, Speaker, User, open_user
from sandbox import FakeSandbox
from tasks import Task, load_suite, toy_suite
from tests.test_chat_policy import answer, serving
from tests.test_replay import greengrad
from tests.test_resume import Killed
from tests.toy_loop import CHAT, RIGHT, SUBMIT, grade_text, make_config, make_task, make_world, read_patch

STATEMENT = "`add` is wrong. add(2, 3) should be 5. An empty call gives 0. Ideally it is fast."
TASK = replace(
    make_task(0), problem_statement=STATEMENT, gold_patch="--- a/calc.py\n+++ b/calc.py\n@@ -1 +1 @@\n-a - b\n+    return a + b\n"
)
ROWS = Path(__file__).parent / "data" / "verified_slice.parquet"
ALL = UserConfig(withhold=1.0)
SLOT = Slot("e", "g")


def asking(question: str) -> str:
    return render(ToolCall(ASK_USER, {"question": question}))


# --- the goal ------------------------------------------------------------------------------------------------

COMPONENTS = st.lists(st.builds(Component, st.sampled_from(Kind), st.just("x")), max_size=8).map(tuple)
EVENTS = st.lists(
    st.builds(
        Event,
        st.frozensets(st.integers(0, 9)),
        st.frozensets(st.integers(0, 9)),
        st.lists(st.sampled_from(Fault), unique=True).map(tuple),
    ),
    max_size=8,
)


@given(components=COMPONENTS, events=EVENTS)
def test_states_only_move_forward_and_what_is_misaligned_stays(components: tuple[Component, ...], events: list[Event]) -> None:
    goal = Goal(components)
    states = goal.begin()
    for event in events:
        after = advance(goal, states, event)
        for one, before, now in zip(components, states, after, strict=True):
            path = PATHS[one.kind]
            assert path.index(now) >= path.index(before), "a state went back"
            if one.kind in (Kind.PROFILE, Kind.POLICY) and before is State.MISALIGNED:
                assert now is State.MISALIGNED
        assert advance(goal, after, event) == after, "the same event twice changes nothing more"
        states = after


@given(components=COMPONENTS, faults=st.lists(st.sampled_from(Fault), unique=True))
def test_a_fault_spoils_profile_or_policy_and_nothing_else_does(components: tuple[Component, ...], faults: list[Fault]) -> None:
    goal = Goal(components)
    states = advance(goal, goal.begin(), Event(faults=tuple(faults)))
    spoilt = {kind for kind, state in zip((one.kind for one in components), states, strict=True) if state is State.MISALIGNED}
    there = {one.kind for one in components}
    wanted = {Kind.PROFILE} if Fault.REVEALS in faults else set()
    wanted |= {Kind.POLICY} if set(faults) - {Fault.REVEALS} else set()
    assert spoilt - {Kind.PREFERENCE} == wanted & there
    assert Heard((), tuple(zip((one.kind for one in components), states, strict=True))).drifted == bool(wanted & there)


def test_a_goal_by_hand() -> None:
    goal = make_brief("t", STATEMENT, 1.0, 0).goal
    assert [one.kind.value for one in goal.components] == ["profile", "policy", "objective", "requirement", "requirement", "preference"]
    assert [state.value for state in goal.begin()] == ["aligned", "aligned", "incomplete", "incomplete", "incomplete", "misaligned"]
    first = advance(goal, goal.begin(), Event(frozenset({3}), frozenset({4})))
    assert [state.value for state in first] == ["aligned", "aligned", "attempted", "complete", "attempted", "misaligned"]
    second = advance(goal, first, Event(frozenset({4, 5}), faults=(Fault.REVEALS,)))
    assert [state.value for state in second] == ["misaligned", "aligned", "complete", "complete", "complete", "aligned"]


# --- the statement -------------------------------------------------------------------------------------------

MARKDOWN = """# Sorting is wrong

`sort` drops the last item. It must keep all of them, e.g. Three of three. Ideally it would
be stable too.

- Call `sort([3, 1])`
  and look.
1. An empty list gives an empty list.

It fails like this:

    >>> sort([1])
    []

```python
x = 1

y = 2
```
Nothing else may change.
"""


def test_a_statement_falls_into_sentences_items_and_code() -> None:
    units = [MARKDOWN[unit.start : unit.end] for unit in split_statement(MARKDOWN)]
    assert units == [
        "# Sorting is wrong",
        "`sort` drops the last item.",
        "It must keep all of them, e.g. Three of three.",
        "Ideally it would\nbe stable too.",
        "- Call `sort([3, 1])`\n  and look.",
        "1. An empty list gives an empty list.",
        "It fails like this:\n\n    >>> sort([1])\n    []\n\n```python\nx = 1\n\ny = 2\n```",
        "Nothing else may change.",
    ]


def test_what_the_user_holds_is_not_in_the_statement_any_more() -> None:
    brief = make_brief("t", MARKDOWN, 1.0, 0)
    assert brief.statement == "# Sorting is wrong\n\n`sort` drops the last item."
    assert [one.text for one in brief.goal.components[3:]] == [
        "It must keep all of them, e.g. Three of three.",
        "Ideally it would\nbe stable too.",
        "Call `sort([3, 1])`\n  and look.",
        "An empty list gives an empty list.",
        "It fails like this:\n\n    >>> sort([1])\n    []\n\n```python\nx = 1\n\ny = 2\n```",
        "Nothing else may change.",
    ]


def test_the_title_of_an_issue_is_its_first_sentence() -> None:
    brief = make_brief("t", "Require a name for Blueprints\nThings do not work (e.g. #4944).\r\nIt would be good to raise.\n", 1.0, 0)
    assert brief.statement == "Require a name for Blueprints"
    assert [one.text for one in brief.goal.components[3:]] == ["Things do not work (e.g. #4944).", "It would be good to raise."]
    wrapped = make_brief("t", "It fails where the name\nis empty. It should not.", 1.0, 0)
    assert wrapped.statement == "It fails where the name\nis empty."


def test_one_sentence_is_cut_at_its_colon_and_the_first_part_stays() -> None:
    brief = make_brief("t", "`add` in `calc.py` is wrong: add(2, 3) should be 5, but it is -1.", 0.1, 0)
    assert brief.statement == "`add` in `calc.py` is wrong."
    assert [one.text for one in brief.goal.components[3:]] == ["add(2, 3) should be 5, but it is -1."]


@pytest.mark.parametrize("text", ["", "  \n", "It is wrong.", "```\ncode\n```", "# Title", "- one", "    code", "```\nnever closed"])
def test_a_statement_that_cannot_be_cut_stays_as_it_is(text: str) -> None:
    brief = make_brief("t", text, 1.0, 0)
    assert brief.statement == text and len(brief.goal.components) == 3


@given(text=st.one_of(st.text(), st.text("ab. \n:;-#`*1 \t")), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_any_statement_gives_the_same_brief_each_time_and_loses_nothing(text: str, share: float, seed: int) -> None:
    brief = make_brief("t", text, share, seed)
    assert brief == make_brief("t", text, share, seed)
    held = "".join(one.text for one in brief.goal.components[3:])
    lost = sorted(set("ab") & set(text) - set(brief.statement) - set(held))
    assert not lost and (share or brief.statement == text)


def test_share_seed_and_id_choose_what_is_held() -> None:
    text = "It fails. " + " ".join(f"Number {number} counts." for number in range(8))
    held = {key: make_brief(key[0], text, 0.5, key[1]).goal for key in [("a", 0), ("a", 1), ("b", 0)]}
    assert len(set(held.values())) == 3 and all(len(goal.components) == 3 + 4 for goal in held.values())
    assert make_brief("a", text, 0.0, 0).statement == text


# --- prompts and parser --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["fenced", "tool_json"])
def test_without_a_user_prompts_and_parser_are_as_they_were(form: str) -> None:
    plain, silent = Chat(ByteTemplate(), form), Chat(ByteTemplate(), form, user=UserConfig(ask=False, withhold=0.0))  # type: ignore[arg-type]
    assert Config.model_validate({"tasks": {"suite": "s"}}).user is None
    for chat in (plain, silent):
        assert ASK_USER not in chat.system and chat.start_prompt(TASK) == chat.template.start(plain.system, STATEMENT)
        refused = chat.parse(render(ToolCall(ASK_USER, {"question": "why?"}), chat.action_format))
        assert isinstance(refused, FormatError) and ASK_USER not in refused.message.partition("be one of")[2].partition("tools are")[2]


@pytest.mark.parametrize("form", ["fenced", "tool_json"])
def test_with_a_user_the_tool_is_told_and_understood(form: str) -> None:
    chat = Chat(ByteTemplate(), form, user=ALL)  # type: ignore[arg-type]
    assert ASK_USER in chat.system and chat.start_prompt(TASK) == chat.template.start(chat.system, "`add` is wrong.")
    call = ToolCall(ASK_USER, {"question": "What of\n\nan ```empty``` call?"})
    assert chat.parse(f"I ask.\n{render(call, chat.action_format)}") == call
    assert chat.parse(render(ToolCall("submit", {}), chat.action_format)) == ToolCall("submit", {})
    refused = chat.parse(render(ToolCall("rm", {}), chat.action_format))
    assert isinstance(refused, FormatError) and ASK_USER in refused.message
    empty = parse(f"```{ASK_USER}\n \n```", "fenced", chat.tools)
    assert isinstance(empty, FormatError) and "ask_user block is empty" in empty.message


# --- what an answer is ---------------------------------------------------------------------------------------

GOAL = make_brief("t", STATEMENT, 1.0, 0).goal


def faults_of(text: str, question: str = "What is it?", before: tuple[tuple[str, str], ...] = (), told: int = 0) -> list[str]:
    states = advance(GOAL, GOAL.begin(), Event(frozenset(range(3, 3 + told))))
    return [fault.value for fault in find_faults(Answer(GOAL, states, before, question, text, STATEMENT))]


@pytest.mark.parametrize(
    ("text", "question", "faults"),
    [
        ("add(2, 3) should be 5.", "What is it?", []),
        ("I expect 5 for add(2, 3).", "What is it?", []),
        ("It should be 5, not -1, for add(2, 3).", "Is it -1?", []),
        ("No, it is not 7.", "Is it 7?", []),
        ("No, add(2, 3) should be 5.", "Is it 6?", []),
        (CLOSING, "And?", []),
        ("An empty call gives 0, please.", "What of an empty call?", []),
        ("", "What is it?", ["silent"]),
        (" ... ", "What is it?", ["silent"]),
        (NO_ANSWER, "What is it?", ["silent"]),
        ("It should be 6.", "What is it?", ["invents"]),
        ("Yes, 7.", "Is it 7?", ["invents"]),
        ("Use `reduce_all` for it.", "How?", ["invents"]),
        ("Colourless green ideas sleep furiously.", "What is it?", ["invents"]),
        ("An empty call never gives 0.", "What of an empty call?", ["contradicts"]),
        ("It is not so: add(2, 3) should be 5.", "What is it?", ["contradicts"]),
    ],
)
def test_faults_of_an_answer(text: str, question: str, faults: list[str]) -> None:
    assert faults_of(text, question) == faults


def test_the_same_answer_is_a_fault_where_another_question_was_asked_and_something_is_left_to_tell() -> None:
    before = (("What is it?", "add(2, 3) should be 5."),)
    assert faults_of("Add(2, 3) should be 5", "And what else?", before, told=1) == ["repeats"]
    assert faults_of("add(2, 3) should be 5.", "what is it", before, told=1) == []
    assert faults_of("add(2, 3) should be 5.", "And what else?", before, told=3) == []


async def ask_all(statement: str, chars: int = 1200) -> tuple[Goal, list[tuple[str, ...]], States]:
    """Questions to a scripted user until it says that it is all: the faults of its answers, and the states at the end."""
    goal = make_brief("t", statement, 1.0, 0).goal
    states, dialogue, faults = goal.begin(), list[tuple[str, str]](), list[tuple[str, ...]]()
    for number in range(len(goal.components) - 2):
        question = f"Question {'x' * number}?"
        text = clip(await ScriptedSpeaker().say(Cue(goal, states, dialogue, question, "")), chars)
        event = read_answer(Answer(goal, states, dialogue, question, text, statement))
        states = advance(goal, states, event)
        dialogue.append((question, text))
        faults.append(event.faults)
    assert dialogue[-1][1] == CLOSING, "it comes to an end"
    return goal, faults, states


@pytest.mark.parametrize("task", load_suite(ROWS).tasks, ids=lambda task: task.instance_id)
async def test_a_scripted_user_of_a_real_issue_never_seems_to_drift_and_tells_all(task: Task) -> None:
    """Word for word, or cut in the middle: it is what the goal holds."""
    for chars in (100, 1200):
        goal, faults, states = await ask_all(task.problem_statement, chars)
        assert not any(faults) and not goal.untold(states)


@given(text=st.one_of(st.text(), st.text("ab not. 1_\n:;-#`'*<>! \t")))
def test_neither_does_that_of_any_text(text: str) -> None:
    goal, faults, states = asyncio.run(ask_all(text))
    assert not any(faults) and not goal.untold(states)


@given(questions=st.lists(st.one_of(st.text(), st.text("? !abx"), st.sampled_from(["Is it not 7?", "add(2, 3)?", "empty"])), max_size=9))
def test_whatever_is_asked_a_scripted_user_does_not_drift(questions: list[str]) -> None:
    """So no agent escapes its grade by asking."""
    for statement, chars in ((STATEMENT, 1200), (MARKDOWN, 100)):
        goal = make_brief("t", statement, 1.0, 0).goal
        states, dialogue = goal.begin(), list[tuple[str, str]]()
        for question in questions:
            text = clip(asyncio.run(ScriptedSpeaker().say(Cue(goal, states, dialogue, question, ""))), chars)
            event = read_answer(Answer(goal, states, dialogue, question, text, statement))
            assert event.faults == ()
            states = advance(goal, states, event)
            dialogue.append((question, text))


def test_comments_and_marks_without_a_word_are_not_withheld() -> None:
    text = "It fails.\n<!-- a template's\nword. Another. -->\n\n...\n\nIt should not.\n"
    brief = make_brief("t", text, 1.0, 0)
    assert [one.text for one in brief.goal.components[3:]] == ["It should not."]
    assert brief.statement == "It fails.\n<!-- a template's\nword. Another. -->\n\n..."


def test_an_answer_tells_what_most_of_its_words_are_of() -> None:
    def read(text: str) -> Event:
        return read_answer(Answer(GOAL, GOAL.begin(), (), "What of an empty call?", text, STATEMENT))

    assert read("An empty call gives 0.") == Event(frozenset({4}))
    assert read("Something about an empty one.") == Event(blocked=frozenset({4}))
    assert read("") == Event(blocked=frozenset({4}), faults=(Fault.SILENT,))
    assert read("An empty call gives 8.") == Event(blocked=frozenset({4}), faults=(Fault.INVENTS,)), "a faulty answer tells nothing"


def test_a_question_names_what_it_shares_most_words_with_else_the_next() -> None:
    assert name_wanted(GOAL, GOAL.begin(), "What does an empty call give?") == 4
    assert name_wanted(GOAL, GOAL.begin(), "Hm?") == 3
    told = advance(GOAL, GOAL.begin(), Event(frozenset({3, 4, 5})))
    assert name_wanted(GOAL, told, "What does an empty call give?") is None


# --- one episode ---------------------------------------------------------------------------------------------


def make_rig(user: User | None, settings: UserConfig = ALL, **rollout: object) -> Rig:
    machines = MemoryMachines(lambda: FakeSandbox({"": b"out"}, {"/testbed/calc.py": b"def add(a, b):\n    return a - b\n"}))
    config = RolloutConfig.model_validate({"max_turns": 6, "infra_retries": 0, **rollout})
    return Rig(Chat(ByteTemplate(), user=settings), machines, read_patch, grade_text, config, 20_000, 5, 60, user=user)


async def play(rig: Rig, *texts: str, name: str = "e") -> Episode:
    return await run_episode(ScriptedPolicy(rig.chat, TASK, texts), TASK, rig, Slot(name, "g"))


QUESTIONS = (asking("What does an empty call give?"), asking("What should it be?"), asking("Else?"), asking("Anything?"))


async def test_a_scripted_user_tells_what_is_asked_for_then_the_next_then_that_it_is_all() -> None:
    episode = await play(make_rig(User(ScriptedSpeaker(), ALL)), *QUESTIONS, RIGHT)
    assert [turn.observation for turn in episode.turns[:4]] == [
        "An empty call gives 0.",
        "add(2, 3) should be 5.",
        "Ideally it is fast.",
        CLOSING,
    ]
    heard = [turn.heard for turn in episode.turns]
    assert [one.faults for one in heard[:4] if one] == [()] * 4 and heard[4:] == [None, None]
    assert heard[3] is not None and [state.value for _, state in heard[3].states][2:] == ["complete", "complete", "complete", "aligned"]
    assert not episode.drifted and episode.scored is None and episode.signal == 1.0
    assert "An empty call" in bytes(b for b in episode.turns[1].prompt if b < 256).decode()


async def test_dialogue_and_states_are_kept_with_the_episode_to_the_bit() -> None:
    episode = await play(make_rig(User(ScriptedSpeaker(0.7), ALL)), *QUESTIONS)
    assert decode_episode(encode_episode(episode)) == episode and any(turn.heard and turn.heard.faults for turn in episode.turns)
    bodies = [encode_turn(turn, before) for before, turn in zip((None, *episode.turns), episode.turns, strict=False)]
    assert decode_turns(bodies) == episode.turns


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
async def test_a_scripted_user_is_the_same_each_time_and_drifts_at_its_rate(rate: float) -> None:
    user = User(ScriptedSpeaker(rate), UserConfig(withhold=1.0, drift=rate))
    rig = make_rig(user)
    first, again = [[await play(rig, *QUESTIONS[:1], name=str(number)) for number in range(60)] for _ in range(2)]
    assert [one.turns[0].observation for one in first] == [one.turns[0].observation for one in again]
    drifted = sum(one.drifted for one in first)
    assert abs(drifted - 60 * rate) <= 4 * (60 * rate * (1 - rate)) ** 0.5, "what it says on purpose is what the rules find"
    other = replace(user, settings=UserConfig(withhold=1.0, drift=rate, seed=1))
    third = [await play(replace(rig, user=other), *QUESTIONS[:1], name=str(number)) for number in range(60)]
    assert ([one.drifted for one in third] != [one.drifted for one in first]) == (rate == 0.5)


class CountingSpeaker:
    """Passes on what another says, and counts."""

    def __init__(self, then: Speaker) -> None:
        self.asked, self._then = 0, then

    async def say(self, cue: Cue) -> str:
        self.asked += 1
        return await self._then.say(cue)


class DyingPolicy(ScriptedPolicy):
    """Is asked `left` times; then the process dies."""

    left = 2

    async def sample(self, prompt, max_tokens, seed):  # type: ignore[no-untyped-def]
        if not self.left:
            raise Killed
        self.left -= 1
        return await super().sample(prompt, max_tokens, seed)


async def test_an_interrupted_dialogue_goes_on_and_nobody_is_asked_twice(tmp_path: Path) -> None:
    speaker = CountingSpeaker(ScriptedSpeaker())
    whole = await play(make_rig(User(ScriptedSpeaker(), ALL)), *QUESTIONS[:3], RIGHT)
    with Journal(tmp_path) as journal:
        rig = replace(make_rig(User(speaker, ALL)), diary=journal)
        with pytest.raises(Killed):
            await run_episode(DyingPolicy(rig.chat, TASK, [*QUESTIONS[:3], RIGHT]), TASK, rig, SLOT)
        assert speaker.asked == 2 == len(journal.turns("e"))
        episode = await play(rig, *QUESTIONS[:3], RIGHT)
    assert speaker.asked == 3, "what was answered before the kill is on record"
    told = [[(turn.prompt, turn.observation, turn.heard and turn.heard.states) for turn in one.turns] for one in (episode, whole)]
    assert told[0] == told[1] and episode.reward == 1.0


# --- a model -------------------------------------------------------------------------------------------------


def modelled(url: str, **keys: object) -> UserConfig:
    server = JudgeConfig.model_validate({"url": url, "attempts": 1, "request_seconds": 5.0, **keys})
    return UserConfig(kind="model", withhold=1.0, server=server)


async def play_model(settings: UserConfig, *texts: str) -> Episode:
    async with open_user(settings) as user:
        return await play(make_rig(user, settings), *texts)


async def test_a_model_is_steered_by_history_and_state_at_temperature_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER_KEY", "secret")
    said = iter(["An empty call gives 0.", "It should be 5, for add(2, 3)."])
    with serving(lambda body: answer(next(said))) as (url, asked):
        episode = await play_model(modelled(url, model="u", key_env="USER_KEY"), *QUESTIONS[:2], RIGHT)
    assert [turn.observation for turn in episode.turns[:2]] == ["An empty call gives 0.", "It should be 5, for add(2, 3)."]
    assert not episode.drifted and episode.signal == 1.0
    first, second = (one["messages"][1]["content"] for one in asked)
    assert all(one["temperature"] == 0 and one["model"] == "u" and one["key"] == "Bearer secret" for one in asked)
    assert "[not told yet] An empty call gives 0." in first and "(none)" in first and "The programmer asks: What does an empty" in first
    assert "[told] An empty call gives 0." in second and "[not told yet] add(2, 3) should be 5." in second
    assert "- What does an empty call give?\n  An empty call gives 0." in second


Reply = tuple[int, dict[str, str], object]


def slow(body: dict) -> Reply:
    time.sleep(1.0)
    return answer()


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (slow, Fault.SILENT),
        (lambda body: (500, {}, {}), Fault.SILENT),
        (lambda body: answer(""), Fault.SILENT),
        (lambda body: (200, {}, b"not json"), Fault.SILENT),
        (lambda body: answer(message={"role": "assistant", "content": [{"type": "image"}]}), Fault.SILENT),
        (lambda body: (400, {}, {"error": "maximum context length"}), Fault.SILENT),
        (lambda body: answer("Colourless green ideas sleep furiously."), Fault.INVENTS),
        (lambda body: answer("An empty call gives 0."), Fault.REPEATS),
        (lambda body: answer("It must `return a + b`."), Fault.REVEALS),
    ],
)
async def test_a_bad_user_is_counted_and_logged_and_no_one_trains_on_the_episode(
    reply: Callable[[dict], Reply], fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(reply) as (url, _):
        episode = await play_model(modelled(url, request_seconds=0.4), *QUESTIONS[:2], RIGHT)
    assert fault in {one for turn in episode.turns if turn.heard for one in turn.heard.faults}
    assert episode.stop is Stop.SUBMITTED and episode.reward == 1.0, "it goes on, and is graded"
    assert episode.drifted and episode.signal is None and episode.scored is not None and fault.value in episode.scored.why
    assert "the user" in caplog.text and "e: " in caplog.text
    if fault is Fault.SILENT:
        assert episode.turns[0].observation == NO_ANSWER or not any(map(str.isalnum, episode.turns[0].observation))


async def test_the_longest_wait_for_an_answer_is_that_of_all_attempts(tmp_path: Path) -> None:
    asked: list[float] = []
    for attempts, count in ((1, 1), (2, 2)):
        with serving(lambda body: (500, {}, {})) as (url, told):
            settings = modelled(url, attempts=attempts, request_seconds=2.0)
            asked.append(settings.longest_wait)
            episode = await play_model(settings, QUESTIONS[0], RIGHT)
        assert len(told) == count and episode.drifted
    assert asked == [2.0, 4.0] and UserConfig().longest_wait == 0.0


async def test_the_time_that_a_user_thinks_is_not_the_agent_s() -> None:
    class Slow:
        async def say(self, cue: Cue) -> str:
            await asyncio.sleep(0.4)
            return CLOSING

    rig = replace(make_rig(User(Slow(), ALL)), episode_seconds=0.6)
    episode = await play(rig, *QUESTIONS[:3], RIGHT)
    assert episode.stop is Stop.SUBMITTED and episode.seconds > 1.2 and all(turn.seconds_tool < 0.4 for turn in episode.turns)


# --- training ------------------------------------------------------------------------------------------------


async def test_a_drifted_dialogue_leaves_the_batch_and_is_counted_apart_from_the_unjudged() -> None:
    members = [await play(make_rig(User(ScriptedSpeaker(rate), ALL)), QUESTIONS[0], RIGHT, name=str(rate)) for rate in (0.0, 1.0)]
    assert [one.drifted for one in members] == [False, True]
    lost = await play(make_rig(User(ScriptedSpeaker(), ALL)), QUESTIONS[0], name="lost")
    unjudged = replace(lost, episode_id="unjudged", scored=Scored(None, "no answer"))
    batch = build_batch([Group("g", TASK.instance_id, 0, (*members, lost, unjudged))], CreditConfig(length_threshold=10), 8)
    assert (batch.metrics["batch/drifted_episodes"], batch.metrics["batch/unjudged_episodes"]) == (1, 1)
    assert batch.fates == {"0.0": "trained", "1.0": "drifted", "lost": "trained", "unjudged": "unjudged"}
    assert batch.metrics["reward/resolved"] == 0.5, "the truth is of all"
    assert batch.metrics["batch/graded_episodes"] == 2


async def test_a_drifted_dialogue_is_no_demonstration() -> None:
    members = [await play(make_rig(User(ScriptedSpeaker(rate), ALL)), QUESTIONS[0], RIGHT, name=str(rate)) for rate in (0.0, 1.0)]
    assert [one.reward for one in members] == [1.0, 1.0]
    assert {sample.episode_id for sample in rft_samples(members)} == {"0.0"} == {one.episode_id for one in choose_demonstrations(members)}


async def test_the_reward_channel_is_not_asked_about_a_drifted_dialogue() -> None:
    episode = await play(make_rig(User(ScriptedSpeaker(1.0), ALL)), QUESTIONS[0], RIGHT)

    async def fail(task: Task, one: Episode) -> Scored:
        raise AssertionError("asked")

    assert await score(fail, TASK, episode) is episode
    kept = User(ScriptedSpeaker(1.0), UserConfig(withhold=1.0, drift=1.0, keep_drifted=True))
    episode = await play(make_rig(kept), QUESTIONS[0], RIGHT)
    assert episode.drifted and episode.scored is None and episode.signal == 1.0


def interactive_world(drift: float, **keys: bool) -> World:
    settings = UserConfig.model_validate({"withhold": 1.0, "drift": drift, **keys})
    chat, texts = Chat(ByteTemplate(), user=settings), (RIGHT, QUESTIONS[0], SUBMIT)
    world = make_world()
    rig = replace(world.rig, chat=chat, user=User(ScriptedSpeaker(drift), settings))
    tasks = [replace(task, problem_statement=STATEMENT) for task in world.tasks]
    return replace(world, policy=SoftmaxPolicy(chat, texts), learner=SoftmaxLearner(chat, texts), rig=rig, tasks=tasks)


@pytest.mark.parametrize(("drift", "keep"), [(0.0, False), (1.0, False), (1.0, True)])
async def test_the_loop_trains_on_dialogues_but_not_on_drifted_ones(tmp_path: Path, drift: float, keep: bool) -> None:
    with Journal(tmp_path) as journal:
        await train(make_config(3), journal, interactive_world(drift, **({"keep_drifted": True} if keep else {})))
        fates = {name: fate for name, (_, fate) in journal.ledger().fates.items()}
        asked = {one.episode_id for one in journal.episodes() if any(turn.heard for turn in one.turns)}
        steps = journal.steps().values()
    assert asked and set(fates) - asked
    assert {name for name, fate in fates.items() if fate == "drifted"} == (asked if drift and not keep else set())
    assert ("trained" in {fates[name] for name in asked}) == (not drift or keep)
    assert sum(metrics["batch/drifted_episodes"] for metrics in steps) == (len(asked) if drift and not keep else 0)
    assert sum(metrics["user/questions"] * 16 for metrics in steps) >= len(asked)


@pytest.mark.parametrize(("drifted", "alarm"), [(8.0, True), (4.0, True), (1.0, False), (0.0, False)])
def test_many_drifted_dialogues_raise_an_alarm(drifted: float, alarm: bool) -> None:
    steps = [{"batch/drifted_episodes": drifted, "batch/graded_episodes": 8.0 - drifted}] * 3
    assert ("drift" in look(steps)) == alarm and "drift" not in look(steps[:2])
    assert "drift" not in look([{"batch/graded_episodes": 8.0}] * 3)


async def test_without_a_user_an_episode_and_its_record_are_as_they_were() -> None:
    rig = replace(make_rig(None), chat=CHAT)
    episode = await run_episode(ScriptedPolicy(CHAT, TASK, [RIGHT]), TASK, rig, SLOT)
    assert all(turn.heard is None for turn in episode.turns) and episode.scored is None
    assert b"heard" not in __import__("zlib").decompress(encode_episode(episode))


# --- the configuration, and the real thing -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"kind": "model"}, "user.kind model needs a server: set user.server.url"),
        ({"server": {"url": "http://x"}}, "reads no user.server: set user.kind: model"),
        ({"kind": "model", "server": {"url": "http://x"}, "drift": 0.5}, "user.drift = 0.5 is not read with user.kind model"),
        ({"ask": False, "drift": 0.5}, "user.drift = 0.5 is not read with user.ask: false"),
        ({"withhold": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_key_that_is_not_read_is_an_error(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UserConfig.model_validate(keys)


def test_nobody_looks_for_drift_in_continuations() -> None:
    keys = {"tasks": {"suite": "s"}, "user": {}, "rollout": {"continuations": 2}, "credit": {"kind": "vine"}}
    with pytest.raises(ValueError, match="nobody looks for drift in"):
        Config.model_validate(keys)


async def test_without_ask_the_statement_is_short_and_nobody_is_there() -> None:
    async with open_user(UserConfig(ask=False)) as user:
        assert user is None
    chat = Chat(ByteTemplate(), user=UserConfig(ask=False, withhold=1.0))
    assert chat.start_prompt(TASK) == chat.template.start(CHAT.system, "`add` is wrong.")


@pytest.mark.bubblewrap
def test_an_interactive_episode_in_a_real_machine_is_recorded_shown_and_replayed(tmp_path: Path) -> None:
    toy_suite(tmp_path / "suite")
    calls = [
        {"name": "ask_user", "arguments": {"question": "What should add(2, 3) be?"}},
        {"name": "view", "arguments": {"path": "calc.py"}},
        {"name": "edit", "arguments": {"path": "calc.py", "old": "a - b", "new": "a + b"}},
    ]
    (tmp_path / "script.json").write_text(json.dumps({"*": calls}))
    keys = {
        "tasks": {"suite": str(tmp_path / "suite"), "limit": 1, "audit": 0},
        "sandbox": {"backend": "bubblewrap", "memory_mb": 256},
        "rollout": {"policy": f"script:{tmp_path / 'script.json'}", "group_size": 1},
        "user": {"withhold": 1.0},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(keys))
    done = greengrad("rollout", tmp_path / "c.yaml", "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    with Journal(tmp_path / "run", readonly=True) as journal:
        (episode,) = journal.episodes()
    assert episode.reward == 1.0 and episode.turns[0].observation == "add(2, 3) should be 5, but it is -1."
    start = bytes(value for value in episode.turns[0].prompt if value < 256).decode()
    assert "`add` in `calc.py` is wrong." in start and "should be 5" not in start
    told = greengrad("show", tmp_path / "run", episode.episode_id)
    assert "requirement complete" in told.stdout and "localised turn 2" in told.stdout, told.stderr
    assert export_run(tmp_path / "run", "openai", tmp_path / "chats").written == 1
    row = json.loads((tmp_path / "chats" / "episodes.jsonl").read_text())
    assert (
        "ask_user" in [tool["function"]["name"] for tool in row["tools"]]
        and row["messages"][1]["content"] == "`add` in `calc.py` is wrong."
    )
    replayed = greengrad("replay", tmp_path / "run", "--all")
    assert (replayed.returncode, replayed.stdout) == (0, "1 of 1 episodes replay exactly\n"), replayed.stderr
    refused = greengrad("rollout", tmp_path / "c.yaml", "--run", tmp_path / "no", "--user.ask", "false")
    assert refused.returncode == 2 and "Unknown tool 'ask_user'" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1


async def test_an_episode_is_shown_with_its_user(capsys: pytest.CaptureFixture[str]) -> None:
    print_episode(await play(make_rig(User(ScriptedSpeaker(1.0), ALL)), QUESTIONS[0], RIGHT))
    told = capsys.readouterr().out
    assert "policy misaligned" in told and "the user drifted: " in told and "edited turn 2" in told
