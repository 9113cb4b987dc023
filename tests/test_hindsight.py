"""Evaluative and directive feedback: what a turn's next state says, what no hint may say, and the advantages that come of it."""

import importlib.util
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline.codec import decode_episode, encode_episode
from pipeline.config import Config, HindsightConfig, RolloutConfig, TasksConfig, TrainConfig
from pipeline.config_io import dump_config
from pipeline.config_reward import JudgeConfig
from pipeline.fake import SoftmaxLearner, find_answers
from pipeline.hints import find_fault, find_secrets, leaks, rate_turn, read_hint
from pipeline.journal import Journal
from pipeline.jury import count_majority, open_jury, read_vote
from pipeline.ledger import check_run
from pipeline.stages.hindsight import Lesson, Source, learn, plan_lesson, score_twins
from pipeline.train import World, train
from pipeline.types import Batch, Completion, Episode, Group, Likeliest, Sample, Stop, ToolCall, Turn
from tasks import Outcome, Suite, Verdict, export_suite
from tests.test_chat_policy import answer, serving
from tests.toy_loop import CHAT, TEXTS, WRONG, make_config, make_task, make_world

TASK = make_task(0)
BASH, EDIT, VIEW, SUBMIT = (ToolCall(name, {}) for name in ("bash", "edit", "view", "submit"))
FAILED = (
    "F   [100%]\n>       assert add(1, 1) == 2\nE       assert 0 == 2\nE        +  where 0 = add(1, 1)\n\n1 failed in 0.1s\n[exit code 1]"
)
RAISED = "Traceback (most recent call last):\n  File \"a.py\", line 1, in <module>\nKeyError: 'x'\n[exit code 1]"
MISSED = "error: the old text does not occur in calc.py; the nearest is line 2: return a - b"
BROKEN = "edited calc.py, line 2\nwarning: the file does not parse now: line 2: invalid syntax"


def turn(call: ToolCall | None, observation: str, passed: float | None = None, text: str = "x") -> Turn:
    ids = tuple(CHAT.write(text))
    return Turn(tuple(CHAT.start_prompt(TASK)), Completion(ids, (0.0,) * len(ids), text, 0, True), call, observation, passed=passed)


def chain(*steps: tuple[ToolCall | None, str, str], name: str = "e", group: str = "g") -> Episode:
    """An episode whose prompts grow as the rollout's do; steps are (call, observation, text)."""
    prompt, turns = CHAT.start_prompt(TASK), list[Turn]()
    for call, observation, text in steps:
        one = replace(turn(call, observation, text=text), prompt=tuple(prompt))
        turns.append(one)
        prompt = CHAT.extend(prompt, one.completion, observation)
    return Episode(name, group, TASK.instance_id, tuple(turns), Stop.SUBMITTED, "", Verdict(TASK.instance_id, Outcome.UNRESOLVED))


END = (SUBMIT, "submitted", "end")


def configured(**keys: object) -> Config:
    return make_config(4).model_copy(update={"hindsight": HindsightConfig.model_validate(keys)})


def planned(*episodes: Episode, task=TASK, context: int = 10_000, **keys: object) -> Lesson:  # type: ignore[no-untyped-def]
    return plan_lesson(configured(**keys), Source(CHAT, context, [task]), [Group("g", TASK.instance_id, 0, episodes)], 0)


class Reading(SoftmaxLearner):
    """A learner that reads: an answer is likelier by e^2 right after a text that has `word` in its last message; keeps its batches."""

    def __init__(self, texts: Sequence[str] = TEXTS, word: str = "hint", lr: float = 1.0) -> None:
        super().__init__(CHAT, texts, lr)
        self.word, self.seen, self.calls = word, list[Batch](), list[int]()

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        self.calls.append(len(samples))
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> np.ndarray:
        ids = sample.ids_T.tolist()
        scores_T = np.zeros(len(ids), np.float32)
        for start, choice in find_answers(self.model, ids):
            last = CHAT.template.decode(ids[:start][-400:])
            weights_A = self.model.weights_A + 2.0 * (np.arange(len(self.model.texts)) == 0) * (f"[A {self.word}" in last)
            scores_T[start] = weights_A[choice] - np.logaddexp.reduce(weights_A)
        return scores_T

    def step(self, batch: Batch) -> dict[str, float]:
        self.seen.append(batch)
        return super().step(batch)


