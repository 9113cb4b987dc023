"""SRL: the similarity of actions, prompts from an expert's episodes, batches that are exactly full, and the loop on fakes."""

import asyncio
import difflib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.action import FormatError, render
from pipeline.batch import build_batch
from pipeline.cli import main
from pipeline.config import Config, CreditConfig, ModelConfig, RolloutConfig, SrlConfig, TasksConfig, UserConfig
from pipeline.convert import tiny_model
from pipeline.fake import SoftmaxLearner, SoftmaxPolicy
from pipeline.journal import Journal
from pipeline.prompt import Chat
from pipeline.rig import Slot, remote_rig
from pipeline.similarity import LONGEST, reward_action, similarity
from pipeline.stages.prompts import Prompts
from pipeline.stages.rft import choose_demonstrations
from pipeline.stages.srl import fit, make_prompt, make_steps, srl_config
from pipeline.train import World, train
from pipeline.types import Completion, Episode, Group, PolicyError, Scored, Stop, ToolCall, Turn
from tasks import Outcome, Verdict, toy_suite
from tests.toy_loop import CHAT, RIGHT, SUBMIT, TEXTS, WRONG, make_task

BASH = ToolCall("bash", {"command": "python -m pytest -q"})
CODE = st.text(alphabet="abcdef(): =\n\t'", max_size=400)


# ------------------------------------------------------------------------------------------------ the reward


@given(CODE, CODE)
def test_the_similarity_is_difflib_s_without_autojunk(action: str, expert: str) -> None:
    assert similarity(action, expert) == difflib.SequenceMatcher(None, action, expert, autojunk=False).ratio()


@given(st.sampled_from(["a", "ab", "abc"]), st.data())
def test_the_similarity_of_texts_of_few_letters_is_difflib_s(letters: str, data: st.DataObject) -> None:
    """Where many matches are equally long, which of them is taken decides what else can match."""
    text = st.text(alphabet=letters, max_size=80)
    one, other = data.draw(text), data.draw(text)
    for action, expert in ((one, other), (one * 3, other * 2), (one + other, other + one)):
        assert similarity(action, expert) == difflib.SequenceMatcher(None, action, expert, autojunk=False).ratio()


def test_real_code_has_difflib_s_similarity_and_not_that_with_junk() -> None:
    text = Path(__file__).read_text()
    one, other = text[:3000], text[:3000].replace("e", "E").replace("(", " (")
    plain, junk = [difflib.SequenceMatcher(None, one, other, autojunk=junk).ratio() for junk in (False, True)]
    assert similarity(one, other) == plain > junk + 0.1


def test_the_similarity_does_not_jump_at_200_characters() -> None:
    text = "    return value + other\n" * 10
    ratios = [similarity(text[:size] + "x", text[:size] + "y") for size in (198, 199, 200, 201)]
    assert max(np.abs(np.diff(ratios))) < 0.01
    long = "ab" * LONGEST
    assert similarity(long, long[:LONGEST] + "c" * 50) == 1.0, "what follows the first LONGEST characters is not looked at"


def test_a_reward_is_1_for_the_expert_s_action_minus_1_for_none_and_0_for_another_tool() -> None:
    assert reward_action(BASH, BASH) == 1.0
    assert reward_action(FormatError("no block"), BASH) == -1.0
    assert reward_action(ToolCall("view", {"path": "python -m pytest -q"}), BASH) == 0.0
    near = reward_action(ToolCall("bash", {"command": "python -m pytest -x"}), BASH)
    far = reward_action(ToolCall("bash", {"command": "git log"}), BASH)
    assert 0.0 < far < near < 1.0


def test_what_all_actions_of_a_tool_have_in_common_is_not_compared() -> None:
    assert reward_action(ToolCall("bash", {"command": "ls"}), ToolCall("bash", {"command": "pwd"})) == 0.0
    assert reward_action(ToolCall("view", {"path": "a"}), ToolCall("view", {"path": "b", "name": "c"})) == 0.0
    edit = {"path": "calc.py", "old": "a - b", "new": "a + b"}
    assert reward_action(ToolCall("edit", dict(reversed(edit.items()))), ToolCall("edit", edit)) == 1.0, "whatever their order in JSON"
    assert reward_action(ToolCall("submit", {}), ToolCall("submit", {})) == 1.0
    old = "x" * LONGEST
    assert reward_action(ToolCall("edit", edit | {"old": old, "new": "other"}), ToolCall("edit", edit | {"old": old})) < 1.0


