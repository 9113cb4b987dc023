"""Training the simulated user: what an answer is worth, prompts from recorded questions, and the loop on fakes."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.action import ASK_USER
from pipeline.alignment import MOST, find_misaligned, reward_answer
from pipeline.brief import make_brief
from pipeline.chat_policy import start_chat
from pipeline.cli import main
from pipeline.codec import decode_episode, encode_episode
from pipeline.config import Config, ModelConfig, RolloutConfig, SimulatorConfig, TasksConfig, UserConfig
from pipeline.config_io import dump_config
from pipeline.convert import tiny_model
from pipeline.drift import CLOSING, NO_ANSWER, Answer, read_answer
from pipeline.expert import ScriptedPolicy
from pipeline.fake import SoftmaxLearner, SoftmaxPolicy
from pipeline.goal import PATHS, Event, Fault, Goal, Kind, State, advance
from pipeline.journal import Journal
from pipeline.prompt import ByteTemplate, Chat, load_chat
from pipeline.rig import Slot, remote_rig
from pipeline.rollout import run_episode
from pipeline.stages.prompts import Prompts
from pipeline.stages.simulator import (
    Question,
    asked_in,
    fit,
    load_questions,
    make_prompt,
    make_questions,
    read_completion,
    recorded_user,
    simulator_config,
    tuning_samples,
)
from pipeline.train import World, train
from pipeline.types import Completion, Episode, PolicyError, Scored, Stop
from pipeline.user import ANSWER_TOKENS, Cue, ModelSpeaker, ScriptedSpeaker, User, judge_answer, make_answer, take_words
from tasks import Task, load_suite, toy_suite
from tests.test_chat_policy import answer as reply
from tests.test_chat_policy import serving
from tests.test_user import ALL, GOAL, MARKDOWN, QUESTIONS, ROWS, STATEMENT, TASK, make_rig, modelled, play
from tests.toy_loop import RIGHT

# ------------------------------------------------------------------------------------------------ the reward


def lost_by(
    text: str, question: str = "What is it?", told: int = 0, before: tuple[tuple[str, str], ...] = (), reveals: bool = False
) -> str:
    """The types that an answer leaves misaligned, of the goal of test_user: two requirements and a preference, the first `told` told."""
    states = advance(GOAL, GOAL.begin(), Event(frozenset(range(3, 3 + told))))
    answer = Answer(GOAL, states, before, question, text, STATEMENT, reveals)
    lost = find_misaligned(answer)
    assert reward_answer(answer) == 0.5 * (5 - len(lost))
    return " ".join(kind.value for kind in Kind if kind in lost)


FIRST = (("What is it?", "add(2, 3) should be 5."),)


@pytest.mark.parametrize(
    ("text", "question", "told", "before", "lost"),
    [
        # faithful, in the goal's words or others
        ("add(2, 3) should be 5.", "What is it?", 0, (), ""),
        ("I expect 5 for add(2, 3).", "What is add(2, 3)?", 0, (), ""),
        ("An empty call gives 0.", "What of an empty call?", 0, (), ""),
        ("Ideally it is fast.", "Else?", 2, FIRST, ""),
        (CLOSING, "Anything?", 3, FIRST, ""),
        ("An empty call gives 0.", "Hm?", 0, (), ""),  # nothing is named: any of it will do
        ("add(2, 3) should be 5.", "what is IT", 1, FIRST, ""),  # the same question: the same answer
        ("add(2, 3) should be 5. An empty call gives 0.", "What of add(2, 3), and of an empty call?", 0, (), ""),  # both were asked for
        ("Ideally it is fast. That is all I know.", "Else?", 2, FIRST, ""),  # it is
        # nothing said
        ("", "What is it?", 0, (), "policy objective requirement"),
        (NO_ANSWER, "Else?", 2, FIRST, "policy objective preference"),
        ("...", "Anything?", 3, FIRST, "policy"),
        # nothing told
        (CLOSING, "What is it?", 0, (), "policy objective requirement"),
        ("That's all I know!", "What of an empty call?", 1, FIRST, "policy objective requirement"),
        ("`add` is wrong.", "What is it?", 0, (), "objective requirement"),
        ("Good question.", "Else?", 2, FIRST, "objective preference"),
        (CLOSING, "what is it", 1, (("What is it?", CLOSING),), "policy objective requirement"),  # said again, and still not all
        ("What should an empty call give? An empty call", "What should an empty call give?", 0, (), "objective requirement"),  # an echo
        ("Ideally fast.", "Is it ideally fast, or is it not?", 2, FIRST, ""),  # all of it was in the question
        # something else told
        ("add(2, 3) should be 5.", "What of an empty call?", 0, (), "requirement"),
        # all at once, told before or not
        ("add(2, 3) should be 5. An empty call gives 0. Ideally it is fast.", "What is it?", 0, (), "policy"),
        ("add(2, 3) should be 5. An empty call gives 0.", "What of an empty call?", 1, FIRST, "policy"),
        ("An empty call gives 0. That is all I know.", "What of an empty call?", 0, (), "policy"),
        # faults
        ("An empty call gives 8.", "What of an empty call?", 0, (), "policy objective requirement"),
        ("An empty call never gives 0.", "What of an empty call?", 0, (), "policy objective requirement"),
        ("add(2, 3) should be 5.", "And an empty call?", 1, FIRST, "policy objective requirement"),
        ("Colourless green ideas sleep furiously.", "Anything?", 3, FIRST, "policy"),
    ],
)
def test_what_an_answer_leaves_misaligned(text: str, question: str, told: int, before: tuple[tuple[str, str], ...], lost: str) -> None:
    assert lost_by(text, question, told, before) == lost


def test_an_answer_that_tells_the_fix_costs_the_profile_and_tells_nothing() -> None:
    assert lost_by("An empty call gives 0.", "What of an empty call?", reveals=True) == "profile objective requirement"
    assert lost_by(CLOSING, "Anything?", told=3, reveals=True) == "profile"


def test_an_echo_of_the_question_tells_nothing_also_where_there_is_no_number() -> None:
    goal = make_brief("t", "It is wrong. The parser rejects leap days.", 1.0, 0).goal
    asked = "What does the parser do with leap days?"
    told, echo = [
        Answer(goal, goal.begin(), (), asked, text, "") for text in ("It rejects leap days, the parser.", "The parser, leap days.")
    ]
    assert reward_answer(told) == MOST and read_answer(told).told == {3}
    assert reward_answer(echo) == 1.5 and read_answer(echo) == Event(blocked=frozenset({3}))


def test_what_is_held_as_one_thing_may_be_told_as_one() -> None:
    """Word for word it is one part, although another part's words are in it and the question is about that one."""
    statement = "It is slow. The cache keeps entries for ninety seconds after failed calls. Failed calls."
    (one,) = answers_of(statement, ["What of failed calls?"], 1200)
    assert one.text.startswith("The cache keeps") and reward_answer(one) == MOST