# ------------------------------------------------------------------------------------------------ rules


@pytest.mark.parametrize(
    ("one", "rated", "told"),
    [
        (turn(None, "Format error: No fenced block found.\nmore"), -1, "Format error: No fenced block found."),
        (turn(EDIT, MISSED), -1, MISSED),
        (turn(EDIT, BROKEN), -1, "warning: the file does not parse now: line 2: invalid syntax"),
        (turn(EDIT, "edited calc.py, line 2"), 0, ""),
        (turn(VIEW, "error: no such file: a.py"), -1, "error: no such file: a.py"),
        (turn(VIEW, "a.py lines 1-1 of 1:\nraise KeyError"), 0, ""),
        (turn(BASH, RAISED), -1, "KeyError: 'x'"),
        (turn(BASH, 'File "a.py", line 1\n  def\n     ^\nSyntaxError: invalid syntax\n[exit code 1]'), -1, "SyntaxError: invalid syntax"),
        (turn(BASH, "sh: pytset: not found\n[exit code 127]"), -1, "sh: pytset: not found [exit code 127]"),
        (turn(BASH, "[stopped after 20 s: over the time limit]"), -1, "[stopped after 20 s: over the time limit]"),
        (turn(BASH, "[exit code 137: out of memory]"), -1, "[exit code 137: out of memory]"),
        (turn(BASH, f"{RAISED.removesuffix('1]')}0]"), 0, ""),
        (turn(BASH, "[exit code 1]"), 0, ""),
        (turn(BASH, FAILED), 0, ""),
        (turn(SUBMIT, "submitted"), 0, ""),
    ],
)
def test_a_turn_is_blamed_for_what_it_did_wrong_itself_and_told_so(one: Turn, rated: int, told: str) -> None:
    turns = [one, turn(SUBMIT, "submitted")]
    assert rate_turn(turns, 0) == rated and find_fault(turns, 0) == read_hint(turns, 0) == told
    assert read_hint([one], 0) == "", "the last turn has no state after it"


@pytest.mark.parametrize(("before", "after", "rated"), [(0.5, 0.75, 1), (0.5, 0.25, -1), (0.5, 0.5, -1), (None, 0.5, -1), (0.5, None, -1)])
def test_the_visible_tests_have_the_last_word_where_they_changed(before: float | None, after: float | None, rated: int) -> None:
    assert rate_turn([turn(BASH, RAISED, passed=before), turn(SUBMIT, "submitted", passed=after)], 0) == rated


@pytest.mark.parametrize(
    ("observation", "told"),
    [
        (FAILED, "assert 0 == 2\n+  where 0 = add(1, 1)"),
        ("E     [100%]\nE   ImportError: no\n1 error in 0.1s\n[exit code 2]", "ImportError: no"),
        ('E       File "calc.py", line 2\nE   SyntaxError: bad\n1 error in 0.1s\n[exit code 2]', "SyntaxError: bad"),
        ("...\n2 failed, 1 passed in 0.1s\n[exit code 0]", "2 failed, 1 passed in 0.1s"),
        (RAISED, "KeyError: 'x'"),
        ("3 passed in 0.1s\n[exit code 0]", ""),
        ("cat: calc.pi: No such file or directory\n[exit code 1]", ""),
    ],
)
def test_what_a_run_after_an_edit_shows_is_the_edit_s_hint_and_no_other_turn_s(observation: str, told: str) -> None:
    after = turn(BASH, observation)
    assert read_hint([turn(EDIT, "edited calc.py, line 2"), after, after], 0) == told
    assert read_hint([turn(VIEW, "calc.py lines 1-1 of 1:\nx"), after, after], 0) == ""
    tried = [turn(EDIT, "edited calc.py, line 2"), after, after]
    assert bool(find_fault(tried, 1)) is ("No such file" in observation), "what tries an edit is blamed for its own mistakes alone"
    assert read_hint([turn(EDIT, MISSED), after, after], 0) == MISSED, "its own observation comes first"


