"""Planning tokens: where grams stand in sampled ids, their emphasis and its placebo, what is told of them, how grams are mined."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.action import parse, prose, prose_spans
from pipeline.batch import build_batch
from pipeline.cli import main
from pipeline.config import Config, CreditConfig, LossConfig, PlanningConfig, TasksConfig
from pipeline.fake import SoftmaxLearner, SoftmaxPolicy
from pipeline.grams import BUILT_IN, Match, find_grams, grams_of, load_grams, mine_grams, write_grams
from pipeline.jobs import start_run
from pipeline.journal import Journal
from pipeline.loss import Tokens, policy_loss
from pipeline.orders import LossStats, measure_phases, merge_stats
from pipeline.packs import Room, pack_samples
from pipeline.planning import draw_placebo, emphasise, mark, plan_batch, read_plan, shannon, stress, token_ranges, top_entropy
from pipeline.prompt import ByteTemplate, Chat, ModelTemplate
from pipeline.train import train
from pipeline.types import Batch, Completion, Episode, Group, Sample, Stop, Turn
from tasks import Outcome, Verdict
from tests.toy_loop import CHAT, RIGHT, SUBMIT, WRONG, make_config, make_world

GRAMS = ("let me look at", "let me look at the", "the root cause is", "we should check")
LEARNER = SoftmaxLearner(CHAT, (RIGHT,))


def turn_of(text: str, prompt: tuple[int, ...] = (257, 65, 256), chat: Chat = CHAT) -> Turn:
    ids = tuple(chat.write(text))
    call = parse(text)
    return Turn(
        prompt, Completion(ids, (-0.1,) * len(ids), text, 0, True), call if not hasattr(call, "message") else None, "let me look at this"
    )  # type: ignore[arg-type]


def episode_of(texts: list[str], reward: bool = True, name: str = "e") -> Episode:
    turns, prompt = list[Turn](), (257, 65, 256)
    for text in texts:
        turns.append(turn_of(text, prompt))
        prompt = tuple(CHAT.extend(prompt, turns[-1].completion, turns[-1].observation))
    return Episode(name, "g", "t", tuple(turns), Stop.SUBMITTED, "", Verdict("t", Outcome.RESOLVED if reward else Outcome.UNRESOLVED))


def planned(texts: list[str], grams: Path, **keys: Any) -> tuple[Batch, dict[str, float]]:
    """A batch of two episodes, the first resolved with these texts."""
    group = Group("g", "t", 0, (episode_of(texts, name="a"), episode_of([WRONG, SUBMIT], reward=False, name="b")))
    batch = build_batch([group], CreditConfig(length_threshold=8), 8)
    return plan_batch(batch, [group], CHAT, PlanningConfig(grams=grams, **keys))


@pytest.fixture
def grams(tmp_path: Path) -> Path:
    path = tmp_path / "grams.txt"
    path.write_text("\n".join(GRAMS) + "\n")
    return path


def marked_text(sample: Sample) -> str:
    assert sample.planning_T is not None
    return bytes((np.where(sample.planning_T, sample.ids_T, ord("_")) % 256).astype(np.uint8)).decode("latin-1")


# ------------------------------------------------------------------------------------------------ where they stand


def test_grams_are_found_whatever_the_case_across_lines_and_the_longest_first() -> None:
    text = "LET me\n look, at the file. The root cause is it. Outlet me look at."
    assert [(found.gram, text[found.start : found.end]) for found in find_grams(text, GRAMS)] == [
        ("let me look at the", "LET me\n look, at the"),
        ("the root cause is", "The root cause is"),
    ]
    assert find_grams("Let\u2019s see it", ["let's see it"]) == [Match(0, 12, "let's see it")]
    assert find_grams("we should checkout", GRAMS) == find_grams("", GRAMS) == []


@given(st.lists(st.sampled_from(["let me look at", "é", "漢字", "🙂", " ", "x", "we should check", "\n"]), max_size=12))
def test_a_gram_s_bytes_are_found_among_any_others(parts: list[str]) -> None:
    turn = turn_of("".join(parts))
    plan = read_plan(turn, CHAT, GRAMS)
    for found, (first, end) in zip(plan.matches, plan.ranges, strict=True):
        assert bytes(turn.completion.ids[first:end]).decode() == turn.completion.text[found.start : found.end]


def test_a_real_tokenizer_s_tokens_of_a_gram_cover_it_and_little_more(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    chat = Chat(ModelTemplate(AutoTokenizer.from_pretrained(str(smollm2))))
    for text in ("Let me look at the file.", "🙂🙂 漢字: let me look at é", "x" * 300 + " we should check\nthe root cause is 🙂"):
        ids = chat.template.encode(text)
        for found in find_grams(text, GRAMS):
            ((first, end),) = token_ranges(chat.template, ids, [found])
            covered, wanted = chat.template.decode(ids[first:end]), text[found.start : found.end]
            assert wanted in covered and len(covered) <= len(wanted) + 1, (covered, wanted)


def test_actions_and_observations_never_plan(grams: Path) -> None:
    action = "```bash\necho let me look at\n```"
    batch, told = planned([f"Let me look at it.\n{action}\nwe should check", RIGHT], grams, cap=1.0)
    (first, _) = batch.samples
    assert marked_text(first).replace("_", "") == "Let me look at" + "we should check"
    assert told["planning/matches"] == 2 and "let me look at" in CHAT.template.decode(first.ids_T.tolist()[20:])


@given(st.text(alphabet="`ab\n ", max_size=40))
def test_the_spans_beside_actions_are_the_prose(text: str) -> None:
    spans = prose_spans(text)
    assert all(text[start:end] for start, end in spans)
    assert "".join(text[start:end] for start, end in spans).split() == prose(text).split()
    tagged = f"a{text}<tool_call>b</tool_call>c"
    assert "".join(tagged[start:end] for start, end in prose_spans(tagged, "tool_json")) == f"a{text}c"


def test_a_turn_whose_ids_are_not_in_the_sample_marks_nothing() -> None:
    episode = episode_of(["let me look at it"])
    plans = [read_plan(turn, CHAT, GRAMS) for turn in episode.turns]
    (sample,) = build_batch([Group("g", "t", 0, (episode, episode_of([WRONG], False, "b")))], CreditConfig(), 8).samples[:1]
    assert mark(sample, episode.turns, plans).planning_T.sum() == len("let me look at")  # type: ignore[union-attr]
    other = replace(sample, ids_T=sample.ids_T + 1)
    assert mark(other, episode.turns, plans).planning_T.sum() == 0  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------ emphasis


def sample_of(advantages: list[float], planning: list[int], mask: list[int] | None = None) -> Sample:
    size = len(advantages)
    mask_T = np.array(mask if mask is not None else [1] * size, dtype=bool)
    return Sample("e", "g", np.arange(size), mask_T, np.zeros(size, np.float32), np.array(advantages, np.float32), np.array(planning, bool))


def test_a_positive_advantage_becomes_1_2_and_a_negative_one_minus_0_8() -> None:
    batch = Batch((sample_of([1, 1, -1, -1, 0], [1, 0, 1, 0, 1]),))
    (raised,) = emphasise(batch, PlanningConfig(emphasis="hicra"), LEARNER, (0, 0)).samples
    np.testing.assert_allclose(raised.advantages_T, [1.2, 1, -0.8, -1, 0], rtol=1e-6)


@pytest.mark.parametrize("keys", [{"emphasis": "off"}, {"emphasis": "hicra", "alpha": 0.0}, {"emphasis": "random", "alpha": 0.0}])
def test_without_alpha_the_batch_is_the_same_to_the_bit(keys: dict[str, Any]) -> None:
    batch = Batch((sample_of([1, -1], [1, 1]),))
    assert emphasise(batch, PlanningConfig(**keys), LEARNER, (0, 0)).digest == batch.digest


def test_without_a_gram_the_batch_is_the_same_to_the_bit_and_that_is_told(grams: Path, caplog: pytest.LogCaptureFixture) -> None:
    batch, told = planned([RIGHT, SUBMIT], grams, emphasis="hicra")
    assert emphasise(batch, PlanningConfig(grams=grams, emphasis="hicra"), LEARNER, (0, 0)).digest == batch.digest
    assert told["planning/matches"] == told["planning/fraction"] == 0.0 and "planning/semantic_entropy" not in told
    assert "no gram of" in caplog.text


def test_marking_changes_no_digest_and_no_advantage(grams: Path) -> None:
    group = Group("g", "t", 0, (episode_of(["let me look at it"], name="a"), episode_of([WRONG], False, "b")))
    plain = build_batch([group], CreditConfig(), 8)
    marked, _ = plan_batch(plain, [group], CHAT, PlanningConfig(grams=grams, cap=1.0))
    assert marked.digest == plain.digest and any(sample.planning_T is not None and sample.planning_T.any() for sample in marked.samples)


@given(st.lists(st.tuples(st.sampled_from([-1.0, 0.5, 2.0]), st.booleans(), st.booleans()), min_size=1, max_size=30), st.integers(0, 9))
def test_the_placebo_has_the_same_mass_on_tokens_with_loss(tokens: list[tuple[float, bool, bool]], seed: int) -> None:
    mask = [int(masked) for _, masked, _ in tokens]
    sample = sample_of([a if masked else 0.0 for a, masked, _ in tokens], [int(masked and plans) for _, masked, plans in tokens], mask)
    chosen_T = draw_placebo(sample, np.random.default_rng(seed))
    assert not (chosen_T & ~sample.mask_T).any()
    sizes = [Counter(np.abs(sample.advantages_T[which_T]).tolist()) for which_T in (chosen_T, sample.planning_T)]
    assert sizes[0] == sizes[1]
    assert (chosen_T == draw_placebo(sample, np.random.default_rng(seed))).all()


def test_entropy_topk_takes_the_most_uncertain_tokens_with_loss() -> None:
    samples = [sample_of([1] * 5, [0] * 5, [0, 1, 1, 1, 1]), sample_of([-1] * 6, [0] * 6)]
    entropies = [np.array([9.0, 1, 2, 3, 4]), np.array([0.1, 5, 0.2, 0.3, 0.4, 0.5])]
    first, second = top_entropy(samples, entropies, 0.2)
    assert first.tolist() == [False, False, False, False, True] and second.tolist() == [False, True, False, False, False, False]


def test_emphasis_comes_after_the_mean_and_is_not_normalised_away(grams: Path) -> None:
    batch, _ = planned(["let me look at it"], grams, cap=1.0)
    (one, other) = emphasise(batch, PlanningConfig(grams=grams, emphasis="hicra"), LEARNER, (0, 0)).samples
    size = len("let me look at")
    drift = sum(float(sample.advantages_T.sum()) for sample in (one, other)) - sum(float(s.advantages_T.sum()) for s in batch.samples)
    assert drift == pytest.approx(0.2 * size * abs(float(batch.samples[0].advantages_T.max())), rel=1e-5)


def test_the_gradient_changes_on_planning_tokens_alone() -> None:
    """What x[mask1][mask2] *= c would not do."""
    gradients = []
    for alpha in (0.0, 0.2):
        sample = stress(sample_of([1, 1, -1], [1, 0, 1]), np.array([True, False, True]), alpha)
        logprobs = torch.zeros(3, requires_grad=True)
        advantages, weights = torch.from_numpy(sample.advantages_T), torch.full((3,), 1 / 3)
        loss, _ = policy_loss(
            logprobs, torch.ones(3), Tokens(torch.zeros(3), None, advantages, weights, torch.zeros(3, dtype=torch.int64)), LossConfig()
        )
        loss.backward()
        gradients.append(logprobs.grad)
    np.testing.assert_allclose((gradients[1] - gradients[0]) * 3, [-0.2, 0.0, -0.2], atol=1e-6)


def test_planning_tokens_survive_packing() -> None:
    rng = np.random.default_rng(0)
    samples = [
        replace(sample_of(rng.normal(size=n).tolist(), [0] * n), ids_T=rng.integers(0, 9, n), planning_T=rng.random(n) < 0.3)
        for n in (9, 5, 7)
    ]
    for share in pack_samples(samples, Room(12, ranks=2)):
        for pack in share:
            assert pack.planning_M is not None
            for sequence, row in enumerate(pack.rows):
                mine = pack.sequences_M == sequence
                if row >= 0:
                    assert (pack.planning_M[mine] == samples[row].planning_T[pack.tokens_M[mine]]).all()  # type: ignore[index]


# ------------------------------------------------------------------------------------------------ what is told


def test_the_two_kinds_of_tokens_are_told_apart_by_hand() -> None:
    logprobs, entropy = torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    fixed = torch.zeros(4), None, torch.ones(4), torch.full((4,), 0.25), torch.zeros(4, dtype=torch.int64)
    _, stats = policy_loss(logprobs, entropy, Tokens(*fixed, planning_M=torch.tensor([False, True, False, True])), LossConfig())
    told = measure_phases(merge_stats([stats]))
    assert told["planning/entropy"] == pytest.approx(0.3) and told["execution/entropy"] == pytest.approx(0.2)
    assert told["planning/relative_perplexity"] == pytest.approx(math.exp(3.0 - 2.5))
    assert told["execution/relative_perplexity"] == pytest.approx(math.exp(2.0 - 2.5))
    assert told["planning/top_entropy_share"] == pytest.approx(0.5), "of the two, one is in the highest 30 %"
    _, stats = policy_loss(logprobs, entropy, Tokens(*fixed), LossConfig())
    assert set(measure_phases(stats)) == {"execution/entropy", "execution/relative_perplexity"} and measure_phases(LossStats()) == {}


def test_semantic_and_conditional_entropy_by_hand(grams: Path) -> None:
    texts = ["Let me look at the old file. The root cause is `x`.", "let me look at the new file now", "we should check a b c d"]
    _, told = planned(texts, grams)
    assert told["planning/matches"] == 4
    assert (
        told["planning/semantic_entropy"] == pytest.approx(shannon({"look": 2, "cause": 1, "check": 1})) == pytest.approx(1.5 * math.log(2))
    )
    assert told["planning/conditional_entropy"] == pytest.approx(0.5 * math.log(2)), "only what follows 'let me look at the' differs"


def test_too_many_planning_tokens_leave_out_the_gram_that_covers_most(grams: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["let me look at it. let me look at it. let me look at it. we should check" + "." * 60]
    batch, told = planned(texts, grams, cap=0.15)
    assert told["planning/left_out_grams"] == 1 and told["planning/fraction"] <= 0.15
    assert marked_text(batch.samples[0]).replace("_", "") == "we should check"
    assert "let me look at are left out" in caplog.text
    _, whole = planned(texts, grams, cap=1.0)
    assert whole["planning/left_out_grams"] == 0 and whole["planning/fraction"] > 0.15


async def test_every_run_tells_of_plans_and_the_loop_learns_with_each_emphasis(tmp_path: Path) -> None:
    texts = ("Let me look at the file.\n" + RIGHT, "Here is the bug.\n" + WRONG, SUBMIT)
    last = {}
    for emphasis in ("off", "hicra", "random", "entropy_topk"):
        config = make_config(6).model_copy(update={"planning": PlanningConfig(emphasis=emphasis)})
        with Journal(tmp_path / emphasis) as journal:
            await train(config, journal, make_world(texts))
            metrics = journal.steps()[0]
            last[emphasis] = journal.steps()[5]["reward/resolved"]
        assert metrics["planning/matches"] > 0 and metrics["planning/semantic_entropy"] > 0
    assert min(last.values()) > 0.6, last


async def test_a_killed_run_with_emphasis_repeats_its_batches(tmp_path: Path) -> None:
    texts = ("Let me look at the file.\n" + RIGHT, WRONG, SUBMIT)
    weights = []
    for name, ends in (("whole", [4]), ("killed", [1, 3, 4])):
        for end in ends:
            config = make_config(4).model_copy(update={"planning": PlanningConfig(emphasis="random")})
            world = make_world(texts)
            with Journal(tmp_path / name) as journal:
                await train(config.model_copy(update={"train": config.train.model_copy(update={"steps": end})}), journal, world)
        assert isinstance(world.policy, SoftmaxPolicy)
        weights.append(world.policy.weights_A)
    np.testing.assert_array_equal(weights[0], weights[1])


# ------------------------------------------------------------------------------------------------ mining


def test_phrases_hold_no_code_no_paths_and_no_bare_connectives() -> None:
    assert grams_of("I will look at `let me see it` in src/a.py now") == {
        *("will look at", "look at in", "i will look", "i will look at"),
    } - {"look at in"}
    assert grams_of("and then it was in the") == set() and grams_of("Fix it. Now") == set()


def test_mining_finds_the_planted_gram_and_leaves_failures_out() -> None:
    fillers = [
        "alpha beta gamma",
        "red green blue house",
        "one small dog barks loudly",
        "nine tall trees fall",
        "cold rivers run fast north",
    ]
    episodes = [
        episode_of([f"the root cause is here. {fillers[number % 5]} {fillers[number % 3]}\n{RIGHT}"], name=f"good{number}")
        for number in range(8)
    ]
    episodes += [episode_of([f"nothing ever works today\n{WRONG}"], reward=False, name=f"bad{number}") for number in range(9)]
    clusters = mine_grams(episodes)
    found = [gram for one in clusters for gram in one.grams]
    assert "the root cause is" in found and clusters[0].episodes == 8
    assert not any("nothing" in gram for gram in found) and clusters == mine_grams(episodes)
    with pytest.raises(ValueError, match="no phrase of 3 to 5 words comes in two resolved episodes"):
        mine_grams(episodes[8:])


def test_a_mined_file_can_be_read_edited_and_read_again(tmp_path: Path) -> None:
    clusters = mine_grams([episode_of([f"the root cause is here\n{RIGHT}"], name=name) for name in "ab"])
    write_grams(tmp_path / "g.txt", clusters, 2)
    assert set(load_grams(tmp_path / "g.txt")) == {gram for one in clusters for gram in one.grams}
    (tmp_path / "h.txt").write_text("# mine\n  The  Root cause IS  # why\n\nthe root cause is\n")
    assert load_grams(tmp_path / "h.txt") == ("the root cause is",)
    assert len(load_grams(None)) > 40 and BUILT_IN.is_file()


@pytest.mark.parametrize("text", ["", "# nothing\n", "word\n", "two words\nx = 1\n"])
def test_a_file_that_is_no_list_of_grams_is_one_line_and_nothing_is_written(tmp_path: Path, text: str, capsys: Any) -> None:
    (tmp_path / "g.txt").write_text(text)
    (tmp_path / "c.yaml").write_text(f"tasks: {{suite: s}}\nmodel: {{path: m}}\nplanning: {{grams: {tmp_path / 'g.txt'}}}\n")
    assert main(["train", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err.strip()
    assert "g.txt" in told and "\n" not in told and not (tmp_path / "run").exists()


def test_the_command_mines_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path / "run") as journal:
        for name in "ab":
            journal.record_episode(episode_of([f"the root cause is here\n{RIGHT}"], name=name), 0)
    words = ["grams", str(tmp_path / "run"), "--out", str(tmp_path / "g.txt")]
    assert main(words) == 0 and "of 2 episodes" in capsys.readouterr().out
    assert "the root cause is" in (tmp_path / "g.txt").read_text()
    assert main(words) == 2 and "is there already" in capsys.readouterr().err


def test_what_no_emphasis_reads_is_refused() -> None:
    for keys in ({"alpha": 0.5}, {"top": 0.5}, {"emphasis": "hicra", "top": 0.5}):
        with pytest.raises(ValueError, match=r"is not read by planning\.emphasis"):
            PlanningConfig(**keys)
    with pytest.raises(ValueError, match=r"planning\.emphasis is not read with hindsight"):
        Config(tasks=TasksConfig(suite=Path("s")), planning=PlanningConfig(emphasis="hicra"), hindsight={})


def test_marks_in_bytes_of_a_whole_batch(grams: Path) -> None:
    batch, told = planned(["We should check\n" + WRONG, "let me look at\n" + RIGHT], grams)
    assert told["planning/fraction"] == pytest.approx(
        sum(s.planning_T.sum() for s in batch.samples if s.planning_T is not None) / batch.tokens
    )
    assert ByteTemplate().decode(batch.samples[0].ids_T[batch.samples[0].planning_T].tolist()) == "We should checklet me look at"


@pytest.mark.parametrize("section", ["planning", "rollout"])
def test_grams_and_demonstrations_that_were_edited_since_a_run_began_are_told(
    tmp_path: Path, grams: Path, section: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "suite").mkdir()
    keys = {"planning": {"grams": grams}} if section == "planning" else {"rollout": {"demonstration": grams}}
    config = Config.model_validate({"tasks": {"suite": tmp_path / "suite"}, **keys})
    for text in ("", "", "let me think\n"):
        assert "going on although" not in caplog.text
        grams.write_text(grams.read_text() + text)
        start_run(tmp_path / "run", config)
    assert f"going on although {grams} was" in caplog.text
