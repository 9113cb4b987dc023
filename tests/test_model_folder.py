"""config.json: what is stretched, what is refused; no model is loaded."""

import json

import pytest

from pipeline.config import Config
from pipeline.config_io import load_config
from pipeline.learner import check_setup
from pipeline.model_folder import refuse_experts, refuse_heads, yarn_overrides
from pipeline.plan import make_plan
from pipeline.world import setup_learner

LENGTH = {"max_position_embeddings": 8192}
STRETCHED = {
    "rope_parameters": {"rope_theta": 1e5, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
    "max_position_embeddings": 32768,
}


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}, **LENGTH},
        {"rope_theta": 1e5, **LENGTH},
        {"rope_theta": 1e5, "rope_scaling": None, **LENGTH},
        {"rope_theta": 1e5, "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8192}, **LENGTH},
        STRETCHED,
    ],
    ids=["transformers 5", "before", "explicitly none", "stretched by other numbers", "as exported: not twice"],
)
def test_yarn_is_the_same_entries_whatever_the_folder_says_so_far(entries):
    assert yarn_overrides(entries, 4.0) == STRETCHED


def test_yarn_keeps_what_a_model_says_of_its_own_ramp():
    entries = {"rope_parameters": {"rope_theta": 1e5, "rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0}, **LENGTH}
    assert yarn_overrides(entries, 4.0)["rope_parameters"] == STRETCHED["rope_parameters"] | {"beta_fast": 16.0}


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}, **LENGTH}, "rope_type llama3"),
        ({"rope_theta": 1e5, "rope_scaling": {"type": "linear", "factor": 8.0}, **LENGTH}, "rope_type linear"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}, **LENGTH}, "for each kind of layer"),
        ({"rope_theta": 1e5}, "no max_position_embeddings"),
        ({"rope_parameters": 7, **LENGTH}, "not as transformers writes them"),
    ],
)
def test_positions_that_yarn_would_not_fit_are_refused(entries, told):
    with pytest.raises(ValueError, match=told):
        yarn_overrides(entries, 4.0)


MIXTURES = [{"num_experts": 128}, {"num_local_experts": 8}, {"n_routed_experts": 64}, {"text_config": {"moe_num_experts": 64}}]


@pytest.mark.parametrize("entries", MIXTURES)
def test_a_mixture_of_experts_is_refused_before_anything_starts(entries, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(entries | LENGTH))
    config = load_config(None, ["--tasks.suite", "s", "--model.path", str(tmp_path)], Config)
    with pytest.raises(ValueError, match="mixture of experts is not covered"):
        check_setup(setup_learner(config, tmp_path))
    with pytest.raises(ValueError, match="mixture of experts is not covered"):
        make_plan(config)


@pytest.mark.parametrize("entries", [{}, {"num_experts": None}, {"num_local_experts": 1}, {"num_experts": 0}, {"text_config": {}}])
def test_a_dense_model_is_none(entries):
    refuse_experts(entries)


@pytest.mark.parametrize(("heads", "keys", "ranks"), [(64, 8, 8), (64, 8, 16), (4, None, 2), (9, 3, 3), (4, 1, 4)])
def test_heads_that_can_be_shared_out(heads, keys, ranks):
    refuse_heads({"num_attention_heads": heads, "num_key_value_heads": keys}, ranks)


@pytest.mark.parametrize(("heads", "keys", "ranks"), [(9, 3, 2), (4, 4, 8), (12, 4, 3), (24, 6, 4)])
def test_heads_that_cannot_are_told_before_anything_starts(heads, keys, ranks, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": heads, "num_key_value_heads": keys}))
    words = ["--learner.ranks", str(ranks), "--learner.sequence_parallel", str(ranks), "--model.path", str(tmp_path)]
    with pytest.raises(ValueError, match=rf"learner\.sequence_parallel = {ranks} does not divide the model's {heads} query heads"):
        check_setup(setup_learner(load_config(None, ["--tasks.suite", "s", *words], Config), tmp_path))