SECRET = replace(
    TASK,
    gold_patch="--- a/calc.py\n+++ b/calc.py\n@@ -1,2 +1,2 @@\n def add(a, b):\n-    return a - b\n+    return a + b\n+    return None\n",
    test_patch="+++ b/test_calc.py\n+def test_carry():\n+    assert add(999, 1) == 1000, 'a carry over three digits'\n",
)


@pytest.mark.parametrize(
    ("hint", "seen", "leaking"),
    [
        ("NameError: return  a + b", "", True),
        ("E   assert add(999, 1) == 1000, 'a carry", "", True),
        ("999, 1) == 1000, 'a carry over", "", True),
        ("NameError: return a+b", "", True),
        ('assert add( 999,1 )==1000 , "a carry over', "", True),
        (r"msg: 'assert add(999, 1) == 1000, \'a carry over'", "", True),
        ("a return  a + b", "1: return a\n + b", False),
        ("AssertionError: return a - b", "", False),
        ("TypeError: return None", "", False),
        ("assert 0 == 2", "", False),
        ("b/calc.py", "", False),
    ],
)
def test_a_planted_leak_is_found_unless_the_agent_had_seen_it_itself(hint: str, seen: str, leaking: bool) -> None:
    assert leaks(hint, find_secrets(SECRET), seen) is leaking


# ------------------------------------------------------------------------------------------------ advantages


def test_a_hint_stands_right_before_its_turn_and_no_sampled_id_is_made_again() -> None:
    odd = Completion((104, 105, 300, 256), (-1.0,) * 4, "hi", 0, True)  # 300: an id that no text gives
    first = chain((EDIT, "edited calc.py, line 2", "one"), (EDIT, MISSED, "two"), END)
    second = replace(first.turns[1], completion=odd)
    third = replace(first.turns[2], prompt=tuple(CHAT.extend(second.prompt, odd, MISSED)))
    lesson = planned(replace(first, turns=(first.turns[0], second, third)))
    (twin,) = lesson.twins
    ids = tuple(twin.sample.ids_T.tolist())
    assert ids[-4:] == odd.ids and twin.sample.mask_T.tolist() == [False] * (len(ids) - 4) + [True] * 4
    told = CHAT.template.decode(ids)
    assert told.endswith(f"edited calc.py, line 2\n\n[A hint for the next turn, from what came of it: {MISSED}]hi")
    assert ids[: len(second.prompt) - 2] == second.prompt[:-2], "what was seen before is unchanged"
    assert lesson.batch.samples[twin.row].ids_T[twin.start : twin.start + 4].tolist() == list(odd.ids)


def test_without_a_hint_the_directive_part_is_exactly_zero_and_the_last_turn_carries_no_loss() -> None:
    episode = chain((EDIT, MISSED, WRONG), (VIEW, "calc.py lines 1-1 of 1:\nx", WRONG), (EDIT, MISSED, WRONG))
    lesson, learner = planned(episode), Reading()
    (sample,) = lesson.batch.samples
    (part_T,) = score_twins(learner, lesson)
    first, second, last = (len(one.prompt) for one in episode.turns)
    assert part_T[first] < 0 and not np.delete(part_T, first).any()
    assert sample.mask_T[first] and sample.mask_T[second] and not sample.mask_T[last:].any()
    assert (sample.advantages_T[first], sample.advantages_T[second], sample.advantages_T[last]) == (-1.0, 0.0, 0.0)
    assert learner.calls == [2], "both terms come from one call of one backend"