@given(st.text(alphabet="abc .\n", max_size=200))
def test_what_is_thought_before_the_action_is_irrelevant(thought: str) -> None:
    call = CHAT.parse(f"{thought}\n{render(BASH)}")
    assert reward_action(call, BASH) == 1.0


# ------------------------------------------------------------------------------------------------ prompts


def expert(number: int = 0, texts: tuple[str, ...] = (WRONG, RIGHT, SUBMIT), chat: Chat = CHAT) -> Episode:
    task, turns = make_task(number), list[Turn]()
    prompt = chat.start_prompt(task)
    for place, text in enumerate(texts):
        ids = tuple(chat.write(text))
        call = chat.parse(text)
        turn = Turn(
            tuple(prompt), Completion(ids, (0.0,) * len(ids), text, 0, True), None if isinstance(call, FormatError) else call, f"o{place}"
        )
        turns.append(turn)
        prompt = chat.extend(prompt, turn.completion, turn.observation)
    verdict = Verdict(task.instance_id, Outcome.RESOLVED)
    return Episode(f"e{number}", "g", task.instance_id, tuple(turns), Stop.SUBMITTED, "patch", verdict)


def text_of(prompt: tuple[int, ...]) -> str:
    return CHAT.template.decode(prompt)


def test_an_expert_of_n_turns_gives_n_minus_1_prompts_with_the_last_turns_before() -> None:
    task, long = make_task(0), expert(texts=(WRONG, "I look.\n" + RIGHT, WRONG, RIGHT, SUBMIT))
    steps = list(make_steps(CHAT, task, long.turns, 2, "toy-0"))
    assert [step.task.instance_id for step in steps] == ["toy-0#01", "toy-0#02", "toy-0#03", "toy-0#04"]
    assert [step.action for step in steps] == [turn.call for turn in long.turns[:4]]
    assert steps[0].prompt == tuple(CHAT.start_prompt(task))
    assert all(task.problem_statement in text_of(step.prompt) for step in steps)
    assert [[f"o{n}" in text_of(step.prompt) for n in range(4)] for step in steps] == [
        [False, False, False, False],
        [True, False, False, False],
        [True, True, False, False],
        [False, True, True, False],
    ]
    whole = list(make_steps(CHAT, task, long.turns, 99, "toy-0"))
    assert [step.prompt for step in whole] == [turn.prompt for turn in long.turns[:4]], "with all of the history: what the expert saw"


def test_a_malformed_turn_of_the_expert_is_no_prompt_and_stays_in_the_context() -> None:
    steps = list(make_steps(CHAT, make_task(0), expert(texts=("no block here", RIGHT, SUBMIT)).turns, 2, "toy-0"))
    assert [step.task.instance_id for step in steps] == ["toy-0#02"] and "no block here" in text_of(steps[0].prompt)


def test_what_an_expert_asked_is_no_prompt_and_stays_in_the_context() -> None:
    """Its user is not there: an answer that asks would be called malformed."""
    asking = Chat(CHAT.template, user=UserConfig())
    steps = list(make_steps(CHAT, make_task(0), expert(texts=("```ask_user\nWhich?\n```", RIGHT, SUBMIT), chat=asking).turns, 2, "toy-0"))
    assert [step.task.instance_id for step in steps] == ["toy-0#02"] and "Which?" in text_of(steps[0].prompt)


def test_srl_with_a_user_is_refused() -> None:
    """Its prompts would lack what only the user knows, and the expert may have known it."""
    keys = {"tasks": {"suite": "none"}, "srl": {"episodes": "e"}}
    assert Config.model_validate(keys).srl
    with pytest.raises(ValueError, match="srl shows what an expert saw and has nobody to ask"):
        Config.model_validate({**keys, "user": {}})


def test_prompts_that_the_context_cannot_hold_are_left_out_and_none_at_all_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    steps = list(make_steps(CHAT, make_task(0), expert().turns, 2, "toy-0"))
    config = Config(tasks=TasksConfig(suite=Path("none")), rollout=RolloutConfig(max_new_tokens=10))

    def with_context(tokens: int) -> Config:
        return config.model_copy(update={"model": ModelConfig(path=Path("m"), context=tokens)})

    assert fit(steps, with_context(len(steps[0].prompt) + 10), Path("run")) == steps[:1]
    few = with_context(100_000).model_copy(update={"srl": SrlConfig(episodes=Path("e"), batch=3)})
    assert fit(steps, few, Path("run")) == steps and "srl.batch = 3 of 2 prompts" in caplog.text
    with pytest.raises(ValueError, match="none of 2 prompts leaves room"):
        fit(steps, with_context(100), Path("run"))
    with pytest.raises(ValueError, match="no resolved episode of two turns"):
        fit([], with_context(100), Path("run"))


