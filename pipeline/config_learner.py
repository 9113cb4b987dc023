"""The knobs of the learner's engine; knows their names, nothing of what they do."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .config_objective import Section


class LoraConfig(Section):
    """Adapters of low rank beside frozen weights: W x + alpha / rank * B A x, arXiv:2106.09685."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    targets: tuple[str, ...] = Field(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1)
    """Last names of the linear layers that get one; the model must have each."""


class LearnerConfig(Section):
    """The DeepSpeed engine."""

    ranks: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass; master weights are always fp32."""
    micro_tokens: int = Field(2048, ge=64)
    """Token budget of one micro-batch: distinct tokens, nothing is padded."""
    share_prefixes: bool = True
    """Compute once what samples begin with in common (pipeline/tree.py); the same loss and gradients, fewer tokens."""
    head_chunk: int = Field(1024, ge=1)
    """Tokens whose logits exist at one time."""
    activation_checkpointing: bool = False
    offload_optimizer: Literal["none", "cpu"] = "none"
    """The host's memory for the optimiser's state; DeepSpeed does that from zero_stage 1 on."""
    lora: LoraConfig | None = None
    """Given: only adapters of low rank are trained; exports hold them merged into full weights."""
    seed: int = 0

    @model_validator(mode="after")
    def _refuse_what_stage_0_does_not_read(self) -> Self:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError("learner.offload_optimizer is not read at learner.zero_stage 0; use 1, 2 or 3")
        return self