def test_the_two_parts_add_up_with_their_weights_and_one_alone_is_itself() -> None:
    episode = chain((EDIT, MISSED, WRONG), END)
    log_p, hinted = np.log(1 / 3), -np.log(2 + np.exp(2.0))
    for w_b, w_o in [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0), (1.0, 0.0)]:
        learner = Reading()
        lesson = planned(episode, evaluative_weight=w_b, directive_weight=w_o)
        metrics = learn(learner, lesson)
        (sample,) = learner.seen[0].samples
        start = len(episode.turns[0].prompt)
        assert sample.advantages_T[start] == pytest.approx(-w_b + w_o * (hinted - log_p), rel=1e-6)
        assert sample.advantages_T[start + 1] == -w_b, "the rest of the answer follows from its first token, with or without a hint"
        if w_o == 2.0:
            learn(learner, planned(episode, evaluative_weight=w_b, directive_weight=w_o, bound=0.25))
            assert learner.seen[1].samples[0].advantages_T[start] == pytest.approx(-w_b - w_o * 0.25)
        assert bool(learner.calls) is bool(lesson.twins) is bool(w_o), "evaluative alone asks for no log-probs"
        assert ("hindsight/directive_mean" in metrics) is bool(w_o)


def test_a_learner_that_gives_no_finite_score_stops_the_run() -> None:
    class Silent(Reading):
        def _score(self, sample: Sample) -> np.ndarray:
            return np.full(len(sample.ids_T), np.nan, np.float32)

    with pytest.raises(FloatingPointError, match="hinted turn"):
        learn(Silent(), planned(chain((EDIT, MISSED, WRONG), END)))


def test_leaking_and_overlong_hints_are_dropped_and_counted_and_the_turn_keeps_its_r() -> None:
    secret = "assert add(999, 1) == 1000"
    leaking = chain((BASH, f"Traceback (most recent call last):\nAssertionError: {secret}\n[exit code 1]", "x"), END)
    shown = chain((VIEW, f"test_calc.py lines 1-1 of 1:\n{secret}", "x"), *[(one.call, one.observation, "x") for one in leaking.turns])
    lesson = planned(leaking, task=SECRET)
    assert lesson.twins == () and lesson.batch.metrics["hindsight/leaking_hints"] == 1
    assert lesson.batch.samples[0].advantages_T.min() == -1.0
    assert planned(shown, task=SECRET).batch.metrics["hindsight/hinted_turns"] == 1, "the agent had seen it by itself"
    long = planned(leaking, context=len(leaking.turns[0].prompt) + 20)
    assert long.twins == () and long.batch.metrics["hindsight/overlong_hints"] == 1


def test_a_long_hint_is_cut_in_its_middle() -> None:
    (twin,) = planned(chain((EDIT, "error: " + "x" * 100 + "the end", "x"), END), hint_chars=40).twins
    told = CHAT.template.decode(twin.sample.ids_T.tolist())
    assert "error: xxxxxxxxxxxxx\n[... 74 characters left out ...]\nxxxxxxxxxxxxxthe end]" in told


def test_failed_episodes_of_the_infrastructure_and_silent_steps_train_nothing() -> None:
    silent = chain((VIEW, "calc.py lines 1-1 of 1:\nx", "x"), END)
    infra = replace(chain((EDIT, MISSED, "x"), END, name="i"), stop=Stop.INFRA, verdict=Verdict(TASK.instance_id, Outcome.INFRA))
    lesson = planned(silent, infra)
    assert lesson.batch.samples == () and lesson.batch.fates == {"e": "no tokens", "i": "infra"}
    assert lesson.digest == lesson.batch.digest and lesson.batch.metrics["batch/infra_episodes"] == 1
    lone = planned(chain((EDIT, MISSED, "x"), END), infra)
    assert lone.batch.fates == {"e": "trained", "i": "infra"}, "a group of one, all failed, carries a signal"