@pytest.mark.parametrize("holds", ["nothing", "a failure", "an expert of one turn"])
def test_an_expert_that_is_missing_or_never_resolved_is_refused_before_anything_is_written(tmp_path: Path, holds: str, capsys) -> None:
    episodes, model = tmp_path / "expert", tiny_model(tmp_path / "model")
    suite = toy_suite(tmp_path / "suite")
    task = next(task.instance_id for task in suite.tasks if task.split == "train")
    if holds != "nothing":
        one = expert(texts=(SUBMIT,)) if holds != "a failure" else replace(expert(), verdict=Verdict(task, Outcome.UNRESOLVED))
        with Journal(episodes) as journal:
            journal.record_episode(replace(one, instance_id=task), 0)
    (tmp_path / "c.yaml").write_text(f"tasks: {{suite: {suite.path}}}\nmodel: {{path: {model}}}\nsrl: {{episodes: {episodes}}}\n")
    assert main(["train", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "no journal.sqlite" in told if holds == "nothing" else "holds no resolved episode of two turns or more" in told
    assert not (tmp_path / "run").exists()


def test_the_same_actions_of_an_expert_count_once_and_what_is_not_resolved_never() -> None:
    one, failed = expert(), replace(expert(1), verdict=Verdict("toy-1", Outcome.UNRESOLVED))
    infra = replace(expert(1), stop=Stop.INFRA)
    other_thought = replace(expert(texts=("Well.\n" + WRONG, RIGHT, SUBMIT)), episode_id="same actions")
    shorter = replace(expert(texts=(RIGHT, SUBMIT)), episode_id="shorter")
    assert [found.episode_id for found in choose_demonstrations([one, failed, infra, other_thought, shorter])] == ["e0", "shorter"]
    assert [found.episode_id for found in choose_demonstrations([one, shorter, expert(1)], per_task=1)] == ["e0", "e1"]


# ------------------------------------------------------------------------------------------------ the loop


def make_srl_world(policy: SoftmaxPolicy | None = None, texts: tuple[str, ...] = TEXTS) -> World:
    steps = [
        step
        for number in (0, 1)
        for step in make_steps(CHAT, make_task(number), expert(number, (RIGHT, RIGHT, SUBMIT)).turns, 2, f"toy-{number}")
    ]
    stage = make_stage()
    rig = remote_rig(CHAT, stage.rollout, 100_000, Prompts({step.task.instance_id: make_prompt(CHAT, step) for step in steps}))
    return World(policy or SoftmaxPolicy(CHAT, texts), SoftmaxLearner(CHAT, texts), rig, [step.task for step in steps])


def make_stage(steps: int = 4, batch: int = 2, rounds: int = 3) -> Config:
    whole = Config(
        tasks=TasksConfig(suite=Path("none")), optim={"lr": 1e-6}, train={"steps": 7, "eval_every": 3}, rollout={"max_new_tokens": 200}
    )
    return srl_config(whole, SrlConfig(episodes=Path("e"), steps=steps, batch=batch, rounds=rounds, answers=8, lr=0.3))


async def test_the_stage_learns_the_expert_s_action_and_every_batch_is_exactly_full(tmp_path: Path) -> None:
    world = make_srl_world()
    with Journal(tmp_path) as journal:
        await train(make_stage(8), journal, world)
        metrics, fates = list(journal.steps().values()), journal.ledger().fates
        episodes = list(journal.episodes())
    assert {row["batch/kept_groups"] for row in metrics} <= {2.0, 0.0}
    assert {row["batch/samples"] for row in metrics} <= {16.0, 0.0} and metrics[0]["batch/samples"] == 16.0
    assert metrics[-1]["reward/channel"] > metrics[0]["reward/channel"] + 0.1
    assert all("reward/resolved" not in row and "reward/gap" not in row for row in metrics), "there is no verdict to tell of"
    assert {episode.stop for episode in episodes} == {Stop.STEP} and all(episode.verdict is None for episode in episodes)
    assert {fate for _, fate in fates.values()} <= {"trained", "constant", "surplus", "short"}


async def test_a_batch_that_cannot_be_filled_trains_nothing(tmp_path: Path) -> None:
    world = make_srl_world(texts=("the same words",))
    with Journal(tmp_path) as journal:
        await train(make_stage(1), journal, world)
        (metrics,) = journal.steps().values()
    assert metrics["batch/samples"] == 0 and metrics["batch/missing_groups"] == 2 and metrics["train/version"] == 0
    assert metrics["batch/groups"] == 6 and metrics["reward/channel"] == -1.0, "three rounds of two prompts were tried"


async def test_a_stage_that_was_killed_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    digests = []
    for name, kills in (("whole", ()), ("killed", (1, 2))):
        for last in (*kills, 4):
            with Journal(tmp_path / name) as journal:
                await train(make_stage(last), journal, make_srl_world())
        with Journal(tmp_path / name) as journal:
            digests.append([journal.batch(step) for step in range(4)])
    assert digests[0] == digests[1] and None not in digests[0]


@pytest.mark.parametrize("failures", [2, 3])
async def test_an_engine_that_fails_is_asked_again_and_no_reward(failures: int) -> None:
    """rollout.infra_retries is 2."""
    left = failures

    class Broken(SoftmaxPolicy):
        async def sample(self, prompt, max_tokens, seed):
            nonlocal left
            left -= 1
            if left >= 0:
                raise PolicyError("the engine is gone")
            return await super().sample(prompt, max_tokens, seed)

    world = make_srl_world()
    rig = replace(world.rig, retry_seconds=0.0)
    episode = await world.rig.elsewhere(Broken(CHAT, TEXTS), world.tasks[0], rig, Slot("e", "g"))  # type: ignore[misc]
    assert episode.retries == 2
    if failures == 2:
        assert episode.stop is Stop.STEP and episode.signal is not None
    else:
        assert episode.stop is Stop.INFRA and episode.signal is None and "the engine is gone" in episode.error


def test_a_group_whose_rewards_hardly_differ_carries_no_signal() -> None:
    turn = expert().turns[0]

    def group(*rewards: float) -> Group:
        one = Episode("e", "g", "t", (turn,), Stop.STEP, "", None)
        return Group("g", "t", 0, tuple(replace(one, episode_id=f"{reward}", scored=Scored(reward)) for reward in rewards))

    credit = CreditConfig(filter_on="shaped", min_std=0.01)
    assert build_batch([group(0.5, 0.501)], credit, 1).samples == () != build_batch([group(0.5, 0.6)], credit, 1).samples
    two = build_batch([group(0.5, 0.6), group(0.1, 0.101)], credit, 1, fill=2, skip_short=True)
    assert two.samples == () and set(two.fates.values()) == {"short", "constant"}


def test_the_stage_reads_the_keys_of_srl() -> None:
    """episodes and history are read in load_steps and make_steps."""
    stage = make_stage()
    assert (stage.optim.lr, stage.optim.batch_episodes, stage.train.steps, stage.train.eval_every) == (0.3, 16, 4, 0)
    assert (stage.rollout.max_turns, stage.rollout.fill_groups, stage.rollout.fill_short) == (1, 2, "skip")
    whole = Config(tasks=TasksConfig(suite=Path("none")))
    keys = {"steps": 2, "batch": 3, "rounds": 5, "answers": 4, "history": 1, "min_std": 0.2, "lr": 0.5}
    read = srl_config(whole, SrlConfig(episodes=Path("e"), **keys))  # type: ignore[arg-type]
    assert (read.train.steps, read.rollout.tasks_per_step, read.rollout.fill_groups, read.rollout.fill_rounds) == (2, 3, 3, 5)
    assert (read.rollout.group_size, read.credit.min_std, read.optim.lr, read.optim.batch_episodes) == (4, 0.2, 0.5, 12)


def test_a_pair_of_long_degenerate_actions_ends() -> None:
    code = Path(__file__).read_text()
    assert similarity(" e" * 100_000, code) < 0.2
    begin = time.process_time()
    for one, other in (("aab", "abb"), ("ab", "a"), ("aabab", "babaa"), ("abcab", "abcba")):
        assert 0.4 < similarity(one * LONGEST, other * LONGEST) < 1.0
    assert time.process_time() - begin < 10, "difflib's own way took 14 s for one of them, and nothing else went on meanwhile"


def test_asking_twice_gives_the_same_answer() -> None:
    world, slot = make_srl_world(), Slot("00000.00000.toy-0#01.03", "00000.00000.toy-0#01")
    play = world.rig.elsewhere
    assert play is not None
    first, second = [asyncio.run(play(world.policy, world.tasks[0], world.rig, slot)) for _ in range(2)]
    assert replace(first, seconds=0, turns=(replace(first.turns[0], seconds_model=0),)) == replace(
        second, seconds=0, turns=(replace(second.turns[0], seconds_model=0),)
    )
    assert first.seconds == first.turns[0].seconds_model > 0