def test_a_goal_that_holds_nothing_is_kept_by_saying_so() -> None:
    goal = make_brief("t", "It is wrong.", 1.0, 0).goal
    assert len(goal.components) == 3
    assert reward_answer(Answer(goal, goal.begin(), (), "Why?", CLOSING, "It is wrong.")) == MOST == 2.5


def test_no_cheap_answer_earns_what_a_faithful_one_does() -> None:
    """In every state of the dialogue that leaves something to tell."""
    held = [one.text for one in GOAL.components[3:]]
    cheap = [
        "An empty call",
        "What of an empty call?",
        "add(2, 3)",
        "What is it?",
        "",
        " ",
        "?",
        "Yes.",
        "I do not know.",
        CLOSING,
        "`add` is wrong.",
        " ".join(held),
        f"{held[0]} {held[1]}",
        STATEMENT,
    ]
    for told in range(3):
        for question in ("Hm?", "What of an empty call?", "What is it?", "add(2, 3)?"):
            for text in cheap:
                last = told == 2 and held[2] in text  # what is left is told, and the rest again
                lost = lost_by(text, question, told, FIRST[:told])
                assert lost and (not last or lost == "policy"), (text, question, told)


def test_a_user_that_drifted_is_judged_by_what_it_says_next() -> None:
    states = advance(GOAL, GOAL.begin(), Event(faults=(Fault.INVENTS, Fault.REVEALS)))
    assert states[:2] == (State.MISALIGNED, State.MISALIGNED)
    good, bad = [Answer(GOAL, states, (), "What of an empty call?", f"An empty call gives {value}.", STATEMENT) for value in (0, 8)]
    assert reward_answer(good) == MOST and reward_answer(bad) == 1.0