def test_an_episode_of_a_task_that_is_gone_is_refused() -> None:
    with pytest.raises(ValueError, match="toy-0 is not among this run's tasks"):
        planned(chain((EDIT, MISSED, "x"), END), task=make_task(7))


def test_the_digest_tells_other_hints_apart() -> None:
    one, two = (planned(chain((EDIT, f"{MISSED}{more}", WRONG), END)) for more in ("", "!"))
    plain = replace(two, batch=one.batch)
    assert len({one.digest, plain.digest, replace(one, weight=2.0).digest, replace(one, bound=2.0).digest, one.batch.digest}) == 5
    assert one.digest == planned(chain((EDIT, MISSED, WRONG), END)).digest


def test_rows_of_several_episodes_meet_their_own_samples() -> None:
    members = [chain((EDIT, MISSED, text), END, name=str(number)) for number, text in enumerate(TEXTS)]
    quiet = chain((EDIT, "edited calc.py, line 2", WRONG), END, name="q")
    lesson = planned(members[0], quiet, *members[1:])
    parts = score_twins(Reading(), lesson)
    assert [twin.sample.episode_id for twin in lesson.twins] == [lesson.batch.samples[twin.row].episode_id for twin in lesson.twins]
    assert [float(np.sign(part_T.sum())) for part_T in parts] == [1.0, 0.0, -1.0, -1.0], "the hint speaks for the first answer"


# ------------------------------------------------------------------------------------------------ a bandit


