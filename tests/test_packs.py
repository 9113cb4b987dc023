"""Packs in which every distinct token stands once: they are whole, small, alike on the ranks, and compute what the flat form computes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.attention import attend_at_once, attend_in_blocks, register_attention, why_not_runs
from pipeline.head import Layout, Scorer, Scoring
from pipeline.packs import FixedLogprobs, Room, count_tokens, pack_samples
from pipeline.tree import grow_tree, order_by_prefix, plan_packs
from pipeline.types import Sample

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
SEQUENCES = st.lists(TOKENS, min_size=1, max_size=9).map(lambda lists: [np.array(ids) for ids in lists])


def count_distinct(sequences):
    """Tokens that differ in themselves or in what stands before them."""
    return len({tuple(ids_T[:length]) for ids_T in sequences for length in range(1, len(ids_T) + 1)})


@given(SEQUENCES)
def test_a_tree_holds_every_distinct_token_once_and_each_sample_whole(sequences):
    ordered = [sequences[index] for index in order_by_prefix(sequences)]
    tree = grow_tree(ordered)
    assert len(tree.ids_N) == count_distinct(sequences)
    for ids_T, places_T in zip(ordered, tree.places, strict=True):
        np.testing.assert_array_equal(tree.ids_N[places_T], ids_T)
        np.testing.assert_array_equal(tree.positions_N[places_T], np.arange(len(ids_T)))


@given(SEQUENCES)
def test_the_past_of_a_token_is_that_of_its_samples(sequences):
    ordered = [sequences[index] for index in order_by_prefix(sequences)]
    tree = grow_tree(ordered)
    seen = {}
    for run in tree.runs:
        path = np.concatenate([np.arange(start, stop) for start, stop in (*run.past, (run.start, run.stop))])
        seen |= {place: path[: np.flatnonzero(path == place)[0]].tolist() for place in range(run.start, run.stop)}
    assert sorted(seen) == list(range(len(tree.ids_N)))
    for places_T in tree.places:
        assert all(seen[place] == places_T[:length].tolist() for length, place in enumerate(places_T.tolist()))


def test_nothing_shared_or_not_wanted_stands_side_by_side():
    tree = grow_tree([np.array([1, 2, 3]), np.array([1, 2, 3])], share=False)
    assert tree.ids_N.tolist() == [1, 2, 3, 1, 2, 3] and [run.past for run in tree.runs] == [(), ()]
    assert grow_tree([np.array([1, 2, 3]), np.array([1, 2, 3])]).ids_N.tolist() == [1, 2, 3]


@given(SEQUENCES, st.integers(1, 40), st.booleans())
def test_packs_hold_every_sample_once_within_the_budget(sequences, budget, share):
    packs = plan_packs(sequences, budget, share=share)
    assert sorted(index for pack in packs for index in pack) == list(range(len(sequences)))
    for pack in packs:
        chosen = [sequences[index] for index in pack]
        assert (count_distinct(chosen) if share else sum(map(len, chosen))) <= budget or len(pack) == 1


def sample(ids, seed=0, group="g"):
    rng = np.random.default_rng(seed)
    ids_T = np.asarray(ids, dtype=np.int64)
    mask_T = rng.random(len(ids_T)) < 0.7
    return Sample(f"e{seed}", group, ids_T, mask_T, -rng.random(len(ids_T), dtype=np.float32), rng.random(len(ids_T), dtype=np.float32))


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), min_size=1, max_size=9), st.integers(4, 40), st.integers(1, 4))
def test_micro_batches_score_every_token_once_and_are_alike_on_every_rank(lists, tokens, ranks):
    samples = [sample(ids, seed) for seed, ids in enumerate(lists)]
    fixed = FixedLogprobs(old=[np.arange(len(ids)) + 100.0 * number for number, ids in enumerate(lists)])
    weights_S = np.arange(1.0, len(samples) + 1)
    shares = pack_samples(samples, Room(tokens, ranks), weights_S, fixed)
    assert len({len(share) for share in shares}) == 1
    scored = []
    for micro in (micro for share in shares for micro in share):
        np.testing.assert_array_equal(micro.positions_N[micro.sources_M] + 1, micro.tokens_M)
        for at, sequence in enumerate(micro.sequences_M):
            row, token = micro.rows[sequence], int(micro.tokens_M[at])
            if row < 0:
                assert micro.weights_M[at] == 0
                continue
            scored.append((row, token))
            assert micro.targets_M[at] == samples[row].ids_T[token] and micro.ids_N[micro.sources_M[at]] == samples[row].ids_T[token - 1]
            assert micro.engine_M[at] == samples[row].logprobs_T[token] and micro.advantages_M[at] == samples[row].advantages_T[token]
            assert micro.old_M[at] == token + 100.0 * row and micro.weights_M[at] == weights_S[row] and micro.reference_M is None
    wanted = [(row, token) for row, one in enumerate(samples) for token in np.flatnonzero(one.mask_T).tolist() if token]
    assert sorted(scored) == sorted(wanted)


def test_turns_of_one_episode_as_samples_of_their_own_cost_no_more_than_the_episode():
    history = np.arange(100)
    turns = [sample(history[:length], seed) for seed, length in enumerate((30, 60, 100))]
    assert count_tokens(pack_samples(turns, Room(1000))) == 100
    assert count_tokens(pack_samples(turns, Room(1000, share=False))) == 190


@pytest.mark.parametrize("attend", [attend_at_once, attend_in_blocks])
@pytest.mark.parametrize(("length", "before"), [(7, 0), (256, 0), (600, 0), (1, 40), (300, 17)])
def test_attention_over_a_past_equals_the_plain_formula_in_value_and_gradient(attend, length, before):
    torch.manual_seed(0)
    shapes = [(2, 6, length, 8), (2, 3, before + length, 8), (2, 3, before + length, 8)]  # six query heads share three key heads
    query, key, value = inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    upstream = torch.randn(2, 6, length, 8)
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 0.3
    future = torch.ones(length, before + length, dtype=torch.bool).triu(before + 1)
    plain = scores.masked_fill(future, float("-inf")).softmax(-1) @ value.repeat_interleave(2, 1)
    got = attend(*inputs, 0.3)
    torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad((plain * upstream).sum(), inputs)
    for left, right in zip(torch.autograd.grad((got * upstream).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def tiny(family, **more):
    """A model of three layers with tied embeddings, grouped key heads and every other thing that its family does."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True, **more},
    )
    torch.manual_seed(1)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def naive_loss(model, samples):
    """Each sample alone, from full logits."""
    total = torch.zeros(())
    for one in samples:
        ids = torch.tensor(one.ids_T)
        logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        total = total + (logprobs * torch.tensor(one.advantages_T * one.mask_T)[1:]).sum()
    return total