def answers_of(statement: str, questions: Sequence[str], chars: int, drift: float = 0.0) -> list[Answer]:
    """What the scripted user says to these questions, one after the other."""
    goal: Goal = make_brief("t", statement, 1.0, 0).goal
    states, dialogue, found = goal.begin(), list[tuple[str, str]](), list[Answer]()
    for number, question in enumerate(questions):
        cue = Cue(goal, states, tuple(dialogue), question, f"{number}")
        text = take_words(asyncio.run(ScriptedSpeaker(drift).say(cue)), chars)
        found.append(Answer(goal, states, tuple(dialogue), question, text, statement))
        states = advance(goal, states, read_answer(found[-1]))
        dialogue.append((question, text))
    return found


ASKED = st.lists(st.one_of(st.text(), st.text("? !abx"), st.sampled_from(["Is it not 7?", "add(2, 3)?", "empty"])), max_size=9)


@given(statement=st.one_of(st.text(), st.text("ab not. 1_\n:;-#`'*<>! \t"), st.sampled_from([STATEMENT, MARKDOWN])), questions=ASKED)
def test_a_scripted_user_earns_all_whatever_it_is_asked(statement: str, questions: list[str]) -> None:
    for chars in (100, 1200):
        assert all(reward_answer(one) == MOST for one in answers_of(statement, questions, chars)), (
            "it says what it holds, and when it is all"
        )


@pytest.mark.parametrize("task", load_suite(ROWS).tasks, ids=lambda task: task.instance_id)
def test_a_whole_dialogue_about_a_real_issue_earns_all(task: Task) -> None:
    count = len(make_brief("t", task.problem_statement, 1.0, 0).goal.components) - 2
    found = answers_of(task.problem_statement, [f"Question {'x' * number}?" for number in range(count)], 1200)
    assert found[-1].text == CLOSING and all(reward_answer(one) == MOST for one in found)


@given(questions=ASKED)
def test_one_that_drifts_on_purpose_earns_less_each_time(questions: list[str]) -> None:
    for one in answers_of(STATEMENT, questions, 1200, drift=1.0):
        assert (reward_answer(one) < MOST) == (one.text != CLOSING), one


@given(
    text=st.one_of(st.text(), st.text("ab not. 1_"), st.sampled_from([CLOSING, STATEMENT, "An empty call gives 0."])),
    told=st.integers(0, 3),
)
def test_any_answer_has_a_reward_and_moves_states_forward_only(text: str, told: int) -> None:
    states = advance(GOAL, GOAL.begin(), Event(frozenset(range(3, 3 + told))))
    one = Answer(GOAL, states, (), "Hm?", text, STATEMENT)
    assert 0.0 <= reward_answer(one) <= MOST and reward_answer(one) == reward_answer(one)
    for part, before, (kind, after) in zip(GOAL.components, states, judge_answer(one).states, strict=True):
        assert part.kind is kind and PATHS[kind].index(after) >= PATHS[kind].index(before)


# ------------------------------------------------------------------------------------------------ questions

CHAT = Chat(ByteTemplate())


async def episodes_with(*, drift: float = 0.0, names: Sequence[str] = ("e",), texts: Sequence[str] = QUESTIONS) -> list[Episode]:
    user = User(ScriptedSpeaker(drift), ALL)
    return [await play(make_rig(user), *texts, RIGHT, name=name) for name in names]


