"""The knobs of the learner's engine; knows their names, nothing of what they do."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from .config_objective import Section


class LoraConfig(Section):
    """Adapters of low rank beside frozen weights: W x + alpha / rank * B A x, arXiv:2106.09685."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    targets: tuple[str, ...] = Field(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1)
    """Last names of the linear layers that get one; the model must have each."""
    publish: Literal["merged", "adapters"] = "merged"
    """What goes to the engine: whole weights, or the adapters alone (far fewer bytes; each sampled token costs a little more)."""


class LearnerConfig(Section):
    """The DeepSpeed engine."""

    ranks: int = Field(1, ge=1)
    sequence_parallel: int = Field(1, ge=1)
    """Ranks that share the tokens of each micro-batch and, in attention, the heads (pipeline/ulysses.py): for long contexts. It divides
    ranks and the model's query heads; activations are divided by it."""
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
    offload_optimizer: Literal["none", "cpu", "between_steps"] = "none"
    """The host's memory for the optimiser's state, from zero_stage 1 on. cpu: always, and updates are computed there. between_steps (stage
    3): while episodes are sampled, for learner and engine on the same GPUs, with policy.sleep. nvme is not covered (docs/LOG.md)."""
    lora: LoraConfig | None = None
    """Given: only adapters of low rank are trained; model folders hold them merged into full weights."""
    seed: int = 0

    @property
    def groups(self) -> int:
        """Of ranks: each has micro-batches of its own."""
        return self.ranks // self.sequence_parallel

    @field_validator("offload_optimizer", mode="before")
    @classmethod
    def _refuse_nvme(cls, device: object) -> object:
        if device == "nvme":
            raise ValueError("nvme is not covered: DeepSpeed's aio extension needs libaio's headers (docs/LOG.md); use cpu")
        return device

    @model_validator(mode="after")
    def _refuse_ranks_that_make_no_groups(self) -> Self:
        if self.ranks % self.sequence_parallel:
            raise ValueError(f"learner.sequence_parallel = {self.sequence_parallel} does not divide learner.ranks = {self.ranks}")
        return self

    @model_validator(mode="after")
    def _refuse_what_stage_0_does_not_read(self) -> Self:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError("learner.offload_optimizer is not read at learner.zero_stage 0; use 1, 2 or 3")
        if self.offload_optimizer == "between_steps" and self.zero_stage != 3:
            raise ValueError(f"learner.offload_optimizer: between_steps needs learner.zero_stage 3, not {self.zero_stage}")
        return self