def load_bench(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / "bench" / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def test_hints_that_name_the_right_answer_teach_it_faster_and_another_task_s_hints_do_not() -> None:
    bench = load_bench("hindsight_bandit")
    bandit = bench.Bandit(places=2, digits=3)
    right, shuffled = (bench.play(bandit, hints, bench.FORMS["directive"], 30) for hints in (bandit.rights, bandit.rights[::-1]))
    scalar, both = (bench.play(bandit, bandit.rights, bench.FORMS[form], 30) for form in ("scalar", "both"))
    assert right[0] == pytest.approx(1 / 9) and right[-1] >= 0.9 and len(both) < len(right)
    assert shuffled[-1] < right[0] < scalar[-1] < 0.9


def test_the_top_k_form_of_all_tokens_takes_the_step_of_the_sampled_form_where_the_hint_does_not_depend_on_the_answer() -> None:
    """On average over the answers, which the bandit takes exactly. A hint after wrong answers alone makes two methods of them."""
    bench = load_bench("hindsight_bandit")
    bandit = bench.Bandit(places=2, digits=3)
    forms = [bench.FORMS[name] for name in ("directive", "top-all", "top-2")]
    sampled, whole, two = (bench.play(bandit, bandit.rights, form, 30, always=True) for form in forms)
    np.testing.assert_allclose(whole, sampled, rtol=1e-4)
    np.testing.assert_allclose(two, whole, rtol=1e-4, err_msg="2 of 3 and the rest are 3 of 3")
    after_wrong = [bench.play(bandit, bandit.rights, form, 30)[-1] for form in forms[:2]]
    assert after_wrong[0] >= 0.9 > after_wrong[1]


def test_a_teacher_speaks_at_hinted_tokens_of_loss_alone_and_the_advantages_stay_r() -> None:
    class Ranking(Reading):
        def likeliest(self, samples: Sequence[Sample], count: int) -> list[Likeliest]:
            self.calls.append(len(samples))
            sizes = [(int(sample.mask_T.sum()), count) for sample in samples]
            return [Likeliest(np.arange(h * k).reshape(h, k), np.full((h, k), -2.0, np.float32)) for h, k in sizes]

    episode, learner = chain((EDIT, MISSED, "one"), (VIEW, "calc.py lines 1-1 of 1:\nx", "x"), (EDIT, MISSED, "two"), END), Ranking()
    lesson = planned(episode, top_k=3, directive_weight=0.25)
    metrics = learn(learner, lesson)
    (sample,) = learner.seen[0].samples
    assert (teacher := sample.teacher) is not None and learner.calls == [2], "one call, for the teacher alone"
    told = [place for turn in (episode.turns[0], episode.turns[2]) for place in range(len(turn.prompt), len(turn.prompt) + len("one") + 1)]
    assert teacher.places_H.tolist() == [place for place in told if sample.mask_T[place]] and len(teacher.places_H) == len(told)
    assert teacher.ids_HK.shape == teacher.logprobs_HK.shape == (len(told), 3) and set(teacher.weights_H.tolist()) == {0.25}
    assert teacher.ids_HK[:4].tolist() == np.arange(12).reshape(4, 3).tolist() == teacher.ids_HK[4:].tolist()
    assert set(sample.advantages_T.tolist()) == {-1.0, 0.0} and metrics["hindsight/told_tokens"] == len(told)
    assert lesson.digest != replace(lesson, top_k=4).digest != replace(lesson, top_k=None).digest

    class Silent(Ranking):
        def likeliest(self, samples: Sequence[Sample], count: int) -> list[Likeliest]:
            return [replace(one, logprobs_HK=one.logprobs_HK * np.nan) for one in super().likeliest(samples, count)]

    with pytest.raises(FloatingPointError, match="hinted turn"):
        learn(Silent(), lesson)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"top_k": 0}, "greater than or equal to 1"),
        ({"top_k": 4, "bound": 1.0}, r"hindsight\.bound is not read with hindsight\.top_k"),
        ({"top_k": 4, "directive_weight": 0}, r"hindsight\.top_k is read only with hindsight\.directive_weight > 0"),
    ],
)
def test_a_top_k_that_nothing_reads_is_refused(keys: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HindsightConfig.model_validate(keys)


# ------------------------------------------------------------------------------------------------ the judge


@pytest.mark.parametrize(
    "text", ["", "VOTE: 2", "VOTE: 1", "vote: +1", "VOTE: +1\nVOTE: -1", "I vote: -1 or so", "VOTE: -0.5", "VOTE: +1\nit says", "VOTE:\n0"]
)
def test_nonsense_is_no_vote(text: str) -> None:
    assert read_vote(text) is None


def test_a_majority_is_more_than_half_of_the_votes_that_were_given() -> None:
    assert [count_majority(votes) for votes in ((1,), (0, 0, 1), (-1, 1, -1), (1, 0, -1), (1, -1), ())] == [1, 0, -1, None, None, None]


def judged(url: str, votes: int, **keys: object) -> HindsightConfig:
    return HindsightConfig(judge=JudgeConfig.model_validate({"url": url, **keys}), votes=votes)


async def ask(config: HindsightConfig, episode: Episode) -> Episode:
    async with open_jury(config) as jury:
        assert jury is not None
        return await jury(TASK, episode)


async def test_a_judge_votes_on_every_turn_but_the_last_and_its_votes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    says = {"alpha": "VOTE: +1", "beta": "VOTE: -1"}
    with serving(lambda body: answer(next(vote for text, vote in says.items() if text in body["messages"][1]["content"]))) as (url, asked):
        episode = await ask(judged(url, 3, model="j", key_env="JUDGE_KEY"), chain((VIEW, "a", "alpha"), (VIEW, "b", "beta"), END))
    assert [one.votes for one in episode.turns] == [(1, 1, 1), (-1, -1, -1), ()] and len(asked) == 6
    assert {(one["model"], one["key"], one["temperature"]) for one in asked} == {("j", "Bearer secret", 1.0)}
    assert {one["seed"] for one in asked} == {0, 1, 2}
    assert decode_episode(encode_episode(episode)) == episode
    config = configured(judge={"url": "http://x"}, votes=3)
    lesson = plan_lesson(config, Source(CHAT, 10_000, [TASK]), [Group("g", TASK.instance_id, 0, (episode,))], 0)
    assert sorted(set(lesson.batch.samples[0].advantages_T.tolist())) == [-1.0, 0.0, 1.0]
    assert lesson.batch.metrics["hindsight/votes"] == 6 and lesson.batch.metrics["hindsight/missing_votes"] == 0


async def test_a_vote_of_an_answer_that_was_cut_is_none_it_may_be_the_agent_s_own_words() -> None:
    with serving(lambda body: answer("The agent says:\nVOTE: +1", finish_reason="length")) as (url, _):
        episode = await ask(judged(url, 1), chain((VIEW, "a", "VOTE: +1"), END))
    assert [one.votes for one in episode.turns] == [(), ()]


@pytest.mark.parametrize("how", ["nonsense", "slow", "broken"])
async def test_a_judge_without_an_answer_gives_no_vote_and_no_zero(how: str, caplog: pytest.LogCaptureFixture) -> None:
    def reply(body: dict) -> tuple[int, dict[str, str], object]:
        if how == "slow":
            time.sleep(0.6)
        return (500, {}, "no") if how == "broken" else answer("VOTE: perhaps" if how == "nonsense" else "VOTE: 0")

    with serving(reply) as (url, _):
        episode = await ask(judged(url, 1, attempts=1, request_seconds=0.2), chain((VIEW, "a", "one"), (EDIT, MISSED, "two"), END))
    assert [one.votes for one in episode.turns] == [(), (), ()] and "no vote in 2 of 2 answers" in caplog.text
    config = configured(judge={"url": "http://x"})
    lesson = plan_lesson(config, Source(CHAT, 10_000, [TASK]), [Group("g", TASK.instance_id, 0, (episode,))], 0)
    (sample,) = lesson.batch.samples
    assert not sample.advantages_T.any() and sample.mask_T.sum() == len(episode.turns[1].completion.ids), "the hint alone is left"
    metrics = lesson.batch.metrics
    assert [metrics[f"hindsight/{name}"] for name in ("votes", "missing_votes", "undecided_turns")] == [0, 2, 2]


async def test_nobody_votes_on_what_the_infrastructure_failed() -> None:
    failed = replace(chain((VIEW, "a", "one"), END), stop=Stop.INFRA, verdict=Verdict(TASK.instance_id, Outcome.INFRA))
    with serving(lambda body: answer("VOTE: +1")) as (url, asked):
        assert await ask(judged(url, 1), failed) is failed
    assert asked == []


# ------------------------------------------------------------------------------------------------ the loop


def hinted_world(learner: SoftmaxLearner | None = None) -> World:
    return make_world(learner=learner or Reading())


class Dying(Reading):
    """Dies in its third step."""

    def step(self, batch: Batch) -> dict[str, float]:
        if len(self.seen) == 2:
            raise KeyboardInterrupt
        return super().step(batch)


async def test_the_loop_trains_on_groups_that_all_failed_and_tells_what_it_saw(tmp_path: Path) -> None:
    learner = Reading((WRONG, f"{WRONG}\n"))
    with Journal(tmp_path) as journal:
        await train(configured(), journal, make_world(learner.model.texts, learner))
        steps = journal.steps()
        assert {fate for _, fate in journal.ledger().fates.values()} == {"trained"}
    assert [metrics["reward/resolved"] for metrics in steps.values()] == [0.0] * 4 and len(learner.seen) == 4
    assert all(metrics["hindsight/hinted_turns"] > 0 and metrics["hindsight/bad_rate"] > 0 for metrics in steps.values())
    assert all(metrics["hindsight/directive_abs_mean"] > 0 and metrics["publish/version"] for metrics in steps.values())


@pytest.mark.parametrize("save_every", [1, 5])
async def test_a_run_that_dies_trains_on_the_same_batches_to_the_same_weights(tmp_path: Path, save_every: int) -> None:
    config = configured()
    export_suite(Suite(tmp_path, tuple(make_world().tasks)), "jsonl", tmp_path / "out")
    keys = {
        "train": config.train.model_copy(update={"steps": 5, "save_every": save_every}),
        "tasks": TasksConfig(suite=tmp_path / "out" / "test.jsonl"),
    }
    config = config.model_copy(update=keys)
    whole, resumed = Reading(), Reading()
    with Journal(tmp_path / "whole") as journal:
        await train(config, journal, hinted_world(whole))
        batches = [journal.batch(step) for step in range(5)]
    with Journal(tmp_path / "cut") as journal, pytest.raises(KeyboardInterrupt):
        await train(config, journal, hinted_world(Dying()))
    with Journal(tmp_path / "cut") as journal:
        assert journal.batch(2) == batches[2] and journal.next_step == 2, "it was recorded before the step that it died in"
        await train(config, journal, hinted_world(resumed))
        assert [journal.batch(step) for step in range(5)] == batches
    dump_config(config, tmp_path / "cut" / "config.yaml")
    (ledger,) = check_run(tmp_path / "cut")
    assert ledger.faults == () and ledger.notes == ()
    assert [one.digest for one in whole.seen][-len(resumed.seen) :] == [one.digest for one in resumed.seen]
    np.testing.assert_array_equal(whole.model.weights_A, resumed.model.weights_A)


async def test_a_resumed_run_asks_the_judge_about_no_turn_twice(tmp_path: Path) -> None:
    rollout = RolloutConfig(tasks_per_step=2, group_size=2, max_turns=4)
    config = configured(judge={"url": "http://x"}).model_copy(update={"train": TrainConfig(steps=3), "rollout": rollout})
    with serving(lambda body: answer(f"VOTE: {'+1' if 'a + b' in body['messages'][1]['content'] else '-1'}")) as (url, asked):
        async with open_jury(judged(url, 1)) as jury:
            for learner in (Dying(), Reading()):
                world = hinted_world(learner)
                world = replace(world, rig=replace(world.rig, jury=jury, rollout=rollout))
                with Journal(tmp_path) as journal:
                    try:
                        await train(config, journal, world)
                    except KeyboardInterrupt:
                        assert isinstance(learner, Dying) and journal.rows()
            with Journal(tmp_path) as journal:
                turns = [one for episode in journal.episodes() for one in episode.turns[:-1]]
                steps = journal.steps().values()
    assert len(steps) == 3 and len(asked) == len(turns) and all(len(one.votes) == 1 for one in turns)
    assert sum(metrics["hindsight/votes"] for metrics in steps) == len(asked)
    assert max(metrics["hindsight/good_rate"] for metrics in steps) > 0 == sum(metrics["hindsight/missing_votes"] for metrics in steps)


async def test_without_the_section_a_batch_is_what_credit_makes(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        await train(make_config(1), journal, make_world())
        lesson = plan_lesson(make_config(1), make_world().source, journal.groups(0), 0)
        assert lesson.twins == () and lesson.digest == lesson.batch.digest == journal.batch(0)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"hindsight": {"evaluative_weight": 0, "directive_weight": 0}}, "both 0"),
        ({"hindsight": {"evaluative_weight": 0, "judge": {"url": "http://x"}}}, "judge is read only with"),
        ({"hindsight": {"votes": 3}}, "votes is read only with hindsight.judge"),
        ({"hindsight": {"directive_weight": 0, "hint_chars": 80}}, "hint_chars is read only with"),
        ({"hindsight": {"directive_weight": 0, "bound": 5}}, "bound is read only with"),
        ({"hindsight": {}, "credit": {"kind": "ms_grpo"}}, "takes the place of credit"),
        ({"hindsight": {}, "reward": {"kind": "fraction"}}, "takes the place of credit"),
        ({"hindsight": {}, "rollout": {"fill_groups": 2}}, "every group carries a signal"),
        ({"hindsight": {}, "rft": {"episodes": "r"}}, "leave one out"),
        ({"hindsight": {"hint": 1}}, "Extra inputs"),
    ],
)
def test_what_hindsight_does_not_read_is_an_error(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config.model_validate({"tasks": {"suite": "s"}, **keys})