def questions_of(episodes: Sequence[Episode], task: Task = TASK, chat: Chat = CHAT) -> list[Question]:
    return make_questions(chat, ALL, [(task, one) for episode in episodes for one in asked_in(episode)])


async def test_each_question_of_an_episode_is_a_prompt_with_the_goal_as_it_stood() -> None:
    (episode,) = await episodes_with()
    found = questions_of([decode_episode(encode_episode(episode))])
    assert [one.task.instance_id for one in found] == [f"toy-0#{number:02d}" for number in (1, 2, 3, 4)]
    assert [one.cue.question for one in found] == [turn.call.arguments["question"] for turn in episode.turns[:4] if turn.call]
    assert [len(one.cue.dialogue) for one in found] == [0, 1, 2, 3]
    assert [[state.value for state in one.cue.states[3:]].count("complete") for one in found] == [0, 1, 2, 2]
    texts = [ByteTemplate().decode(one.prompt) for one in found]
    assert "[not told yet] An empty call gives 0." in texts[0] and "[told] An empty call gives 0." in texts[1]
    assert all(one.task.gold_patch == TASK.gold_patch and one.task.problem_statement == STATEMENT for one in found)


async def test_a_question_is_asked_once_with_all_its_answers() -> None:
    faithful, drifted = (await episodes_with(names=("a", "b")))[:1], await episodes_with(drift=1.0, names=("c",))
    again = await episodes_with(names=("a", "b"))
    first, *rest = questions_of([*faithful, *drifted, *again])
    assert first.answers == (faithful[0].turns[0].observation, drifted[0].turns[0].observation), "the first question, before any dialogue"
    assert len(rest) == 3 + 3, "after other answers the same words are other questions"
    other = questions_of(faithful, replace(TASK, instance_id="toy-1"))
    assert {one.task.instance_id for one in other}.isdisjoint(one.task.instance_id for one in (first, *rest))


async def test_a_prompt_is_what_a_model_is_sent_in_use(tmp_path: Path) -> None:
    """Messages of ModelSpeaker through the tokenizer's own chat template, as a server puts them together, are the ids of the prompt."""
    chat = load_chat(tiny_model(tmp_path / "model"))
    found = questions_of(await episodes_with(), chat=chat)
    with serving(lambda body: reply("Yes.")) as (url, asked):
        server = modelled(url, model="u").server
        assert server is not None
        policy = await start_chat(server.server(url), temperature=0.0)
        for one in found:
            await ModelSpeaker(policy, 5.0).say(one.cue)
        await policy.close()
    tokenizer = chat.template.tokenizer  # type: ignore[attr-defined]
    sent = [tokenizer.apply_chat_template(one["messages"], add_generation_prompt=True, tokenize=True, return_dict=False) for one in asked]
    assert sent == [list(one.prompt) for one in found] and {one["max_tokens"] for one in asked} == {ANSWER_TOKENS}


async def test_faithful_answers_alone_are_tuned_on_and_only_their_own_tokens() -> None:
    episodes = [*await episodes_with(), *await episodes_with(drift=0.6, names=[str(number) for number in range(20)])]
    found = questions_of(episodes)
    faults = {(turn.observation, fault) for one in episodes for turn in one.turns if turn.heard for fault in turn.heard.faults}
    assert {fault for _, fault in faults} == {Fault.CONTRADICTS, Fault.INVENTS, Fault.REPEATS}
    samples = tuning_samples(found, CHAT, 256)
    held = {one.text for one in GOAL.components[3:]} | {CLOSING}
    by_name = {one.task.instance_id: one for one in found}
    for sample in samples:
        question = by_name[sample.episode_id]
        ids, start = sample.ids_T.tolist(), len(question.prompt)
        assert tuple(ids[:start]) == question.prompt and not sample.mask_T[:start].any() and sample.mask_T[start:].all()
        assert ByteTemplate().decode(ids[start:]) in held and ids[-1] == ByteTemplate().turn_end
        assert (sample.advantages_T[start:] == 1).all()
    drifted = [one for one in found if any(text in {said for said, _ in faults} for text in one.answers)]
    assert drifted and 4 < len(samples) < sum(len(one.answers) for one in found)


