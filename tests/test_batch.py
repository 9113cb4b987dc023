"""Groups -> samples: merging, masks, what is dropped, and U9 and U10."""

import numpy as np
import pytest

from pipeline.batch import build_batch, split_history, weigh_samples
from pipeline.config import CreditConfig
from pipeline.stages.rft import rft_samples
from pipeline.types import Completion, Episode, Group, Sample, Stop, ToolCall, Turn
from tasks import Outcome, Verdict

CONFIG = CreditConfig(length_threshold=8)
CALL = ToolCall("bash", {"command": "true"})


def turn(prompt, ids, call=CALL):
    return Turn(tuple(prompt), Completion(tuple(ids), tuple(-0.1 * i for i in ids), "", 0, True), call, "")


def attempt(turns, outcome=Outcome.UNRESOLVED, stop=Stop.SUBMITTED, name="e", group="g"):
    verdict = None if outcome is None else Verdict("task", outcome)
    return Episode(name, group, "task", tuple(turns), stop, "", verdict)


def group_of(*episodes, name="g"):
    return Group(name, "task", 0, tuple(episodes))


THREE = [turn([5, 6], [7, 2]), turn([5, 6, 7, 2, 8], [9]), turn([5, 6, 7, 2, 8, 9, 4, 4], [3, 2])]
FAILED = attempt([turn([5, 6], [1])], name="failed")


def test_an_episode_becomes_one_sample_whose_ids_are_those_that_were_sampled():
    batch = build_batch([group_of(attempt(THREE, Outcome.RESOLVED), FAILED)], CONFIG, 8)
    sample = batch.samples[0]
    assert sample.ids_T.tolist() == [5, 6, 7, 2, 8, 9, 4, 4, 3, 2]
    assert sample.mask_T.tolist() == [False, False, True, True, False, True, False, False, True, True]
    np.testing.assert_allclose(sample.logprobs_T, [0, 0, -0.7, -0.2, 0, -0.9, 0, 0, -0.3, -0.2], rtol=1e-6)
    np.testing.assert_allclose(sample.advantages_T, sample.mask_T * 1.0, rtol=1e-5)
    np.testing.assert_allclose(batch.samples[1].advantages_T, [0, 0, -1], rtol=1e-5)
    assert batch.tokens == 6


def test_rewritten_history_starts_a_new_sample_and_every_sampled_token_counts_once():
    rewritten = [*THREE[:2], turn([5, 8, 9], [3])]
    assert split_history(rewritten) == [[0, 1], [2]]
    samples = build_batch([group_of(attempt(rewritten, Outcome.RESOLVED), FAILED)], CONFIG, 8).samples[:2]
    assert [s.ids_T.tolist() for s in samples] == [[5, 6, 7, 2, 8, 9], [5, 8, 9, 3]]
    assert samples[1].mask_T.tolist() == [False, False, False, True]
    assert sum(int(s.mask_T.sum()) for s in samples) == 4


def test_cutting_an_episode_into_samples_changes_no_advantage():
    whole = build_batch([group_of(attempt(THREE, Outcome.RESOLVED), FAILED)], CONFIG, 8)
    cut = build_batch([group_of(attempt([*THREE[:2], turn([5], [3, 2])], Outcome.RESOLVED), FAILED)], CONFIG, 8)
    values = [np.concatenate([s.advantages_T[s.mask_T] for s in batch.samples]) for batch in (whole, cut)]
    np.testing.assert_array_equal(values[0], values[1])


@pytest.mark.parametrize("hidden", [Outcome.RESOLVED, Outcome.UNRESOLVED, Outcome.INFRA, None])
def test_u10_an_infra_episode_s_reward_changes_nothing(hidden):
    graded = [attempt(THREE, Outcome.RESOLVED, name="a"), attempt(THREE[:1], name="b")]
    without = build_batch([group_of(*graded)], CONFIG, 8)
    with_infra = build_batch([group_of(*graded, attempt(THREE, hidden, Stop.INFRA, "c"))], CONFIG, 8)
    assert len(with_infra.samples) == 2
    for left, right in zip(without.samples, with_infra.samples, strict=True):
        np.testing.assert_array_equal(left.advantages_T, right.advantages_T)
    assert with_infra.metrics["batch/infra_episodes"] == 1
    assert with_infra.metrics["reward/resolved"] == 0.5


