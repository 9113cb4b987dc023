"""A model folder -> the transformers model that a rank trains: its dtype, its length (YaRN), its attention; knows no objective."""

from typing import Any

import torch

from .attention import register_attention, why_not_runs
from .model_folder import stretch
from .orders import LearnerSetup


def load_model(setup: LearnerSetup) -> Any:
    """The causal language model on the CPU; it attends in runs where it can. An export has the same config, stretched where it is."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, dtype = setup.model_folder, torch.bfloat16 if setup.learner.dtype == "bfloat16" else torch.float32
    config = AutoConfig.from_pretrained(folder, local_files_only=True, **stretch(folder, setup.rope_yarn))
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, attn_implementation="sdpa", local_files_only=True)
    if not why_not_runs(model):
        model.set_attn_implementation(register_attention())
    return model