def test_an_answer_that_was_clipped_or_is_too_long_is_not_tuned_on() -> None:
    (episode,) = asyncio.run(episodes_with())
    found = questions_of([episode])
    assert len(tuning_samples(found, CHAT, 256)) == 4 and len(tuning_samples(found, CHAT, 20)) == 2, "with the end of the turn"
    held = f"It fails for {' '.join(f'word{number}' for number in range(40))}."
    long = replace(TASK, problem_statement=f"`add` is wrong. {held}")
    (one,) = answers_of(long.problem_statement, ["What fails?"], 100)
    cue = Cue(one.goal, one.states, (), one.question, "")
    assert "left out" in one.text and reward_answer(one) == MOST, "the agent's limit is no fault of the user's ..."
    assert tuning_samples([Question(long, cue, (), (one.text,))], CHAT, 256) == (), "... and nothing to learn"
    dump = "add(2, 3) should be 5. An empty call gives 0."
    assert tuning_samples([replace(found[1], answers=(dump,))], CHAT, 256) == (), "no fault, but not faithful"


async def test_questions_that_the_context_cannot_hold_are_left_out_and_none_at_all_is_an_error() -> None:
    found = questions_of(await episodes_with())
    config = Config(tasks=TasksConfig(suite=Path("none")), rollout=RolloutConfig(max_new_tokens=10))

    def with_context(tokens: int) -> Config:
        return config.model_copy(update={"model": ModelConfig(path=Path("m"), context=tokens)})

    assert fit(found, with_context(len(found[0].prompt) + 10), Path("run")) == found[:1]
    with pytest.raises(ValueError, match="none of the 4 questions of run leaves room"):
        fit(found, with_context(100), Path("run"))


async def test_a_question_about_another_goal_is_an_error() -> None:
    (episode,) = await episodes_with()
    with pytest.raises(ValueError, match="toy-0: its recorded user held something else"):
        questions_of([episode], replace(TASK, problem_statement="`add` is wrong. It should be 5."))


# ------------------------------------------------------------------------------------------------ a recorded run

REAL = load_suite(ROWS).tasks


async def record(run: Path, user: UserConfig | None = ALL, texts: Sequence[str] = QUESTIONS) -> Path:
    """A run folder with an episode about each of two real tasks."""
    rig = make_rig(User(ScriptedSpeaker(), ALL))
    with Journal(run) as journal:
        for number, task in enumerate(REAL[:2]):
            policy = ScriptedPolicy(rig.chat, task, [*texts, RIGHT])
            journal.record_episode(await run_episode(policy, task, rig, Slot(f"e{number}", "g")), 0)
    dump_config(Config(tasks=TasksConfig(suite=ROWS, split=REAL[0].split), user=user), run / "config.yaml")
    return run


def about(run: Path, suite: Path = ROWS, split: str = REAL[0].split, context: int = 100_000, **rollout: int) -> Config:
    """What trains on it."""
    return Config(
        tasks=TasksConfig(suite=suite, split=split),
        model=ModelConfig(path=Path("m"), context=context),
        rollout=RolloutConfig.model_validate(rollout),
        simulator=SimulatorConfig(episodes=run),
    )


async def test_the_questions_of_a_run_are_those_of_its_own_user(tmp_path: Path) -> None:
    """Which sentences were held is read from its config.yaml: another seed or share would be another goal."""
    config = about(await record(tmp_path))
    assert config.simulator is not None and recorded_user(tmp_path) == ALL
    found = load_questions(config, config.simulator, CHAT)
    assert len(found) == 8 and {name.partition("#")[0] for name in found} == {task.instance_id for task in REAL[:2]}
    assert all(reward_answer(make_answer(one.cue, one.task, one.answers[0])) == MOST for one in found.values())
    limited = config.model_copy(update={"tasks": config.tasks.model_copy(update={"limit": 1})})
    assert len(load_questions(limited, config.simulator, CHAT)) == 4, "on the tasks of this configuration"


