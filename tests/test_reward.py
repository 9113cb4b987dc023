"""Reward channels: what credit sees may be worse than the truth, and the truth stays beside it."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.batch import build_batch
from pipeline.codec import decode_episode, encode_episode
from pipeline.config import CreditConfig, RewardConfig
from pipeline.config_reward import JudgeConfig
from pipeline.journal import Journal
from pipeline.reward import count_passed, flip_verdict, judge_diff, open_channel, read_score, read_visible, score
from pipeline.train import train
from pipeline.types import Completion, Episode, Group, Scored, Stop, Turn
from tasks import Outcome, Verdict
from tests.test_chat_policy import answer, serving
from tests.toy_loop import CHAT, TEXTS, DyingLearner, make_config, make_task, make_world

TASK = make_task(0)
TURN = Turn((1, 2), Completion((3, 4), (-0.5, -0.1), "x", 0, True), None, "", 0.1)


def episode(name: str = "e", outcome: Outcome = Outcome.UNRESOLVED, patch: str = "x", **tests: str) -> Episode:
    verdict = Verdict(TASK.instance_id, outcome, tests=tests)
    return Episode(name, "g", TASK.instance_id, (TURN,), Stop.INFRA if outcome is Outcome.INFRA else Stop.SUBMITTED, patch, verdict)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("outcome", [Outcome.RESOLVED, Outcome.UNRESOLVED])
def test_noise_is_symmetric_of_its_rate_and_the_same_each_time(rate: float, outcome: Outcome) -> None:
    one = episode(outcome=outcome)
    names = [replace(one, episode_id=str(number)) for number in range(4000)]
    flipped = [asyncio.run(flip_verdict(TASK, named, rate=rate, seed=1)).value != one.reward for named in names[:2000]]
    assert abs(np.mean(flipped) - rate) <= 4 * np.sqrt(rate * (1 - rate) / 2000)
    again = [asyncio.run(flip_verdict(TASK, named, rate=rate, seed=1)).value != one.reward for named in names[:2000]]
    other = [asyncio.run(flip_verdict(TASK, named, rate=rate, seed=2)).value != one.reward for named in names[:2000]]
    assert again == flipped and (rate == 0.0 or other != flipped)


async def test_a_fraction_is_the_share_of_the_task_s_tests_and_1_only_where_it_is_resolved() -> None:
    task = replace(TASK, fail_to_pass=("a", "b"), pass_to_pass=("c", "d"))
    tests = {"a": "PASSED", "b": "FAILED", "c": "XFAIL", "d": "PASSED", "e": "FAILED"}
    assert (await count_passed(task, episode(**tests))).value == 0.75
    assert (await count_passed(task, episode())).value == 0.0, "no test was run"
    assert (await count_passed(task, episode(outcome=Outcome.RESOLVED, a="PASSED"))).value == 1.0
    almost = (await count_passed(task, episode(**{**tests, "b": "PASSED"}))).value
    assert almost is not None and 0.99 < almost < 1.0, "all pass, and the verdict says that it is not resolved (suspect)"


async def test_visible_tests_count_only_where_all_passed_at_the_end() -> None:
    for passed, value in ((1.0, 1.0), (0.99, 0.0), (None, 0.0)):
        assert (await read_visible(TASK, replace(episode(), passed=passed))).value == value


async def test_a_diff_is_looked_at_by_its_text_alone() -> None:
    good = "--- a/calc.py\n+++ b/calc.py\n@@ -1,2 +1,2 @@ def add(a, b):\n-    return a - b\n+    return a + b\n"
    task = replace(TASK, problem_statement="add(1, 1) gives 0")
    assert (await judge_diff(task, episode(patch=good))).value == 1.0
    assert (await judge_diff(task, episode(patch=good.replace("calc.py", "tests/test_calc.py")))).value == pytest.approx(2 / 3)
    assert (await judge_diff(replace(task, problem_statement="no"), episode(patch=good + "+x\n" * 60))).value == pytest.approx(1 / 3)
    assert (await judge_diff(task, episode(patch=""))).value == 0.0
    elsewhere = good.replace("calc.py", "latest.py").replace("def add(a, b):", "for it in these:")
    assert (await judge_diff(replace(task, problem_statement="before it, latest"), episode(patch=elsewhere))).value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SCORE: 2",
        "SCORE: yes",
        "SCORE: 0.5\nSCORE: 0.9",
        "score is 1",
        "SCORE: -0.5",
        "SCORE: nan",
        "+ SCORE: 1",
        "SCORE: 1\nthe patch says so",
        "SCORE:\n1",
    ],
)
def test_nonsense_of_a_judge_is_no_reward(text: str) -> None:
    scored = read_score(text)
    assert scored.value is None and "no line SCORE" in scored.why


def judge(url: str, **keys: object) -> RewardConfig:
    return RewardConfig(kind="judge", judge=JudgeConfig.model_validate({"url": url, **keys}))


async def test_a_judge_sees_statement_and_diff_and_its_number_is_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with serving(lambda body: answer("It is right.\nSCORE: 0.75")) as (url, asked):
        async with open_channel(judge(url, model="j", key_env="JUDGE_KEY"), seed=0) as channel:
            scored = await score(channel, TASK, episode(patch="--- the diff ---"))
            untouched = await score(channel, TASK, episode(patch=""))
    assert scored.signal == 0.75 and scored.reward == 0.0 and untouched.signal == 0.0
    (one,) = asked
    assert one["model"] == "j" and one["key"] == "Bearer secret"
    assert (
        "add is wrong" in one["messages"][1]["content"] and "--- the diff ---" in one["messages"][1]["content"] and one["temperature"] == 0
    )


@pytest.mark.parametrize("how", ["nonsense", "no text", "slow", "broken"])
async def test_a_judge_without_an_answer_is_counted_and_no_one_trains_on_the_episode(how: str, caplog: pytest.LogCaptureFixture) -> None:
    def reply(body: dict) -> tuple[int, dict[str, str], object]:
        if how == "slow":
            import time

            time.sleep(1.0)
        if how == "no text":
            return answer(message={"role": "assistant", "content": [{"type": "image"}]})
        return (500, {}, {}) if how == "broken" else answer("I would merge it.")

    members = [episode(str(number), Outcome.RESOLVED if number else Outcome.UNRESOLVED) for number in range(4)]
    with serving(reply) as (url, _):
        async with open_channel(judge(url, attempts=1, request_seconds=0.3), seed=0) as channel:
            members[0] = await score(channel, TASK, members[0])
    assert members[0].scored is not None and members[0].scored.value is None and members[0].signal is None
    assert "0 is left out of training: the reward channel gave nothing" in caplog.text
    batch = build_batch([Group("g", TASK.instance_id, 0, tuple(members))], CreditConfig(), 8)
    assert batch.metrics["batch/unjudged_episodes"] == 1 and batch.metrics["batch/infra_episodes"] == 0
    assert batch.metrics["reward/resolved"] == 0.75 and batch.metrics["reward/gap"] == 0.0, "the truth is of all, the gap of the judged"
    assert batch.fates["0"] == "unjudged" and "0" not in {sample.episode_id for sample in batch.samples}


async def test_what_the_infrastructure_failed_has_no_reward_in_any_channel() -> None:
    failed = episode(outcome=Outcome.INFRA)
    for config in (
        RewardConfig(kind="noise"),
        RewardConfig(kind="fraction"),
        RewardConfig(kind="visible_tests"),
        RewardConfig(kind="diff"),
    ):
        async with open_channel(config, seed=0) as channel:
            assert channel is not None and (await score(channel, TASK, failed)) is failed
    assert failed.signal is None


def test_credit_sees_the_channel_and_the_truth_is_logged_beside() -> None:
    members = [episode(str(number), Outcome.RESOLVED if number < 1 else Outcome.UNRESOLVED) for number in range(4)]
    turned = [replace(one, scored=Scored(1.0 - (one.reward or 0.0))) for one in members]
    plain, other = [build_batch([Group("g", "t", 0, tuple(group))], CreditConfig(), 8) for group in (members, turned)]
    assert (plain.metrics["reward/resolved"], plain.metrics["reward/channel"], plain.metrics["reward/gap"]) == (0.25, 0.25, 0.0)
    assert (other.metrics["reward/resolved"], other.metrics["reward/channel"], other.metrics["reward/gap"]) == (0.25, 0.75, 0.5)
    np.testing.assert_allclose(plain.samples[0].advantages_T, -other.samples[0].advantages_T, rtol=1e-6)


def test_the_default_channel_leaves_a_batch_as_it_was_to_the_bit() -> None:
    members = [episode(str(number), Outcome.RESOLVED if number < 1 else Outcome.UNRESOLVED) for number in range(4)]
    truth = [replace(one, scored=Scored(one.reward)) for one in members]
    plain, told = [build_batch([Group("g", "t", 0, tuple(group))], CreditConfig(), 8) for group in (members, truth)]
    assert plain.digest == told.digest and encode_episode(members[0]) == encode_episode(replace(members[0], scored=None))


def test_the_channel_s_word_is_kept_with_the_episode() -> None:
    for scored in (Scored(0.25), Scored(None, "no answer"), None):
        kept = replace(episode(), scored=scored, passed=0.5)
        assert decode_episode(encode_episode(kept)).scored == scored and decode_episode(encode_episode(kept)).passed == 0.5


async def test_the_loop_learns_by_a_noisy_channel_and_logs_the_truth(tmp_path: Path) -> None:
    rates, gaps = [], []
    for seed in range(4):
        world = make_world()
        async with open_channel(RewardConfig(kind="noise", flip=0.1), seed) as channel:
            with Journal(tmp_path / str(seed)) as journal:
                await train(make_config(12, seed), journal, replace(world, rig=replace(world.rig, channel=channel)))
                rates.append([journal.steps()[step]["reward/resolved"] for step in (0, 11)])
                gaps += [metrics["reward/gap"] for metrics in journal.steps().values()]
                assert all(one.scored is not None for one in journal.episodes())
    assert np.mean([after - before for before, after in rates]) > 0.2, rates
    assert any(gaps)


async def test_a_resumed_run_asks_the_judge_about_no_episode_twice(tmp_path: Path) -> None:
    def reply(body: dict) -> tuple[int, dict[str, str], object]:
        return answer(f"SCORE: {1.0 if 'a + b' in body['messages'][1]['content'] else 0.0}")

    with serving(reply) as (url, asked):
        async with open_channel(judge(url), seed=0) as channel:
            for learner in (DyingLearner(CHAT, TEXTS), None):
                world = make_world(learner=learner)
                world = replace(world, rig=replace(world.rig, channel=channel))
                with Journal(tmp_path) as journal:
                    if learner is None:
                        await train(make_config(4), journal, world)
                        judged = [one for one in journal.episodes() if one.patch]
                    else:
                        with pytest.raises(KeyboardInterrupt):
                            await train(make_config(4), journal, world)
                        assert journal.rows()
    assert len(asked) == len(judged) and all(one.signal == one.reward for one in judged)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"kind": "fraction", "flip": 0.2}, "flip is read only by reward.kind noise"),
        ({"kind": "judge"}, "set reward.judge.url"),
        ({"kind": "diff", "judge": {"url": "http://x"}}, "judge is read only by reward.kind judge"),
    ],
)
def test_a_key_that_the_channel_does_not_read_is_an_error(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RewardConfig.model_validate(keys)