def test_u10_a_group_is_not_mixed_by_its_infra_episode():
    batch = build_batch([group_of(FAILED, FAILED, attempt(THREE, Outcome.RESOLVED, Stop.INFRA))], CONFIG, 8)
    assert batch.samples == () and batch.metrics["batch/dropped_constant"] == 1


def test_a_step_without_signal_is_an_empty_batch_with_its_reasons():
    ungraded = attempt(THREE, None, Stop.INFRA)
    batch = build_batch([group_of(FAILED, FAILED), group_of(ungraded, ungraded), group_of(FAILED, ungraded)], CONFIG, 8)
    assert batch.samples == () and batch.tokens == 0
    assert batch.metrics["batch/dropped_constant"] == 1 and batch.metrics["batch/too_few_graded"] == 2
    assert batch.metrics["batch/mixed_groups"] == 0 and batch.metrics["reward/resolved"] == 0
    assert "reward/resolved" not in build_batch([group_of(ungraded)], CONFIG, 8).metrics
    assert build_batch([], CONFIG, 8).samples == ()


def test_truncated_episodes_are_kept_by_default_and_lose_only_their_loss_on_drop():
    looped = attempt(THREE, stop=Stop.MAX_TURNS, name="looped")
    groups = [group_of(attempt(THREE, Outcome.RESOLVED, name="solved"), looped, FAILED)]
    kept = build_batch(groups, CONFIG, 8)
    dropped = build_batch(groups, CreditConfig(length_threshold=8, truncated="drop"), 8)
    assert [s.episode_id for s in kept.samples] == ["solved", "looped", "failed"]
    assert [s.episode_id for s in dropped.samples] == ["solved", "failed"]
    np.testing.assert_array_equal(kept.samples[0].advantages_T, dropped.samples[0].advantages_T)
    assert kept.metrics["batch/truncated_rate"] == pytest.approx(1 / 3)


def test_u9_fine_tuning_masks_the_malformed_turn_and_keeps_it_in_the_context():
    malformed = [THREE[0], turn(THREE[1].prompt, THREE[1].completion.ids, call=None), THREE[2]]
    (sample,) = rft_samples([attempt(malformed, Outcome.RESOLVED), FAILED, attempt(THREE, Outcome.RESOLVED, Stop.INFRA)])
    assert sample.ids_T.tolist() == [5, 6, 7, 2, 8, 9, 4, 4, 3, 2]
    assert sample.mask_T.tolist() == [False, False, True, True, False, False, False, False, True, True]


def test_rl_masks_nothing_by_format():
    malformed = [turn([5], [6], call=None)]
    batch = build_batch([group_of(attempt(malformed, Outcome.RESOLVED), FAILED)], CONFIG, 8)
    assert batch.samples[0].mask_T.tolist() == [False, True]
    assert batch.metrics["batch/format_error_rate"] == 0.5


def row(length, sampled, group="g"):
    mask_T = np.arange(length) >= length - sampled
    return Sample("e", group, np.arange(length), mask_T, np.zeros(length, np.float32), mask_T.astype(np.float32))


def test_weights_sum_to_one_over_all_tokens_or_over_each_group():
    samples = [row(12, 10, "a"), row(20, 10, "a"), row(1000, 980, "b")]
    tokens_S = np.array([10, 10, 980])
    by_token, by_group = weigh_samples(samples, "token"), weigh_samples(samples, "group")
    np.testing.assert_allclose(by_token * tokens_S, [0.01, 0.01, 0.98])
    np.testing.assert_allclose(by_group * tokens_S, [0.25, 0.25, 0.5])