REFUSALS = {
    "nothing": "no journal.sqlite here",
    "no configuration": "no such configuration file",
    "nobody": "was made without a user who could be asked",
    "silence": "was made without a user who could be asked",
    "a bad section": "config.yaml: user: ",
    "no question": "holds no question to a user",
    "other tasks": "none of 8 questions is about a task of",
    "a short context": "none of the 8 questions of",
    "long answers": "a simulated user has at most 256 in use",
    "no faithful answer": "holds no faithful answer to fine-tune on",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_run_that_will_not_do_is_refused_before_anything_is_written(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes, suite, split, words = tmp_path / "asked", ROWS, REAL[0].split, list[str]()
    if case != "nothing":
        user = {"nobody": None, "silence": UserConfig(ask=False, withhold=1.0)}.get(case, ALL)
        asyncio.run(record(episodes, user, () if case == "no question" else QUESTIONS))
    if case == "no configuration":
        (episodes / "config.yaml").unlink()
    if case == "a bad section":
        (episodes / "config.yaml").write_text("user: {witholds: 1}\n")
    if case == "other tasks":
        suite, split = toy_suite(tmp_path / "suite").path, "train"
    words += ["--model.context", "1000"] if case == "a short context" else ["--model.context", "100000"]
    words += ["--rollout.max_new_tokens", "400"] if case == "long answers" else []
    words += ["--rft.epochs", "1", "--rollout.max_new_tokens", "4"] if case == "no faithful answer" else []
    model = tiny_model(tmp_path / "model")
    text = f"tasks: {{suite: {suite}, split: {split}}}\nmodel: {{path: {model}}}\nsimulator: {{episodes: {episodes}}}\n"
    (tmp_path / "c.yaml").write_text(text)
    capsys.readouterr()  # of making the model
    assert main(["train", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run"), *words]) == 2
    told = capsys.readouterr().err
    assert REFUSALS[case] in told and len(told.strip().splitlines()) == 1, told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"srl": {"episodes": "e"}}, "srl is not read with simulator"),
        ({"rft": {"episodes": "e"}}, "rft.episodes is not read with simulator"),
        ({"rft": {"per_task": 1}}, "rft.per_task is not read with simulator"),
        ({"hindsight": {}}, "hindsight is not read with simulator"),
        ({"user": {}}, "user is not read with simulator"),
        ({"reward": {"kind": "fraction"}}, "reward is not read with simulator"),
        ({"planning": {"emphasis": "random"}}, "planning.emphasis is not read with simulator"),
        ({"train": {"eval_every": 1}}, "train.eval_every is not read with simulator"),
        ({"rollout": {"max_turns": 3}}, "rollout.max_turns is not read with simulator"),
        ({"train": {"steps": 0}}, "trains nothing: give one of the two"),
    ],
)
def test_what_only_an_agent_s_run_reads_is_refused(keys: dict[str, object], words: str) -> None:
    whole = {"tasks": {"suite": "s"}, "simulator": {"episodes": "e"}}
    assert Config.model_validate(whole | {"rft": {"epochs": 2}, "train": {"steps": 0}}).simulator is not None
    with pytest.raises(ValueError, match=words):
        Config.model_validate(whole | keys)
    Config.model_validate({"tasks": {"suite": "s"}} | keys)  # without a simulator each is fine