def packed_loss(model, samples, room):
    scorer, total = Scorer(model, Scoring(chunk=5)), torch.zeros(())
    for micro in (micro for share in pack_samples(samples, room) for micro in share):
        layout = Layout(*map(torch.tensor, (micro.ids_N, micro.positions_N, micro.sources_M)), micro.runs)
        logprobs, _ = scorer(layout, torch.tensor(micro.targets_M), 1.0)
        total = total + (logprobs * torch.tensor(micro.advantages_M)).sum()
    return total


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True])
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000), tokens=st.integers(20, 300), share=st.booleans())
def test_loss_and_gradients_of_packs_equal_those_of_samples_alone(family, checkpointing, seed, tokens, share):
    rng = np.random.default_rng(seed)
    common = rng.integers(0, 64, 40)
    samples = [sample([*common[: rng.integers(2, 40)], *rng.integers(0, 64, rng.integers(1, 30))], number) for number in range(6)]
    model = tiny(family)
    expected_loss = naive_loss(model, samples)
    expected = gradients(model, expected_loss)
    assert not why_not_runs(model)
    model.set_attn_implementation(register_attention())
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    loss = packed_loss(model, samples, Room(tokens, share=share))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)


def test_a_model_with_sliding_windows_says_why_it_cannot():
    windows = ["sliding_attention", "full_attention", "full_attention"]
    assert "sliding_attention" in why_not_runs(tiny("Qwen2", layer_types=windows, use_sliding_window=True, sliding_window=4))
    assert not why_not_runs(tiny("Qwen2"))