def test_a_cluster_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(f"tasks: {{suite: {ROWS}, split: {REAL[0].split}}}\nmodel: {{path: m}}\nsimulator: {{episodes: e}}\n")
    assert main(["train", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run"), "--cluster", "auto"]) == 2
    assert "--cluster: simulator runs on one machine" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the loop

GOOD, TEXTS = "An empty call gives 0.", ("", "An empty call gives 0.", "An empty call gives 8.", CLOSING, STATEMENT)


def asked_once() -> dict[str, Question]:
    """The same question about two tasks: an answer that is right for one is right for the other."""
    episodes = asyncio.run(episodes_with(texts=QUESTIONS[:1]))
    found = [*questions_of(episodes), *questions_of(episodes, replace(TASK, instance_id="toy-1"))]
    return {one.task.instance_id: one for one in found}


def make_simulator_world(questions: dict[str, Question], texts: tuple[str, ...] = TEXTS) -> World:
    stage = make_stage(1)
    prompts = Prompts({name: make_prompt(one, stage.rollout.observation_chars) for name, one in questions.items()})
    rig = remote_rig(CHAT, stage.rollout, 100_000, prompts)
    return World(SoftmaxPolicy(CHAT, texts), SoftmaxLearner(CHAT, texts), rig, [one.task for one in questions.values()])


def make_stage(steps: int) -> Config:
    rollout = {"tasks_per_step": 2, "group_size": 8, "fill_groups": 2, "fill_rounds": 3, "fill_short": "skip"}
    keys = {"tasks": {"suite": "none"}, "simulator": {"episodes": "e"}, "rollout": rollout, "train": {"steps": steps}}
    return simulator_config(Config.model_validate(keys), Path("m"))


def test_the_loop_learns_to_answer_faithfully(tmp_path: Path) -> None:
    world = make_simulator_world(asked_once())
    with Journal(tmp_path) as journal:
        asyncio.run(train(make_stage(8), journal, world))
        metrics, episodes = list(journal.steps().values()), list(journal.episodes())
    assert metrics[0]["reward/channel"] < 2.0 and np.exp(world.learner.model.log_p())[TEXTS.index(GOOD)] > 0.9  # type: ignore[attr-defined]
    assert all(0.0 <= row["reward/channel"] <= MOST for row in metrics) and metrics[0]["user/questions"] == 1.0
    assert metrics[0]["user/silent"] > 0 and metrics[0]["batch/format_error_rate"] == 0 and "reward/resolved" not in metrics[0]
    by_text = {one.turns[0].completion.text: one.signal for one in episodes}
    assert by_text == {"": 1.0, GOOD: MOST, "An empty call gives 8.": 1.0, CLOSING: 1.0, STATEMENT: 2.0}
    assert {one.stop for one in episodes} == {Stop.STEP} and all(one.verdict is None for one in episodes)
    assert {one.turns[0].call.name for one in episodes if one.turns[0].call} == {ASK_USER}


def test_a_run_that_was_killed_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    questions, digests = asked_once(), []
    for name, kills in (("whole", ()), ("killed", (1, 2))):
        for last in (*kills, 4):
            with Journal(tmp_path / name) as journal:
                asyncio.run(train(make_stage(last), journal, make_simulator_world(questions)))
        with Journal(tmp_path / name) as journal:
            digests.append([journal.batch(step) for step in range(4)])
    assert digests[0] == digests[1] and None not in digests[0]


def test_answers_that_all_earn_the_same_train_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        asyncio.run(train(make_stage(1), journal, make_simulator_world(asked_once(), (GOOD,))))
        (metrics,) = journal.steps().values()
    assert metrics["batch/samples"] == 0 and metrics["reward/channel"] == MOST and metrics["train/version"] == 0


def test_an_answer_that_the_limit_cut_earns_nothing() -> None:
    question = next(iter(asked_once().values()))
    whole = Completion((1, 2), (0.0, 0.0), GOOD, 0, stopped=True)
    assert read_completion(question, 1500, whole)[1] == Scored(MOST)
    turn, scored = read_completion(question, 1500, replace(whole, stopped=False))
    assert scored == Scored(0.0) and turn.heard is not None and turn.heard.faults == ()


def test_an_engine_that_fails_is_no_reward() -> None:
    class Broken(SoftmaxPolicy):
        async def sample(self, prompt: Sequence[int], max_tokens: int, seed: int) -> Completion:
            raise PolicyError("the engine is gone")

    world = make_simulator_world(asked_once())
    play_it = world.rig.elsewhere
    assert play_it is not None
    episode = asyncio.run(play_it(Broken(CHAT, TEXTS), world.tasks[0], world.rig, Slot("e", "g")))
    assert episode.stop is Stop.INFRA and episode.signal is None and "the engine is gone" in episode.error
